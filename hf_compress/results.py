"""`results.json`: what a run found, one record a stage. Tables, plots, cards and documents are made from it alone."""

from __future__ import annotations

import os
import reprlib
from pathlib import Path
from typing import Any

from .errors import CompressionError
from .storage import read_json, write_json


FORMAT_VERSION = 1
STAGE_KEYS = ("name", "technique", "method", "metrics", "params", "macs", "size_bytes")
DEEPEST = 30  # nested values; a recipe has about six


def is_number(value: Any) -> bool:
    """Whether sums, ratios and tables can be made of `value`: a finite number of at most thirty digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _is_plain(value: Any, depth: int = DEEPEST) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_plain(item, depth - 1) for item in inner)


_ANYTHING = f"at most {DEEPEST} levels deep"
_COUNT, _TIME = "a number of at least 0", "a time above 0"
_WHOLE, _WHOLE_OR_NULL, _TEXT_OR_NULL = "a whole number", "a whole number or null", "text or null"
_KINDS = {
    "text": lambda value: isinstance(value, str),
    _TEXT_OR_NULL: lambda value: value is None or isinstance(value, str),
    "a number": is_number,
    "true or false": lambda value: isinstance(value, bool),
    _COUNT: lambda value: is_number(value) and value >= 0,
    _TIME: lambda value: is_number(value) and value > 1e-12,
    _WHOLE: lambda value: isinstance(value, int) and is_number(value),
    _WHOLE_OR_NULL: lambda value: value is None or isinstance(value, int) and is_number(value),
    _ANYTHING: _is_plain,
}
_TIMED = {
    "runtime": "text",
    "precision": "text",
    "batch": _WHOLE,
    "p50": _TIME,
    "p90": _TIME,
    "role?": "text",
    "rest?": "text",
    "length?": _WHOLE_OR_NULL,
    "threads?": _WHOLE_OR_NULL,
    "samples?": _WHOLE_OR_NULL,
}
_SKIPPED = {"runtime": "text", "precision": "text", "skipped?": "text"}
_STAGE = {
    "name": "text",
    "technique": "text",
    "method": "text",
    "key?": "text",
    "params": _COUNT,
    "macs": _COUNT,
    "macs_length?": _WHOLE_OR_NULL,
    "size_bytes": _COUNT,
    "restructured?": "true or false",
    "metrics": {"*": "a number"},
    "predictions?": {"*": {"examples?": _WHOLE}},
    "latency?": [lambda row: _TIMED if isinstance(row, dict) and "p50" in row else _SKIPPED],
    "seconds?": {"*": _COUNT},
    "warnings?": ["text"],
}
_ENVIRONMENT = {
    "cpu?": _TEXT_OR_NULL,
    "os?": _TEXT_OR_NULL,
    "python?": _TEXT_OR_NULL,
    "threads?": _WHOLE_OR_NULL,
    "usable_cores?": _WHOLE_OR_NULL,
    "memory_bytes?": _WHOLE_OR_NULL,
    "instruction_sets?": ["text"],
    "versions?": {"*": _TEXT_OR_NULL},
}
_TASK = {
    "name": "text",
    "main_metric": "text",
    "modality?": "text",
    "hub_dataset?": _TEXT_OR_NULL,
    "hub_config?": _TEXT_OR_NULL,
    "eval_split?": _TEXT_OR_NULL,
}
_RECIPE = {
    "task?": {"*": _ANYTHING},
    "model?": {"name_or_path?": "text", "*": _ANYTHING},
    "steps?": [{"*": {"*": _ANYTHING}}],
    "*": _ANYTHING,
}
# What readers rely on: a kind, a list of one shape, a mapping ("?" may be missing, "*" is every other key; without it
# other keys may be anything), or a function that gives the shape for a value.
_SHAPE = {
    "name?": "text",
    "seed?": _WHOLE,
    "origin?": "text",
    "recipe": _RECIPE,
    "environment?": _ENVIRONMENT,
    "task": _TASK,
    "stages": [_STAGE],
}


def new_results(recipe: dict, environment: dict, task: dict) -> dict:
    """An empty record for `recipe` (resolved), all JSON-plain."""
    return {
        "format_version": FORMAT_VERSION,
        "name": recipe["name"],
        "recipe": recipe,
        "seed": recipe["seed"],
        "environment": environment,
        "task": task,
        "stages": [],
    }


def save_results(results: dict, path: str | os.PathLike) -> None:
    """Check and write `results`, whole or not at all."""
    check_results(results, str(path))
    write_json(path, results)


def load_results(path: str | os.PathLike) -> dict:
    """Read `results.json`, given itself or its run folder.

    Raises:
        `CompressionError`: if it is missing, truncated, of a newer format, or lacks what a reader needs, or has it in
            another type; the message names the key by its path.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "results.json"
    results = read_json(path)
    check_results(results, str(path))
    # not before writing too: what hours of computing found is better written than lost
    if found := _fault(results, _SHAPE):
        raise CompressionError(f"{path}: {found[0]}: {found[1]}; it was edited, or written by another program.")
    return results


def check_results(results, where: str) -> None:
    """Refuse a record that a report could not be made from; the message names `where` and the key."""
    if not isinstance(results, dict) or "format_version" not in results:
        raise CompressionError(f"{where}: this is no results.json of hf_compress (no format_version).")
    version = results["format_version"]
    if not isinstance(version, int) or version < 1 or version > FORMAT_VERSION:
        raise CompressionError(
            f"{where}: format_version is {version!r}, and this release reads 1 to {FORMAT_VERSION}; "
            "upgrade hf_compress."
        )
    stages = results.get("stages")
    if not isinstance(stages, list) or not isinstance(results.get("recipe"), dict):
        raise CompressionError(f"{where}: 'stages' must be a list and 'recipe' a mapping.")
    for index, stage in enumerate(stages):
        missing = [key for key in STAGE_KEYS if not isinstance(stage, dict) or key not in stage]
        if missing:
            raise CompressionError(f"{where}: stages.{index} lacks {', '.join(missing)}.")


def _fault(value: Any, shape: Any) -> tuple[str, str] | None:
    """The path of the first thing in `value` that is not of `shape`, and what is wrong; `None` if all is well."""
    if callable(shape):
        shape = shape(value)
    if isinstance(shape, str):
        return None if _KINDS[shape](value) else ("", f"got {reprlib.repr(value)}, must be {shape}")
    if not isinstance(value, type(shape)):
        kind = "a list" if isinstance(shape, list) else "a mapping"
        return "", f"got {reprlib.repr(value)}, must be {kind}"
    if isinstance(shape, list):
        parts = ((index, item, shape[0]) for index, item in enumerate(value))
    else:
        missing = next((key for key in shape if key not in value and key[-1] not in "?*"), None)
        if missing is not None:
            return missing, "this key is missing"
        parts = (
            (key, item, inner)
            for key, item in value.items()
            if (inner := shape.get(key, shape.get(f"{key}?", shape.get("*"))))
        )
    for key, item, inner in parts:
        if found := _fault(item, inner):
            return f"{key}.{found[0]}".rstrip("."), found[1]
    return None


def latency_row(
    stage: dict, runtime: str, precision: str, batch: int | None = None, role: str = "stage"
) -> dict | None:
    """The latency row of `stage` with these settings, or `None`. `role` is "stage" or "baseline" (timed beside it)."""
    for row in stage.get("latency", []):
        if (
            row.get("runtime") == runtime
            and row.get("precision") == precision
            and row.get("role", "stage") == role
            and batch in (None, row.get("batch"))
            and "p50" in row
        ):
            return row
    return None
