"""The one path: recipe -> stages -> results.

Every stage is produced from the one before it *reloaded from its folder*, in phases that each leave a whole folder, so
that a killed run goes on where it stood:

    <output_dir>/stages/.work/<stage>/surgery      after pruning or factorization (rank 0 alone)
    <output_dir>/stages/.work/<stage>/checkpoints  the Trainer's own, while it trains
    <output_dir>/stages/.work/<stage>/model        the finished model, not measured yet
    <output_dir>/stages/<stage>/                   measured, complete
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from filelock import FileLock, Timeout

from . import load_methods
from .errors import CompressionError, RecipeError
from .journal import JOURNAL, Clock, Journal
from .measurement import configure_threads, environment
from .models import load_model, load_teacher
from .outcome import assemble, task_facts
from .plan import PlannedStage, history, may_follow, plan, teacher_of
from .preflight import check_sources, check_trainings, find_teacher_of, resolved, teachers, weights_of
from .publish import edited_card, push_run, remember_card
from .recipe import Recipe, Step, load_recipe
from .registry import Cost, get_method
from .report import model_card, print_stages, write_report
from .results import load_results, save_results
from .stages import copy_model, load_stage, measure_stage, save_stage, step_serving
from .storage import NO_ROOM, explain_full_disk, read_json, whole_folder, write_json, write_text
from .store import StageStore, stage_key
from .structure import track
from .tasks import load_task
from .training import Context, StepReport, apply_method


logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A finished run: its folder and the content of its `results.json`."""

    output_dir: Path
    results: dict


def run(recipe: str | Path | dict | Recipe, overrides: Sequence[str] = ()) -> Run:
    """Run a recipe, or finish one that was stopped.

    Args:
        recipe (`str`, `Path`, `dict` or [`Recipe`]): a YAML file, or what it would hold.
        overrides (`Sequence[str]`, *optional*): such as `["steps.1.target.macs=0.5", "output_dir=/tmp/out"]`.

    Returns:
        [`Run`]: the folder and the results.

    Raises:
        `CompressionError`: for anything in the recipe, the data or the model that cannot work; nothing half-written
        is left under a final name. On a full disk it is a `DiskFullError`, from the library's own.
    """
    load_methods()
    return Runner(load_recipe(recipe, overrides)).run()


class Runner:
    """One execution of a recipe; `run` is its only verb.

    Args:
        recipe ([`Recipe`]): what to do.
        store ([`StageStore`], *optional*): where stages lie that other runs have made, and where its own are kept for
            them.
    """

    def __init__(self, recipe: Recipe, store: StageStore | None = None):
        self.store = store
        self.state = PartialState(cpu=not _has_accelerator(), timeout=timedelta(hours=24))
        self.recipe = recipe = resolved(recipe)
        self.output_dir = Path(recipe.output_dir).expanduser()
        self.journal = Journal(self.output_dir / JOURNAL, enabled=self.state.is_main_process)
        self.stages = plan(recipe)
        self.task = self._facts = None
        self._prepared = {}
        self._lock = FileLock(self.output_dir / ".lock")

    def run(self) -> Run:
        configure_threads(self.recipe.threads)
        try:
            with explain_full_disk(self.output_dir):
                return self._run()
        finally:
            self._lock.release()  # a notebook keeps an error and with it this runner, and may run the recipe again

    def _run(self) -> Run:
        check_trainings(self.recipe)
        waiting = [stage.step for index, stage in enumerate(self.stages) if not self._is_made(index)]
        for path, step in teachers(self.recipe):
            if any(step is one for one in waiting):
                find_teacher_of(step, path, self.output_dir)
        if self.state.is_main_process:
            _make_folder(self.output_dir)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise CompressionError(
                    f"{self.output_dir}: another process runs in this folder; wait for it."
                ) from None
            self._claim()
        try:
            return self._go_through()
        except Exception as error:
            self.journal.copy = None
            self._journal_failure("run", error)
            raise

    def _go_through(self) -> Run:
        self.state.wait_for_everyone()
        self._facts = self._known_facts()
        if self._facts is None:
            self.task = load_task(self.recipe.task, seed=self.recipe.seed)
            self._facts = task_facts(self.task)
        for index, stage in enumerate(self.stages):
            if not self._folder(index).is_dir():
                logger.info("Stage %s (%d of %d)", stage.name, index + 1, len(self.stages))
                self._obtain(index, stage)
            self.state.wait_for_everyone()
        results = self._finish() if self.state.is_main_process else {}
        self.state.wait_for_everyone()
        return Run(self.output_dir, results)

    def _known_facts(self) -> dict | None:
        """What a finished run's results say of its task: it can be looked at again where its data are gone."""
        if not all(self._folder(index).is_dir() for index in range(len(self.stages))):
            return None
        with suppress(CompressionError):  # none, or damaged ones
            return load_results(self.output_dir)["task"]
        return None

    def _claim(self) -> None:
        """Make the folder this recipe's, or refuse the folder of another one."""
        path = self.output_dir / "recipe.yaml"
        if path.exists():
            try:
                other = load_recipe(path)
            except RecipeError as error:
                raise CompressionError(f"{path}: this folder's recipe cannot be read: {error}") from None
            if other.identity() != self.recipe.identity():
                if not may_follow(self.recipe, other, self.output_dir):
                    raise CompressionError(
                        f"{self.output_dir} holds a run of another recipe (task, model, training, steps, seed, "
                        f"threads or measure differ from {path}); give another output_dir, or remove the folder."
                    )
                shutil.rmtree(self.output_dir / "stages" / ".work", ignore_errors=True)
        write_text(path, self.recipe.to_yaml())
        where = self.output_dir / "environment.json"
        whole = all(self._folder(index).is_dir() for index in range(len(self.stages)))
        if not whole:
            check_sources(self.recipe, self._made_folders())
        if not whole or not where.exists():
            write_json(where, environment())  # a run that is only looked at again was made where it was made
        self.journal.append(operation="run", status="started", threads=self.recipe.threads)

    def _folder(self, index: int) -> Path:
        return self.output_dir / "stages" / self.stages[index].name

    def _is_made(self, index: int) -> bool:
        """Whether the stage's model is there, be it measured or not."""
        folders = [self._folder(index), self.output_dir / "stages" / ".work" / self.stages[index].name / "model"]
        if self.store is not None:
            key = stage_key(history(self.recipe, self.stages, index))
            folders += [self.store.folder(key), self.store.work(key) / "model"]
        return any(folder.is_dir() for folder in folders)

    def _made_folders(self) -> list[Path]:
        """The folders of all stages, whole or half-made, that this run goes on from or may take."""
        roots = [self.output_dir / "stages"] + ([] if self.store is None else [self.store.root])
        reports = (
            path for root in roots for depth in ("*", ".work/*/*") for path in root.glob(f"{depth}/report.json")
        )
        return [path.parent for path in reports]

    def _sources(self, stage: PlannedStage, step: Step | None, start: Path | None) -> dict[str, str]:
        """The weights that a phase reads of the models that the recipe names."""
        names = []
        if start is None and stage.source == "model" and not self.recipe.model.from_config:
            names.append(self.recipe.model.name_or_path)
        if start is None and stage.source == "teacher":
            names.append(teacher_of(self.stages))
        if step is not None and step.teacher not in (None, "baseline"):
            names.append(step.teacher)
        return weights_of(names)

    @property
    def _baseline_index(self) -> int:
        return next(index for index, stage in enumerate(self.stages) if stage.name.endswith("_baseline"))

    def _obtain(self, index: int, stage: PlannedStage) -> None:
        """Make the stage, or take it from the store, where it is made at the first time of asking."""
        if self.store is None:
            self._produce(index, stage, self.output_dir / "stages" / ".work" / stage.name, self._folder(index))
            return
        key = stage_key(history(self.recipe, self.stages, index))
        with self.store.lock(key) if self.state.is_main_process else nullcontext():
            self.state.wait_for_everyone()  # all look while the first process holds the lock, and before it goes on
            shared = self.store.has(key)
            self.state.wait_for_everyone()
            if not shared:
                self._produce(index, stage, self.store.work(key), self.store.folder(key))
            if self.state.is_main_process:
                self.store.take(key, self._folder(index))
                if shared:
                    self.journal.append(operation="shared", stage=stage.name, status="done", notes={"key": key})

    def _produce(self, index: int, stage: PlannedStage, work: Path, target: Path) -> None:
        """Make and measure the stage in `work`; it takes the name `target` when it is complete."""
        folder = work / "model"
        if self.state.is_main_process:
            work.mkdir(parents=True, exist_ok=True)
            self.journal.copy = work / JOURNAL
        if not folder.is_dir():
            self._make(index, stage, work)
        if not self.state.is_main_process:
            return
        record = measure_stage(
            folder,
            baseline=self._folder(self._baseline_index) if index > self._baseline_index else None,
            previous=self._folder(index - 1) if index else None,
            recipe=self.recipe,
            task=self.task,
            prepare=self._data,
            journal=self.journal,
        )
        write_json(folder / "measurement.json", record)
        self.journal.copy = None
        shutil.copyfile(work / JOURNAL, folder / JOURNAL)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder, target)
        shutil.rmtree(work, ignore_errors=True)

    def _make(self, index: int, stage: PlannedStage, work: Path) -> None:
        """Fill `work/model`: one phase, or surgery on rank 0 and then training on all ranks."""
        step = stage.step
        if step is None:
            self._phase(index, stage, work, work / "model", None, everyone=False)
            return
        method = get_method(step.technique, step.method)
        if method.trains or step.distill is None:
            self._phase(index, stage, work, work / "model", step, everyone=method.trains)
            return
        surgery = work / "surgery"
        if not surgery.is_dir():
            self._phase(index, stage, work, surgery, step, everyone=False, recover=False)
        self.state.wait_for_everyone()
        recovery = Step("distill", "logits", step.distill, training=step.training)
        self._phase(index, stage, work, work / "model", recovery, everyone=True, start=surgery)

    def _phase(
        self, index, stage, work, target, step, *, everyone: bool, start: Path | None = None, recover: bool = True
    ) -> None:
        """Load the model from `start`, apply `step`, save into `target`. Without `everyone`, on rank 0 alone."""
        if not everyone and not self.state.is_main_process:
            return
        sources = self._sources(stage, step if recover else None, start) if self.state.is_main_process else {}
        with self.journal.operation("load", stage.name):
            model, processor = self._load(index, stage, start)
        report = StepReport("none", "none", model=model)
        if step is not None:
            # Trainer can put weights back only from checkpoints with the names that the model has now. Transformers
            # saves a BERT of an old checkpoint under its old names, unless the structure is tracked.
            track(model)
            report = self._apply(stage, step, model, processor, work, recover)
        if self.state.is_main_process:
            earlier = read_json(start / "report.json") if start else None
            with self.journal.operation("save", stage.name), whole_folder(target) as aside:
                save_stage(report.model, processor, aside)
                sources |= (earlier or {}).get("sources", {})
                write_json(aside / "report.json", {"stage": stage.name, "sources": sources, **report.to_dict(earlier)})
        if everyone:
            self.state.wait_for_everyone()

    def _apply(self, stage: PlannedStage, step: Step, model, processor, work: Path, recover: bool) -> StepReport:
        context = Context(
            data=self._data(processor),
            baseline=self._baseline,
            load_teacher=lambda name: load_teacher(name, self.task)[0],
            baseline_cost=self._baseline_cost(),
            target=step.target,
            training={**self.recipe.training, **step.training},
            seed=self.recipe.seed,
            output_dir=work,
            length=self.recipe.length,
            journal=self.journal,
            stage=stage.name,
        )
        context.serving = step_serving(self.recipe, context)
        self.journal.append(operation="surgery", stage=stage.name, status="started")
        clock = Clock()
        try:
            with clock:
                report = apply_method(
                    model, step.technique, step.method, step.options, context, distill=step.distill, recover=recover
                )
        except Exception as error:
            self._journal_failure("surgery", error, stage=stage.name, **clock.read())
            raise
        # training and calibration have clocks and lines of their own; what is left of the step is the surgery
        self.journal.append(operation="surgery", stage=stage.name, status="done", **clock.read())
        return report

    def _journal_failure(self, operation: str, error: Exception, **facts) -> None:
        with suppress(OSError):  # on a full disk: must not hide why it failed
            notes = {"error": f"{type(error).__name__}: {error}"}
            self.journal.append(operation=operation, status="failed", **facts, notes=notes)

    def _baseline(self):
        return load_stage(self._folder(self._baseline_index), self.task)[0]

    def _baseline_cost(self) -> Cost | None:
        path = self._folder(self._baseline_index) / "measurement.json"
        if not path.exists():
            return None
        return Cost(**read_json(path)["cost"])

    def _data(self, processor):
        """The task's data for `processor`; prepared once for all stages that share it."""
        key = repr(processor)
        if key not in self._prepared:
            with self.journal.operation("data"):
                self._prepared = {key: self.task.prepare(processor)}
        return self._prepared[key]

    def _load(self, index: int, stage: PlannedStage, start: Path | None):
        if start is not None:
            return load_stage(start, self.task)
        if stage.source == "previous":
            return load_stage(self._folder(index - 1), self.task)
        if stage.source == "teacher":
            return load_teacher(teacher_of(self.stages), self.task)
        spec = self.recipe.model
        return load_model(
            spec.name_or_path,
            task=self.task,
            from_config=spec.from_config,
            revision=spec.revision,
            config=spec.config,
            seed=self.recipe.seed,
        )

    def _finish(self) -> dict:
        """Write `results.json`, the `model` folder and the reports, and push if asked."""
        folders = [self._folder(index) for index in range(len(self.stages))]
        results = assemble(self.recipe, self.stages, folders, self.output_dir, self._facts)
        card = edited_card(self.output_dir, self.recipe.hub.repo_id)
        save_results(results, self.output_dir / "results.json")
        if card is None:
            card = model_card(results, self.recipe.hub.repo_id)
            remember_card(self.output_dir, card)
        with whole_folder(self.output_dir / "model") as aside:
            copy_model(folders[-1], aside)
            write_text(aside / "README.md", card)
        write_report(results, self.output_dir)
        self.journal.append(operation="run", status="done")
        print_stages(results)
        if self.recipe.hub.push:
            with self.journal.operation("push"):
                address = push_run(self.output_dir, self.recipe.hub.repo_id, private=self.recipe.hub.private)
            logger.info("Pushed: %s", address)
        return results


def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


def _make_folder(folder: Path) -> None:
    """Make the output folder; a file in its place or a folder that may not be written is refused with its name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise CompressionError(f"output_dir: {folder} is a file; give a folder.") from None
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise CompressionError(f"output_dir: {folder} cannot be made ({error.strerror}); give another.") from None
