"""The folder of a stage: save it, load it, measure what was loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from .journal import JOURNAL, Journal
from .measurement import Serving, arithmetic, count, cpu_name, evaluate, folder_size, instruction_sets, latency_rows
from .models import load_model
from .quantization import is_exported, load_exported, save_exported, served_precision
from .recipe import Recipe
from .registry import Cost
from .storage import read_json
from .tasks import Task, TaskData
from .training import Context, serving


# what stands in a stage's folder beside the model
RECORDS = ("report.json", "measurement.json", JOURNAL)  # the journal of this stage alone, whoever worked on it
# part of what a fingerprint of predictions means: sums in another batch differ in their last bits
EVALUATION_BATCH = {"image": 250, "text": 32}


def save_stage(model: Any, processor: Any, folder: Path) -> None:
    """Save `model` (of torch or exported) with its processor into `folder`."""
    if not isinstance(model, nn.Module):
        save_exported(model, folder, processor)
        return
    model.save_pretrained(folder)
    if processor is not None and model.config.model_type != "timm_wrapper":  # there it is part of config.json
        processor.save_pretrained(folder)


def load_stage(folder: Path, task: Task) -> tuple[Any, Any]:
    """The model of a stage, as plain `from_pretrained` gives it, and its processor; see [`served_precision`]."""
    if is_exported(folder):
        return load_exported(folder, precision=served_precision(folder))
    return load_model(folder, task=task)


def evaluate_stage(model: Any, data: TaskData, modality: str) -> dict[str, dict]:
    """What a stage's record keeps of its model on the evaluation splits: `metrics`, and `predictions` by split.

    Whoever loads the model elsewhere and gives it here, with as many threads, on a CPU and with versions like those of
    the run, gets the same.
    """
    found = evaluate(model, data, batch_size=EVALUATION_BATCH[modality], progress=True)
    return {
        "metrics": _flat({split: evaluation.metrics for split, evaluation in found.items()}),
        "predictions": {split: evaluation.fingerprint() for split, evaluation in found.items()},
    }


def copy_model(stage: Path, folder: Path) -> None:
    """Copy the model of a finished stage, without the records of the run."""
    for path in stage.iterdir():
        if path.name not in RECORDS and path.is_file():
            shutil.copyfile(path, folder / path.name)


def measure_stage(
    folder: Path,
    *,
    baseline: Path | None,
    previous: Path | None,
    recipe: Recipe,
    task: Task,
    prepare: Callable[[Any], TaskData],
    journal: Journal,
) -> dict:
    """Load the stage in `folder` and measure it: its record in `results.json`, and its `cost` for later targets.

    Args:
        folder (`Path`): a whole stage with its `report.json`; its name is the stage's.
        baseline (`Path`, *optional*): the dense stage, timed beside this one; `None` if this is the dense one.
        previous (`Path`, *optional*): the stage before. An exported model has the parameters and MACs of the torch
            model it came from.
        prepare (`Callable`): gives the task's data for a processor.
    """
    report = read_json(folder / "report.json")
    name = report["stage"]
    with journal.operation("load", name):
        model, processor = load_stage(folder, task)
    exported = not isinstance(model, nn.Module)
    data = prepare(processor)
    with journal.operation("evaluate", name):
        found = evaluate_stage(model, data, task.modality)
    with journal.operation("measure", name):
        cost = (
            Cost(**read_json(previous / "measurement.json")["cost"])
            if exported
            else count(model, length=recipe.length)
        )
        rows = _latencies(model, baseline, recipe, task)
    notes = report["notes"]
    if exported:
        notes["arithmetic"] = arithmetic(model)
    return {
        "name": name,
        "technique": report["technique"],
        "method": report["method"],
        "metrics": found["metrics"],
        "params": cost.params,
        "nonzero_params": cost.nonzero_params,
        "macs": cost.macs,
        "macs_length": recipe.length,
        "encoder_params": cost.encoder_params,
        "encoder_macs": cost.encoder_macs,
        "size_bytes": folder_size(folder),
        "restructured": not exported and hasattr(model.config, "quantization_config"),
        "target": report["target"],
        "achieved": report["achieved"],
        "latency": rows,
        "layers": notes.pop("layers", {}),
        "sensitivity": notes.pop("sensitivity", {}),
        "epochs": notes.pop("epochs", []),
        "events": notes.pop("events", []),
        "notes": notes,
        "predictions": found["predictions"],
        "warnings": report["warnings"],
        "cost": asdict(cost),
        "timed": timed_how(recipe),
    }


def timed_how(recipe: Recipe) -> dict[str, Any]:
    """What latencies depend on that is no part of the identity of a recipe: the machine, and what is asked of it."""
    measure = recipe.measure
    return {
        "cpu": cpu_name(),
        "instruction_sets": instruction_sets(),
        "threads": recipe.threads,
        **{f"measure.{name}": getattr(measure, name) for name in ("batch", "seconds")},
    }


def stage_seconds(folder: Path, stage: str) -> dict[str, float]:
    """Seconds of the stage in `folder` by operation, over all processes that worked on it, and their `total`."""
    seconds = {name: round(value, 3) for name, value in Journal(folder / JOURNAL).seconds(stage).items()}
    return {"total": round(sum(seconds.values()), 3), **seconds}


def served_shape(recipe: Recipe) -> dict[str, int | None]:
    """`batch` and `length` of what is timed."""
    return {
        "batch": recipe.measure.batch or (1 if recipe.task.modality == "text" else 128),
        "length": recipe.length,
    }


def step_serving(recipe: Recipe, context: Context) -> Serving:
    """What a target of latency speaks of: as the recipe says, or the precision that it comes to in the end."""
    measure = recipe.measure
    last = next((step for step in recipe.steps if step.technique == "quantize"), None)
    quantizes = last is not None and last.options.scheme != "none"
    served = "int8" if quantizes and measure.runtime == "openvino" else None
    return serving(
        context,
        last.options if quantizes else None,
        runtime=measure.runtime,
        precision=measure.precision or served,
        threads=recipe.threads,
        seconds=measure.seconds,
        **served_shape(recipe),
    )


def _latencies(model: Any, baseline: Path | None, recipe: Recipe, task: Task) -> list[dict]:
    dense = None if baseline is None else load_stage(baseline, task)[0]
    shape = served_shape(recipe)
    return latency_rows(
        model,
        dense,
        batch=sorted({1, shape["batch"]}),
        length=shape["length"],
        threads=recipe.threads,
        seconds=recipe.measure.seconds,
        progress=True,
    )


def _flat(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """The main split's metrics by their names, those of further splits as `split/metric`."""
    main, *others = metrics
    flat = dict(metrics[main])
    for split in others:
        flat.update({f"{split}/{name}": value for name, value in metrics[split].items()})
    return flat
