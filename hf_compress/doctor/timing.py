"""About how long a recipe takes and how much memory: a few batches are timed, and multiplied.

The dense model is timed, at the recipe's batch and precision, so that what comes after a compressing step is an upper
bound: smaller models take less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from ..journal import peak_memory, reset_peak_memory
from ..measurement import configure_threads, has_fast_bf16
from ..measurement.inputs import example_inputs
from ..models import load_model
from ..plan import history, plan
from ..recipe import Recipe, Step
from ..registry import get_method
from ..stages import EVALUATION_BATCH
from ..store import stage_key
from ..tasks import Task, load_task
from ..tasks.selection import HOLDOUT_SHARE
from ..training.arguments import CONVOLUTIONAL, TRANSFORMER, default_training


SECONDS = 4.0  # for each of the things that are timed
SIZES = {"cifar10": (50_000, 10_000)}
MEAN_SHARE = 0.4  # of max_length that a text of GLUE has in a batch of like ones, in the mean over its subsets


@dataclass(frozen=True)
class StageEstimate:
    """Seconds of a stage by operation, and the memory it needs at its peak, in bytes."""

    stage: str
    train: float
    evaluate: float
    measure: float
    calibrate: float
    peak_bytes: int

    @property
    def seconds(self) -> float:
        return self.train + self.evaluate + self.measure + self.calibrate

    def to_dict(self) -> dict:
        return {**asdict(self), "seconds": self.seconds}


@dataclass(frozen=True)
class _Speed:
    """Seconds an example, and the peak memory while they were taken."""

    forward: float
    training: float
    peak_bytes: int


def estimate(recipes: Sequence[Recipe]) -> list[StageEstimate]:
    """Time some batches of the recipes' models and say what their stages would take, those that they share once.

    Raises:
        `CompressionError`: if a model or a teacher is not here.
    """
    stages, seen, speeds = [], set(), {}
    for recipe in recipes:
        plans = plan(recipe)
        keys = [stage_key(history(recipe, plans, index)) for index in range(len(plans))]
        for key, stage in zip(keys, _estimate(recipe, speeds), strict=True):
            if key not in seen:
                stages.append(stage)
            seen.add(key)
    return stages


def _estimate(recipe: Recipe, speeds: dict) -> list[StageEstimate]:
    """The stages of one recipe; `speeds` keeps what was timed, by what it was timed of."""
    configure_threads(recipe.threads)
    task = load_task(recipe.task, seed=recipe.seed)
    length = max(8, round(MEAN_SHARE * recipe.task.max_length)) if task.modality == "text" else None

    def speed(name: str | None) -> _Speed:
        key = repr((name or recipe.model, recipe.training, recipe.threads, length))
        if key not in speeds:
            speeds[key] = _speed(_loaded(recipe, task, name), recipe, task, length)
        return speeds[key]

    train, evaluation = _sizes(recipe, task)
    stages = []
    for index, stage in enumerate(plan(recipe)):
        own = speed(_teacher(recipe.steps[0]) if stage.source == "teacher" else None)
        step = stage.step
        seconds = {"train": 0.0, "calibrate": 0.0}
        if step is not None:
            seconds["train"] = _training_seconds(recipe, step, task, own, speed, train)
            seconds["calibrate"] = _calibration_seconds(step, own)
        stages.append(
            StageEstimate(
                stage.name,
                evaluate=evaluation * own.forward,
                measure=_measuring_seconds(recipe, task, first=index == 0),
                peak_bytes=own.peak_bytes,
                **seconds,
            )
        )
    return stages


def _sizes(recipe: Recipe, task: Task) -> tuple[int, int]:
    """Examples that are trained on, and evaluated on."""
    from ..tasks import glue

    subset = recipe.task.subset
    if recipe.task.data_dir == "sample":
        train, evaluation = 1000, 1000
    elif subset is None:
        train, evaluation = SIZES[recipe.task.name]
    else:
        train, *rest = glue.SUBSETS[subset].sizes.values()
        evaluation = sum(rest)
    train = min(train, recipe.task.max_train_samples or train)
    return round(train * (1 - HOLDOUT_SHARE)), min(evaluation, recipe.task.max_eval_samples or evaluation)


def _loaded(recipe: Recipe, task: Task, name: str | None) -> nn.Module:
    if name is not None:
        return load_model(name, task=task)[0]
    spec = recipe.model
    return load_model(spec.name_or_path, task=task, from_config=spec.from_config, config=spec.config)[0]


def _speed(model: nn.Module, recipe: Recipe, task: Task, length: int | None) -> _Speed:
    arguments = {**default_training(model), **recipe.training}
    bf16 = arguments.get("bf16", has_fast_bf16())
    forward, forward_peak = _timed(_forward(model, EVALUATION_BATCH[task.modality], length))
    training, training_peak = _timed(_training_step(model, arguments["per_device_train_batch_size"], length, bf16))
    state = 2 if "adam" in str(arguments.get("optim")) else 1  # moments an optimizer keeps of every weight
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return _Speed(forward, training, max(forward_peak, training_peak) + state * weights)


def _timed(run: Callable[[], int]) -> tuple[float, int]:
    """Seconds an example of `run`, which says how many it took, and the peak memory; the first call does not count."""
    reset_peak_memory()
    run()
    started, examples = time.perf_counter(), 0
    while not examples or time.perf_counter() - started < SECONDS:
        examples += run()
    return (time.perf_counter() - started) / examples, peak_memory()


def _forward(model: nn.Module, batch: int, length: int | None) -> Callable[[], int]:
    inputs = example_inputs(model, batch, length)

    def run() -> int:
        with torch.no_grad():
            model.eval()(**inputs)
        return batch

    return run


def _training_step(model: nn.Module, batch: int, length: int | None, bf16: bool) -> Callable[[], int]:
    inputs = example_inputs(model, batch, length)
    many = model.config.num_labels > 1
    inputs["labels"] = torch.zeros(batch, dtype=torch.long if many else torch.float32)

    def run() -> int:
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(bf16)):
            loss = model(**inputs).loss
        loss.backward()
        model.zero_grad(set_to_none=True)
        return batch

    return run


def _training_seconds(recipe: Recipe, step: Step, task: Task, own: _Speed, speed, examples: int) -> float:
    trains = step.technique in ("finetune", "distill") or step.distill is not None
    if not trains and not get_method(step.technique, step.method).trains:
        return 0.0
    defaults = CONVOLUTIONAL if task.modality == "image" else TRANSFORMER
    fields = {**defaults, **recipe.training, **step.training}
    count = fields["num_train_epochs"] * examples
    if fields.get("max_steps", -1) > 0:
        count = fields["max_steps"] * fields["per_device_train_batch_size"]
    teacher = _teacher(step)
    each = own.training
    if teacher is not None:
        each += (own if teacher == "baseline" else speed(teacher)).forward
    return count * each


def _teacher(step: Step) -> str | None:
    return getattr(step.options if step.technique == "distill" else step.distill, "teacher", None)


def _calibration_seconds(step: Step, own: _Speed) -> float:
    """Three passes over the calibration examples, which run one at a time in the engine."""
    samples = getattr(step.options, "calibration_samples", 0)
    return 3 * samples * own.forward


def _measuring_seconds(recipe: Recipe, task: Task, first: bool) -> float:
    batch = recipe.measure.batch or (128 if task.modality == "image" else 1)
    return recipe.measure.seconds * len({1, batch}) * (1.0 if first else 1.3)
