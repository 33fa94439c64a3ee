"""`results.json`: what a run found, one record a stage. Tables, plots, cards and documents are made from it alone."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import CompressionError
from .storage import read_json, write_json


FORMAT_VERSION = 1
STAGE_KEYS = ("name", "technique", "method", "metrics", "params", "macs", "size_bytes")


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
        `CompressionError`: if it is missing, truncated, of a newer format, or lacks what a reader needs.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "results.json"
    results = read_json(path)
    check_results(results, str(path))
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
