"""Carry out a study: every run in a process of its own, stages in common made once, failures kept and gone past."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import CompressionError, RecipeError
from .journal import JOURNAL, Journal
from .recipe import Recipe, load_recipe
from .runner import Runner, resolved
from .storage import read_json, write_json
from .store import StageStore
from .study import Study, StudyRun


logger = logging.getLogger(__name__)

LOG = "log.txt"


def run_study(study: Study, jobs: int = 1) -> dict:
    """Run what of a study is missing.

    Args:
        study ([`Study`]): from [`load_study`].
        jobs (`int`, *optional*, defaults to 1): runs side by side. Neither metrics nor timings depend on it: threads
            are those of the recipe, and timed sections take turns. With several, give `threads` in the recipe, at
            most the cores divided by the jobs.

    Returns:
        `dict`: the content of `study.json`: `name` and `runs`, each with `variant`, `seed`, `folder`, `status` (one of
        "done", "failed" and "missing") and, of a failed one, its `error`.

    Raises:
        `CompressionError`: if another process works on the study, or this one is one of several of a launcher.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CompressionError("A study starts its processes itself; launch it with one process, and give --jobs.")
    if jobs < 1:
        raise CompressionError(f"jobs: got {jobs}; give at least 1.")
    study.output_dir.mkdir(parents=True, exist_ok=True)
    with _only_one(study.output_dir):
        statuses = _known(study)
        _save(study, statuses)
        for run, error in _outcomes(study.runs, study.output_dir / "stages", jobs):
            statuses[run.name] = "done" if error is None else error
            logger.info("%s: %s", run.name, "done" if error is None else f"failed: {error}")
            _save(study, statuses)
    return read_json(study.output_dir / "study.json")


def _known(study: Study) -> dict[str, str]:
    """The status of every run, or its error, as an earlier call left it."""
    path = study.output_dir / "study.json"
    rows = read_json(path)["runs"] if path.exists() else []
    known = {row["folder"].removeprefix("runs/"): row.get("error", row["status"]) for row in rows}
    statuses = {run.name: known.get(run.name, "missing") for run in study.runs}
    for run in study.runs:
        if statuses[run.name] == "missing" and (Path(run.recipe.output_dir) / "results.json").exists():
            statuses[run.name] = "done"  # the call ended between the two
    return statuses


def _save(study: Study, statuses: dict[str, str]) -> None:
    rows = []
    for run in study.runs:
        status = statuses[run.name]
        row = {"variant": run.variant, "seed": run.seed, "folder": f"runs/{run.name}"}
        row |= {"status": status} if status in ("done", "missing") else {"status": "failed", "error": status}
        rows.append(row)
    write_json(study.output_dir / "study.json", {"format_version": 1, "name": study.name, "runs": rows})


def _outcomes(runs: list[StudyRun], store: Path, jobs: int) -> Iterator[tuple[StudyRun, str | None]]:
    """Each run as it ends, with its error or `None`; at most `jobs` at a time, started in their order."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_compress.runner"])  # the imports, which take longest, are made once
    waiting, working = list(reversed(runs)), {}
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                run = waiting.pop()
                folder = Path(run.recipe.output_dir)
                _drop_unfinished_other(run.recipe, folder)
                folder.mkdir(parents=True, exist_ok=True)
                process = context.Process(target=_run_one, args=(run.recipe, store, folder, jobs > 1))
                process.start()
                working[process.sentinel] = (process, run)
            for sentinel in wait(list(working)):
                process, run = working.pop(sentinel)
                process.join()
                yield run, _error_of(run, process.exitcode)
    finally:
        for process, _ in working.values():
            process.kill()


def _drop_unfinished_other(recipe: Recipe, folder: Path) -> None:
    """Remove a run that never finished, of a variant that has been changed since; its stages are in the store, and the
    time that people added to its journal stays.

    A finished one stays, and so does one whose recipe cannot be read; the run is refused.
    """
    path = folder / "recipe.yaml"
    if not path.exists() or (folder / "results.json").exists():
        return
    try:
        other = load_recipe(path)
    except RecipeError:
        return
    if other.identity() == resolved(recipe).identity():
        return
    journal = Journal(folder / JOURNAL)
    journal.keep("human")
    for entry in sorted(set(folder.iterdir()) - {journal.path, path}) + [path]:  # the recipe says whose the others are
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _error_of(run: StudyRun, exitcode: int) -> str | None:
    if exitcode == 0:
        return None
    path = Path(run.recipe.output_dir) / "error.json"
    if exitcode == 1 and path.is_file():
        return read_json(path)["error"]
    return f"its process ended with the exit code {exitcode} (killed, or out of memory); see {LOG}"


def _run_one(recipe: Recipe, store: Path, folder: Path, quiet: bool) -> None:
    """In the child: run the recipe; its error goes into `error.json`, and with `quiet` all it prints into a log."""
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    (folder / "error.json").unlink(missing_ok=True)
    if quiet:
        log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("hf_compress").setLevel(logging.INFO)
    try:
        from . import load_methods

        load_methods()
        Runner(recipe, store=StageStore(store)).run()
    except Exception as error:
        if not isinstance(error, CompressionError):
            traceback.print_exc()
        write_json(folder / "error.json", {"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


def _end_with_the_study() -> None:
    """In the child: end at once when the study is killed, so that the same command can go on where it stood."""
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CompressionError(f"{folder}: another process works on this study; wait for it.") from None
    try:
        yield
    finally:
        lock.release()
