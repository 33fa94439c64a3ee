"""Where runs lie, and those among them that have no results: failed, not finished, never begun."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import CompressionError
from ..journal import JOURNAL, Journal
from ..storage import read_json


OWN = {"stages", "model", "plots"}  # the folders of a run or a study in which no other run lies
STATUSES = ("done", "failed", "missing")


def walk(paths: Iterable[str | Path]) -> Iterator[tuple[Path, set[str]]]:
    """Every folder in and under `paths` once, in order, with the names in it. Links to folders are not followed.

    Raises:
        `CompressionError`: for a path that does not exist.
    """
    found: dict[Path, tuple[Path, set[str]]] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise CompressionError(f"{path}: there is no such folder; give run folders, or folders of them.")
        if path.is_file():
            found.setdefault(path.parent.resolve(), (path.parent, {path.name}))
            continue
        for folder, folders, files in os.walk(path):
            names = {*folders, *files}
            if names & {"results.json", "recipe.yaml", "study.json"}:
                folders[:] = [name for name in folders if name not in OWN]
            found[Path(os.path.realpath(folder))] = (Path(folder), names)
    yield from sorted(found.values(), key=lambda pair: pair[0])


def unfinished(paths: Iterable[str | Path]) -> dict[str, str]:
    """The runs under `paths` that have no `results.json`, by their folders, each with the reason."""
    reasons = {}
    for folder, names in walk(paths):
        for row in study_rows(folder) if "study.json" in names else ():
            place = folder / row["folder"]
            if row["status"] != "done" and not (place / "results.json").exists():
                reasons[str(place)] = _reason(place, row)
        if {"recipe.yaml", "journal.jsonl"} <= names and "results.json" not in names:
            reasons.setdefault(str(folder), _reason(folder, {}))
    return reasons


def study_rows(study: Path) -> list[dict[str, str]]:
    """The runs that the `study.json` in `study` names: `folder`, `status` and, of a failed one, `error`."""
    try:
        value = read_json(study / "study.json")
    except CompressionError:
        return []
    rows = value.get("runs") if isinstance(value, dict) else None
    return [
        {**row, "error": str(row.get("error", ""))}
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, dict) and isinstance(row.get("folder"), str) and row.get("status") in STATUSES
    ]


def _reason(folder: Path, row: dict[str, str]) -> str:
    error = row.get("error") or _error(folder)
    if error:
        return f"{folder}: the run failed: {error}"
    if not folder.is_dir():
        return f"{folder}: the run has not begun; run the study again and it is made."
    return f"{folder}: the run is not finished; the same command again goes on with it."


def _error(folder: Path) -> str:
    """What ended a run: what its study keeps, or else its own journal."""
    path = folder / "error.json"
    if not path.is_file():
        journal = folder / JOURNAL
        attempts = Journal(journal).events("run") if journal.is_file() else []
        if not attempts or attempts[-1].get("status") != "failed":
            return ""
        return str(attempts[-1].get("notes", {}).get("error", ""))
    try:
        value = read_json(path)
    except CompressionError:
        return ""
    return str(value.get("error", "")) if isinstance(value, dict) else ""
