"""The record of every operation of a run: one JSON line an event, only ever appended while the run is kept.

An operation writes a line when it starts and one when it ends, so that what a killed process was doing stays visible.
A training also writes one whenever it saves a checkpoint, with the status "saved" and its time so far.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from .errors import CompressionError
from .registry import TECHNIQUES, nearest
from .results import is_number
from .storage import write_text


JOURNAL = "journal.jsonl"  # its name in the folder of a run, of a stage and of a study
TEXTS = ("time", "operation", "stage", "status", "kind", "technique", "note", "notes")
NUMBERS = ("wall_seconds", "cpu_seconds", "peak_bytes", "minutes")
HUMAN_KINDS = ("reading", "coding", "running", "writing", "other")
NOUNS = {  # how people call the techniques of a recipe
    "fine-tuning": "finetune",
    "finetuning": "finetune",
    "pruning": "prune",
    "factorization": "factorize",
    "low-rank": "factorize",
    "distillation": "distill",
    "quantization": "quantize",
}


class Journal:
    """Append-only journal at `path`.

    Args:
        path (`str` or `os.PathLike`): the file, `journal.jsonl` in a run folder.
        enabled (`bool`, *optional*, defaults to `True`): `False` on the processes that must not write.

    Attributes:
        copy (`Path`, *optional*): a second file that gets every line too, while it is set.
    """

    def __init__(self, path: str | os.PathLike, enabled: bool = True):
        self.path = Path(path)
        self.enabled = enabled
        self.copy: Path | None = None

    def append(self, **event) -> None:
        """Add one event; `time` is filled in."""
        if not self.enabled:
            return
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event}, ensure_ascii=False)
        for path in filter(None, (self.path, self.copy)):
            _append(path, line)

    @contextmanager
    def operation(self, operation: str, stage: str | None = None, **notes) -> Iterator[dict]:
        """Record the block as `operation` of `stage`: what a [`Clock`] reads of it, status, notes.

        Yields:
            `dict`: the notes, which the block may add to.
        """
        self.append(operation=operation, stage=stage, status="started")
        clock = Clock()
        try:
            with clock:
                yield notes
        except BaseException as error:
            status = "failed" if isinstance(error, Exception) else "interrupted"  # by Ctrl-C, or a signal
            failure = {**notes, "error": f"{type(error).__name__}: {error}"}
            try:
                self.append(operation=operation, stage=stage, status=status, **clock.read(), notes=failure)
            except OSError as unwritten:  # on a full disk: must not hide why the block failed
                error.add_note(f"{self.path} does not have this failure: {unwritten}")
            raise
        self.append(operation=operation, stage=stage, status="done", **clock.read(), notes=notes)

    def add_human(self, minutes: float, kind: str, technique: str | None = None, note: str = "") -> None:
        """Add time that a person spent.

        Args:
            minutes (`float`): more than 0.
            kind (`str`): one of `HUMAN_KINDS`.
            technique (`str`, *optional*): what it was spent on, "prune" or "pruning" and so on.

        Raises:
            `CompressionError`: for minutes that are no time, and for another kind or technique.
        """
        if not 0 < minutes < float("inf"):
            raise CompressionError(f"minutes: got {minutes!r}; give a number of minutes above 0.")
        if kind not in HUMAN_KINDS:
            raise CompressionError(f"kind: got {kind!r}; allowed are {', '.join(HUMAN_KINDS)}.")
        technique = NOUNS.get(technique, technique)
        if technique is not None and technique not in TECHNIQUES:
            raise CompressionError(
                f"technique: got {technique!r}{nearest(technique, (*TECHNIQUES, *NOUNS))}; allowed are "
                f"{', '.join(TECHNIQUES)} and {', '.join(NOUNS)}."
            )
        self.append(operation="human", status="done", minutes=minutes, kind=kind, technique=technique, note=note)

    def events(self, operation: str | None = None) -> list[dict]:
        """All whole lines; one that a killed process left unfinished is skipped, and so is a field of a wrong type.

        Args:
            operation (`str`, *optional*): only those of this operation, without parsing all of the others.
        """
        if not self.path.exists():
            return []
        events = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            if operation is not None and operation not in line:
                continue
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            found = event.get("operation") if isinstance(event, dict) else None
            if isinstance(found, str) and operation in (None, found):
                events.append({key: value for key, value in event.items() if _fits(key, value)})
        return events

    def keep(self, operation: str) -> None:
        """Drop all events but those of `operation`, for a run that is begun anew."""
        if self.path.exists():
            lines = [json.dumps(event, ensure_ascii=False) + "\n" for event in self.events(operation)]
            write_text(self.path, "".join(lines))

    def seconds(self, stage: str) -> dict[str, float]:
        """Wall seconds of the operations of `stage`, summed by operation over all processes that ran it; of one that
        was killed, those until its last checkpoint."""
        totals: dict[str, float] = {}
        saved: dict[str, float] = {}  # until the last checkpoint, while the operation has not ended

        def count(name: str, seconds: float) -> None:
            totals[name] = totals.get(name, 0.0) + seconds

        for event in self.events():
            name, seconds = event["operation"], event.get("wall_seconds")
            if event.get("stage") != stage:
                continue
            if event.get("status") == "started" and name in saved:
                count(name, saved.pop(name))
            elif seconds is not None and event.get("status") == "saved":
                saved[name] = seconds
            elif seconds is not None:
                count(name, seconds)
                saved.pop(name, None)
        for name, seconds in saved.items():
            count(name, seconds)
        return totals


def _fits(key: str, value) -> bool:
    if key in NUMBERS:
        return is_number(value) and value >= 0
    return value is None or isinstance(value, dict if key == "notes" else str) or key not in TEXTS


class Clock:
    """Wall time, CPU time (with child processes) and peak memory of a `with` block.

    Blocks may be nested. Every second counts for the innermost of the blocks that are open, so that the times of all
    add up to that of the outermost; what an inner one reaches in memory counts for the outer one too.
    """

    _open: list[Clock] = []
    _counted = (0.0, 0.0)  # wall and CPU time until which all is counted

    def __init__(self):
        self._wall = self._cpu = 0.0
        self._peak = PeakMemory()

    def __enter__(self) -> Clock:
        self._count()
        self._open.append(self)
        self._peak.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self._peak.__exit__()
        self._count()
        self._open.remove(self)

    @classmethod
    def _count(cls) -> None:
        wall, cpu = time.perf_counter(), _cpu_seconds()
        if cls._open:
            cls._open[-1]._wall += wall - cls._counted[0]
            cls._open[-1]._cpu += cpu - cls._counted[1]
        cls._counted = wall, cpu

    def read(self) -> dict[str, float | int]:
        """What the block came to, once it has ended."""
        return {
            "wall_seconds": round(self._wall, 3),
            "cpu_seconds": round(self._cpu, 3),
            "peak_bytes": self._peak.bytes,
        }


class PeakMemory:
    """The peak resident memory of a `with` block, in bytes.

    Blocks may be nested: what an inner one reaches counts for the outer one too, though the system has only one mark
    to reset. Where it cannot be reset (outside Linux), `bytes` is the peak since the process started.

    ```python
    with PeakMemory() as peak:
        model(**batch)
    print(peak.bytes)
    ```
    """

    _open: list[PeakMemory] = []

    def __init__(self):
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        for outer in self._open:
            outer.bytes = max(outer.bytes, peak_memory())
        self._open.append(self)
        reset_peak_memory()
        return self

    def __exit__(self, *_) -> None:
        self.bytes = max(self.bytes, peak_memory())
        self._open.remove(self)
        for outer in self._open:
            outer.bytes = max(outer.bytes, self.bytes)


def peak_memory() -> int:
    """Peak resident memory of this process in bytes, since `reset_peak_memory` where the system can reset it."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: the peak since the process started is all there is
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kilobytes elsewhere


def reset_peak_memory() -> None:
    """Let `peak_memory` count from now on. Systems without `/proc/self/clear_refs` keep counting from the start."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # not Linux, or not permitted in this container


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _append(path: Path, line: str) -> None:
    with open(path, "ab+") as file:
        # A line that a killed process left unfinished must not swallow this one.
        if file.tell() and not _ends_with_newline(file):
            line = "\n" + line
        file.write(line.encode(errors="backslashreplace") + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_with_newline(file) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
