"""All that a method may know: data, loss, cost, training and the dense model, from a recipe or from a notebook."""

from __future__ import annotations

import os
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ..errors import CompressionError
from ..measurement import Serving, count
from ..registry import Cost, Target
from .arguments import build_arguments, default_training
from .callbacks import TellSaved
from .data import TrainingData, forward_columns, to_device
from .fit import TrainReport, fit


BASELINE = "baseline"  # the teacher's name that means the dense model
CALIBRATION_BATCH = 32  # the refinement takes one step a batch, so no setting of the evaluation may change it


class Context:
    """The [`~registry.StepContext`] of one step.

    Args:
        data (*optional*): a task's data, a `datasets.Dataset`, or another data set; see [`TrainingData.of`]. Without
            it a method that trains or calibrates is refused.
        collate_fn (`Callable`, *optional*): makes a batch of examples, if `data` does not say how.
        baseline (`Callable[[], nn.Module]` or `nn.Module`, *optional*): loads the dense model.
        load_teacher (`Callable[[str], nn.Module]`, *optional*): loads a teacher by name; the default looks names up as
            [`~models.load_model`] does.
        baseline_cost ([`~registry.Cost`], *optional*): what targets are fractions of. The default is the cost of the
            model that enters the step.
        target ([`~registry.Target`], *optional*): what the step must reach.
        training (`dict`, *optional*): fields of `TrainingArguments` over the defaults for the model.
        seed (`int`, *optional*, defaults to 0): of the order of examples, augmentation, dropout and calibration.
        output_dir (`str` or `os.PathLike`, *optional*): where checkpoints go. Without it nothing is saved and a
            training that is stopped starts again.
        measure_cost (`Callable[[nn.Module], Cost]`, *optional*): the default counts parameters and MACs.
        serving ([`~measurement.Serving`], *optional*): what a target of latency speaks of. Under such a target the
            dense model is timed beside every model whose cost is asked for, and its latency is 1.
        length (`int`, *optional*): tokens of the example whose MACs are counted.
        journal ([`~journal.Journal`], *optional*), stage (`str`, *optional*): where calibrations and trainings are
            recorded, and under which stage.
        resume (`bool`, *optional*, defaults to `True`): go on from checkpoints in `output_dir`.
    """

    def __init__(
        self,
        *,
        data: Any = None,
        collate_fn: Callable | None = None,
        baseline: Callable[[], nn.Module] | nn.Module | None = None,
        load_teacher: Callable[[str], nn.Module] | None = None,
        baseline_cost: Cost | None = None,
        target: Target | None = None,
        training: dict[str, Any] | None = None,
        seed: int = 0,
        output_dir: str | os.PathLike | None = None,
        measure_cost: Callable[[nn.Module], Cost] | None = None,
        serving: Serving | None = None,
        length: int | None = None,
        journal: Any = None,
        stage: str | None = None,
        resume: bool = True,
    ):
        self.data = None if data is None else TrainingData.of(data, collate_fn)
        self.baseline_cost = baseline_cost
        self.target = target
        self.training = dict(training or {})
        self.seed = seed
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.resume = resume
        self.notes: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.loss_terms: list = []  # of a distill block: every training of the step uses them
        self.columns: list[str] | None = None  # the inputs of the step's model, see `expect`
        self._baseline = baseline
        self._loaded_baseline: Callable[[], nn.Module | None] = lambda: None
        self._load_teacher = load_teacher or _load_teacher
        self._measure_cost = measure_cost or (lambda model: count(model, length=length))
        self.serving = serving or Serving(length=length)
        if baseline_cost is not None:
            self.set_baseline_cost(baseline_cost)
        self._journal, self._stage = journal, stage
        self._trainings = 0

    # -- what methods use ------------------------------------------------------------------------------------------

    @property
    def budget(self) -> float | None:
        """The target as an absolute figure, `None` without one."""
        if self.target is None or self.baseline_cost is None:
            return None
        return self.target.fraction * self.baseline_cost.of(self.target)

    def calibration(self, n: int) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of 32 of the first `n` examples of a seeded shuffle of the training split, without augmentation.

        Raises:
            `CompressionError`: without data.
        """
        data = self._need_data("calibrates on examples")
        if n < 1:
            raise CompressionError(f"calibration: got {n} examples; give at least 1.")
        return self._calibration(data.calibration(n, self.seed, CALIBRATION_BATCH, self.columns))

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The task's loss of `model` on `batch`, a scalar with its graph.

        Raises:
            `CompressionError`: if the batch has no labels.
        """
        outputs = model(**to_device(batch, model))
        loss = outputs["loss"] if isinstance(outputs, dict) and "loss" in outputs else None
        if loss is None:
            raise CompressionError("loss: the data has no labels; give data with a column of labels.")
        return loss

    def cost(self, model: nn.Module) -> Cost:
        """Parameters and MACs of `model`, and under a target of latency its time, where the dense model's is 1."""
        cost = self._measure_cost(model)
        if not self._is_timed:
            return cost
        dense = self.baseline()
        if model is dense:
            return replace(cost, latency=1.0)
        own, full = self.serving.latencies(model, dense)
        return replace(cost, latency=own / full)

    def train(
        self, model: nn.Module, *, loss_terms: Sequence = (), callbacks: Sequence = (), **overrides
    ) -> TrainReport:
        """Train `model` in place.

        Args:
            loss_terms (`Sequence[Callable]`, *optional*): come after those of the step's distill block.
            callbacks (`Sequence[TrainerCallback]`, *optional*): of the method.
            **overrides: fields of `TrainingArguments`, over the step's training block.

        Raises:
            `CompressionError`: without data.
        """
        data = self._need_data("trains")
        fields = {**default_training(model), **self.training, **overrides}
        folder = None if self.output_dir is None else self.output_dir / "checkpoints" / f"{self._trainings:02d}"
        self._trainings += 1
        if folder is None:
            fields["save_strategy"] = "no"
        started = time.perf_counter()

        def tell(step: int) -> None:
            if self._journal is not None:
                so_far = round(time.perf_counter() - started, 3)
                event = {"operation": "train", "stage": self._stage, "status": "saved", "wall_seconds": so_far}
                self._journal.append(**event, notes={"step": step})

        with self._timed("train"), _folder_or_none(folder) as place:
            report = fit(
                model,
                data=data,
                arguments=build_arguments(fields, place, self.seed),
                loss_terms=(*self.loss_terms, *loss_terms),
                callbacks=(*callbacks, TellSaved(tell)),
                resume=self.resume,
            )
        self.note(epochs=report.epochs)
        if report.resumed_from is not None:
            place = f"step {report.resumed_from} of {report.steps}"
            counts = "its seconds are those from there on"
            if self._journal is not None:
                counts = "of a process that was killed, the time until its last checkpoint counts"
            self.note(warnings=[f"The training went on from {place}; {counts}."])
        return report

    def baseline(self) -> nn.Module:
        """The dense model, in eval mode; loaded when asked for and let go with its last user.

        Raises:
            `CompressionError`: if nobody said what the dense model is.
        """
        if self._baseline is None:
            raise CompressionError(
                "baseline: no dense model is known here; pass baseline= (a model, or what loads it)."
            )
        model = self._loaded_baseline()
        if model is None:
            model = self._baseline if isinstance(self._baseline, nn.Module) else self._baseline()
            model.eval()
            self._loaded_baseline = weakref.ref(model)
        return model

    def teacher(self, name: str = BASELINE) -> nn.Module:
        """The dense model for `"baseline"`, else the model of that name; in eval mode."""
        return self.baseline() if name == BASELINE else self._load_teacher(name).eval()

    def progress(self, iterable: Iterable, description: str, total: int | None = None) -> Iterable:
        """A progress bar around `iterable`, shown by the first process."""
        return tqdm(iterable, desc=description, total=total, disable=not is_main_process(), dynamic_ncols=True)

    def note(self, **facts) -> None:
        """Keep facts for the results. Lists are continued, mappings updated, anything else is replaced."""
        for key, value in facts.items():
            present = self.notes.get(key)
            if isinstance(present, list) and isinstance(value, list):
                self.notes[key] = present + value
            elif isinstance(present, dict) and isinstance(value, dict):
                self.notes[key] = {**present, **value}
            else:
                self.notes[key] = value

    def apart(self) -> Context:
        """A context for something tried out on the same data, which leaves no notes and no times here."""
        other = Context(seed=self.seed)
        other.data, other.columns = self.data, self.columns
        return other

    # -- what whoever runs the step uses ---------------------------------------------------------------------------

    @property
    def _is_timed(self) -> bool:
        return self.target is not None and self.target.kind == "latency"

    def set_baseline_cost(self, cost: Cost) -> None:
        """Let `cost` be what targets are fractions of; under a target of latency that of the dense model is 1."""
        self.baseline_cost = replace(cost, latency=1.0) if self._is_timed else cost

    @property
    def has_baseline(self) -> bool:
        return self._baseline is not None

    def keep_baseline(self, model: nn.Module) -> None:
        """Take `model` for the dense one. A verb calls it with a copy, before the surgery."""
        self._baseline = model

    def expect(self, model: nn.Module) -> None:
        """Learn which inputs the step's model takes."""
        self.columns = forward_columns(model)

    def _need_data(self, what: str) -> TrainingData:
        if self.data is None:
            raise CompressionError(f"data: this step {what} and got no data; pass data= and, if needed, collate_fn=.")
        return self.data

    def _calibration(self, batches: Iterator) -> Iterator:
        # what the method does between two batches is the calibration, so the time until the last one counts
        with self._timed("calibrate"):
            try:
                yield from batches
            except GeneratorExit:
                return  # the method has seen enough

    @contextmanager
    def _timed(self, operation: str):
        started = time.perf_counter()
        try:
            if self._journal is None:
                yield
            else:
                with self._journal.operation(operation, self._stage):
                    yield
        finally:
            self.seconds[operation] = self.seconds.get(operation, 0.0) + time.perf_counter() - started


def is_main_process() -> bool:
    """Whether this is the process that writes and shows progress."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return int(os.environ.get("RANK", "0")) == 0


def _folder_or_none(folder: Path | None):
    """`Trainer` wants a folder even when it saves nothing."""
    return nullcontext(folder) if folder is not None else tempfile.TemporaryDirectory(prefix="hf_compress-")


def _load_teacher(name: str) -> nn.Module:
    from ..models import load_teacher

    return load_teacher(name)[0]
