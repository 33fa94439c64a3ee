"""The last stage of every recipe as a file in the form of `evaluate.save`, for who collects results with `evaluate`.

`evaluate.save` itself stamps the time, the git commit and the interpreter's path of whoever writes the report, asks
git twice for every file, and fails where there is no git. Here the stamps are those of the run, so that the same runs
give the same files: when it ended, its versions of `evaluate` and Python, and null for what a run does not record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..journal import JOURNAL
from .effort import read_journal
from .reproduce import file_name
from .runs import FIGURES, Figure, Row, RunRecord, rows


COSTS = tuple(name for name in FIGURES if name not in ("metric", "delta", "seconds"))


def evaluate_records(records: Sequence[RunRecord]) -> dict[str, dict[str, Any]]:
    """What each recipe's file holds, by the recipe's name.

    Returns:
        `dict[str, dict]`: the task, the recipe and its steps, the metrics under the names that `evaluate` gives them
        and the costs, each as the mean over the seeds, with the standard deviation as `<name>_std`; `by_seed` has the
        numbers of every run.
    """
    return {row.run: _record(row) for row in rows(records) if row.last}


def save_evaluate_records(records: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Write one JSON file a recipe into `folder`, which must exist.

    Returns:
        `list[Path]`: the files, named after the recipes.
    """
    paths, taken = [], {"results"}  # a results.json would pass for a run
    for name, record in evaluate_records(records).items():
        stem, number = file_name(name), 2
        while stem.lower() in taken:  # some file systems take A and a for the same name
            stem, number = f"{file_name(name)}-{number}", number + 1
        taken.add(stem.lower())
        paths.append(folder / f"{stem}.json")
        paths[-1].write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return paths


def _record(row: Row) -> dict[str, Any]:
    members = sorted(row.members, key=lambda member: member[0].results.get("seed", 0))
    metrics = [record.results["stages"][index]["metrics"] for record, index in members]
    names = dict.fromkeys(name for found in metrics for name in found)
    figures = {name: Figure.of(found.get(name) for found in metrics) for name in names}
    numbers = {}
    for name, figure in (figures | {name: row.figures.get(name) for name in COSTS}).items():
        if figure is not None:
            numbers[name] = figure.mean
            numbers |= {f"{name}_std": figure.spread} if figure.spread is not None else {}
    return {
        **numbers,
        "task": row.task,
        "recipe": row.run,
        "stage": row.stage,
        "steps": row.techniques,
        "served": row.served,
        "by_seed": [_one(record.results, index) for record, index in members],
        **_stamps([record for record, _ in members]),
    }


def _one(results: Mapping[str, Any], index: int) -> dict[str, Any]:
    stage = results["stages"][index]
    costs = {key: stage[key] for key in ("params", "macs", "size_bytes")}
    return {**stage["metrics"], **costs, "seed": results.get("seed", 0)}


def _stamps(records: Sequence[RunRecord]) -> dict[str, Any]:
    environment = records[0].results.get("environment", {})
    ends = [event.get("time") or "" for record in records for event in read_journal(record.folder / JOURNAL, "run")]
    return {
        "_timestamp": max(ends, default="") or None,
        "_git_commit_hash": None,
        "_evaluate_version": environment.get("versions", {}).get("evaluate"),
        "_python_version": environment.get("python"),
        "_interpreter_path": None,
    }
