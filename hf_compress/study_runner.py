"""Carry out a study: every run in a process of its own, stages in common made once, failures kept and gone past."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path

from filelock import FileLock, Timeout

from .endings import GRACE, end_after, ending_cleanly
from .errors import CompressionError, DiskFullError, RecipeError
from .journal import JOURNAL, Journal
from .measurement.machine import usable_cores
from .plan import history, plan
from .preflight import resolved
from .recipe import Recipe, load_recipe
from .runner import Runner
from .storage import explain_full_disk, read_json, write_json
from .store import StageStore
from .study import Study, StudyRun


logger = logging.getLogger(__name__)

LOG, ERROR = "log.txt", "error.json"
FAILED, FULL_DISK = 1, 3  # exit codes of a run's process


def run_study(study: Study, jobs: int = 1) -> dict:
    """Run what of a study is missing.

    Args:
        study ([`Study`]): from [`load_study`].
        jobs (`int`, *optional*, defaults to 1): runs side by side. Neither metrics nor timings depend on it: threads
            are those of the recipe, and timed sections take turns. With several, give `threads` in the recipe, at
            most the cores divided by the jobs.

    Returns:
        `dict`: the content of `study.json`: `name` and `runs`, each with `variant`, `seed`, `folder`, `status` (one of
        "done", "failed" and "missing") and, of a failed one, its `error`; in the order of the study, behind finished
        runs with seeds that it no longer has.

    Raises:
        `CompressionError`: if another process works on the study, or this one is one of several of a launcher; a
            `DiskFullError` ends it where it stands, for the other runs would fail in the same way.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CompressionError("A study starts its processes itself; launch it with one process, and give --jobs.")
    if jobs < 1:
        raise CompressionError(f"jobs: got {jobs}; give at least 1.")
    study.output_dir.mkdir(parents=True, exist_ok=True)
    at_once = min(jobs, len(study.runs))
    if (wanted := at_once * max(resolved(run.recipe).threads for run in study.runs)) > usable_cores():
        logger.warning(
            "%d runs side by side want %d threads, and there are %d cores: they will take longer, and so will what is "
            "timed; give base.threads.",
            at_once,
            wanted,
            usable_cores(),
        )
    with _only_one(study.output_dir), explain_full_disk(study.output_dir):
        statuses, others = _known(study)
        _save(study, statuses, others)
        with closing(_outcomes(study.runs, study.output_dir / "stages", jobs)) as outcomes:
            for run, error in outcomes:
                statuses[run.name] = "done" if error is None else error
                logger.info("%s: %s", run.name, "done" if error is None else f"failed: {error}")
                _save(study, statuses, others)
    return read_json(study.output_dir / "study.json")


def _known(study: Study) -> tuple[dict[str, str], list[dict]]:
    """The status of every run, or its error, as an earlier call left it; and the rows of finished runs of the same
    variants, whose seeds this call does not have."""
    path = study.output_dir / "study.json"
    rows = read_json(path)["runs"] if path.exists() else []
    known = {row["folder"].removeprefix("runs/"): row.get("error", row["status"]) for row in rows}
    statuses = {run.name: known.get(run.name, "missing") for run in study.runs}
    for run in study.runs:
        if statuses[run.name] == "missing" and (Path(run.recipe.output_dir) / "results.json").exists():
            statuses[run.name] = "done"  # the call ended between the two
    variants = {run.variant for run in study.runs}
    others = [
        row for row in rows if row["variant"] in variants and row["folder"].removeprefix("runs/") not in statuses
    ]
    return statuses, [row for row in others if (study.output_dir / row["folder"] / "results.json").exists()]


def _save(study: Study, statuses: dict[str, str], others: list[dict]) -> None:
    rows = list(others)
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
                (folder / ERROR).unlink(missing_ok=True)
                process = context.Process(
                    target=_run_one, args=(run.recipe, store, folder, jobs > 1, dict(os.environ))
                )
                process.start()
                working[process.sentinel] = (process, run)
            for sentinel in wait(list(working)):
                process, run = working.pop(sentinel)
                process.join()
                yield run, _error_of(run, process.exitcode, quiet=jobs > 1)
    finally:
        for process, _ in working.values():
            process.terminate()
        for process, _ in working.values():
            process.join(GRACE)
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
        _tell_what_begins_anew(other, resolved(recipe), folder)
        return
    journal = Journal(folder / JOURNAL)
    journal.keep("human")
    for entry in sorted(set(folder.iterdir()) - {journal.path, path}) + [path]:  # the recipe says whose the others are
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _tell_what_begins_anew(other: Recipe, recipe: Recipe, folder: Path) -> None:
    """Warn where `recipe` shares no stage with `other`, which made a part of the same run: what either is measured at
    is part of what the store knows a stage by."""
    was, now = (history(one, stages := plan(one), len(stages) - 1) for one in (other, recipe))
    differences = [f"{key}: {was[key]}, now {now[key]}" for key in now if was[key] != now[key]]
    if differences:
        logger.warning("Stages of %s that are not whole begin anew: %s.", folder, "; ".join(differences))


def _error_of(run: StudyRun, exitcode: int, quiet: bool) -> str | None:
    if exitcode == 0:
        return None
    path = Path(run.recipe.output_dir) / ERROR
    error = read_json(path)["error"] if path.is_file() else None
    if exitcode == FULL_DISK:
        raise DiskFullError((error or f"{path.parent}: its disk is full.").removeprefix(f"{DiskFullError.__name__}: "))
    if exitcode == FAILED and error is not None:
        return error
    return (
        f"its process ended with the exit code {exitcode} (killed, or out of memory){f'; see {LOG}' if quiet else ''}"
    )


def _run_one(recipe: Recipe, store: Path, folder: Path, quiet: bool, environment: dict[str, str]) -> None:
    """In the child: run the recipe; its error goes into `error.json`, and with `quiet` all it prints into a log.

    It ends with the study that started it, so that the same command can go on at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the study's, which ends its processes
    os.environ.clear()
    # the server of processes has that of the first study; what libraries read when they are loaded stays so
    os.environ.update(environment)
    end_after(multiprocessing.parent_process().join)
    if quiet:
        log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("hf_compress").setLevel(logging.INFO)
    try:
        from . import load_methods

        load_methods()
        with ending_cleanly():
            Runner(recipe, store=StageStore(store)).run()
    except Exception as error:
        if not isinstance(error, CompressionError):
            traceback.print_exc()
        with suppress(OSError):  # of a full disk, where the exit code has to do
            write_json(folder / ERROR, {"error": f"{type(error).__name__}: {error}"})
        sys.exit(FULL_DISK if isinstance(error, DiskFullError) else FAILED)


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
