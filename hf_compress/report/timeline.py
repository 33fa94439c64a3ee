"""What a run did and when, from its journal: attempts, and in each the operations on every stage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..journal import JOURNAL, Journal


@dataclass
class Operation:
    """One operation on one stage, in one attempt.

    Attributes:
        name (`str`), stage (`str`): such as "train" of "02_distill"; the stage is "" for what belongs to none.
        start (`str`): the time of its first line.
        times (`int`): how often it ended; a stage is loaded once to be changed and once to be measured.
        seconds (`float`): wall time of all of them; of one that was killed, until its last checkpoint.
        peak_bytes (`int`): the highest peak memory; 0 if the journal does not say.
        status (`str`): "done", "failed", "interrupted" (stopped, or never ended) or "shared" (another run's stage
            was taken).
        error (`str`): why it failed; "" too if an operation inside it says so.
    """

    name: str
    stage: str
    start: str
    times: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    status: str = "done"
    error: str = ""
    open: int = field(default=0, repr=False)
    saved: float = field(default=0.0, repr=False)  # seconds until its last checkpoint, while it has not ended


@dataclass
class Attempt:
    """One process that worked on the run, until it ended, failed or was killed.

    Attributes:
        start (`str`), end (`str`): the times of its first and its last line.
        status (`str`): "done", "failed" or "interrupted".
        operations (`list[Operation]`): "run" is one of them only if it failed for a reason that no other has.
    """

    start: str
    end: str = ""
    status: str = "interrupted"
    operations: list[Operation] = field(default_factory=list)


@dataclass
class Timeline:
    """All attempts of a run; `problem` says why there is nothing to show of its journal, and is "" otherwise."""

    attempts: list[Attempt] = field(default_factory=list)
    problem: str = ""  # "missing", "empty", or the system's reason

    @property
    def operations(self) -> list[Operation]:
        return [operation for attempt in self.attempts for operation in attempt.operations]

    @property
    def shared(self) -> set[str]:
        """The stages that another run of the study had made."""
        return {operation.stage for operation in self.operations if operation.status == "shared"}

    @property
    def interruptions(self) -> int:
        return sum(attempt.status == "interrupted" for attempt in self.attempts)

    @property
    def failures(self) -> int:
        return sum(attempt.status == "failed" for attempt in self.attempts)


def read_timeline(run: Path) -> Timeline:
    """The timeline of a run folder; a journal that is missing or cannot be read gives one with a `problem`."""
    path = run / JOURNAL
    if not path.exists():
        return Timeline(problem="missing")
    if not path.is_file():
        return Timeline(problem=f"{JOURNAL} is no file")
    try:
        found = attempts(Journal(path).events())
    except OSError as error:
        return Timeline(problem=str(error.strerror))
    return Timeline(found, "" if found else "empty")


def attempts(events: Iterable[dict]) -> list[Attempt]:
    """The events of a journal in order, with what people added left out."""
    found: list[Attempt] = []
    for event in events:
        name, status, time = event["operation"], event.get("status"), event.get("time") or ""
        if name == "human":
            continue
        begins = name == "run" and status == "started"
        if begins or not found:
            found.append(Attempt(time))
        attempt = found[-1]
        attempt.end = time
        if name != "run":
            _add(attempt, event, name, status, time)
        elif status == "done":
            attempt.status = "done"
        elif status == "failed":
            attempt.status = "done" if attempt.status == "done" else "failed"  # its results are there
            if not _tells(attempt, _error(event)):
                _add(attempt, event, name, status, time)
    for attempt in found:
        _close(attempt)
    return found


def _add(attempt: Attempt, event: dict, name: str, status: str | None, time: str) -> None:
    stage = event.get("stage") or ""
    known = (operation for operation in attempt.operations if (operation.name, operation.stage) == (name, stage))
    operation = next(known, None)
    if operation is None:
        operation = Operation(name, stage, time)
        attempt.operations.append(operation)
    if status == "started":
        operation.open += 1
        return
    if status == "saved":
        operation.saved = event.get("wall_seconds", 0.0)
        return
    operation.open -= 1
    operation.times += 1
    operation.saved = 0.0
    operation.seconds += event.get("wall_seconds", 0.0)
    operation.peak_bytes = max(operation.peak_bytes, event.get("peak_bytes", 0))
    if name == "shared":
        operation.status = "shared"
    elif status == "interrupted":
        operation.status = "interrupted"
    elif status == "failed":
        operation.status = "failed"
        if not _tells(attempt, _error(event)):
            operation.error = _error(event)


def _error(event: dict) -> str:
    return str((event.get("notes") or {}).get("error", ""))


def _tells(attempt: Attempt, error: str) -> bool:
    """Whether an operation has the error already, of those that it passes through the innermost."""
    return any(operation.error == error for operation in attempt.operations)


def _close(attempt: Attempt) -> None:
    for operation in attempt.operations:
        operation.seconds += operation.saved
        if operation.open > 0:
            # an error ends what it passes through, and not every operation writes it down
            broken = any(other.status == "failed" for other in attempt.operations)
            operation.status = "failed" if broken else "interrupted"
    if attempt.status != "done" and any(operation.status == "failed" for operation in attempt.operations):
        attempt.status = "failed"
