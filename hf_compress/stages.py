"""The folder of a stage: save it, load it, measure what was loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .journal import Journal
from .measure import count, evaluate, folder_size, latency_rows
from .models import load_model
from .quantization import is_exported, load_exported
from .recipe import Recipe
from .storage import read_json
from .structure import structural_summary
from .tasks import Task


# what stands in a stage's folder beside the model
RECORDS = ("report.json", "measurement.json")


def save_stage(model: Any, processor: Any, folder: Path) -> None:
    """Save `model` (of torch or exported) with its processor into `folder`."""
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)


def load_stage(folder: Path, task: Task) -> tuple[Any, Any]:
    """The model of a stage, as plain `from_pretrained` gives it, and its processor."""
    if is_exported(folder):
        return load_exported(folder)
    return load_model(str(folder), task=task)


def copy_model(stage: Path, folder: Path) -> None:
    """Copy the model of a finished stage, without the records of the run."""
    for path in stage.iterdir():
        if path.name not in RECORDS and path.is_file():
            shutil.copyfile(path, folder / path.name)
