"""How runs went: what was done when, for how long, and what went wrong, as tables and lines of a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .effort import studies_above
from .markdown import inline, table
from .runs import RunRecord, recipes
from .tables import MISSING, human_bytes
from .timeline import Operation, Timeline, read_timeline
from .unfinished import study_rows
from .words import Words


MOST_TIMELINES = 30  # runs of which every operation is shown
MOST_LINES = 60  # of one list


@dataclass
class Went:
    """A run, finished or not: what it is called, what it belongs to and its timeline."""

    label: str
    recipe: str
    folder: Path
    timeline: Timeline


class Process:
    """The timelines of all runs, read once.

    Args:
        records (`Sequence[RunRecord]`): the finished runs.
        problems (`Mapping[str, str]`): the folders of the others, each with the reason.
        words ([`Words`]): of the language.
    """

    def __init__(self, records: Sequence[RunRecord], problems: Mapping[str, str], words: Words):
        self.words = words
        self.problems = problems
        self.runs: list[Went] = []
        self.makers: dict[str, str] = {}  # the run that made a stage, by the key of the stage
        self.stage_keys: dict[Path, dict[str, str]] = {}
        for name, members in recipes(records).items():
            for record in members:
                label = words("run_of", recipe=name, seed=record.results.get("seed", 0))
                went = Went(label, name, record.folder, read_timeline(record.folder))
                self.runs.append(went)
                keys = {s["name"]: s["key"] for s in record.results["stages"] if "key" in s}
                self.stage_keys[record.folder] = keys
                shared = went.timeline.shared
                for stage, key in keys.items():
                    if stage not in shared:
                        self.makers.setdefault(key, label)
        for folder in map(Path, problems):
            timeline = read_timeline(folder)
            if timeline.attempts:
                label = folder_label(folder)
                self.runs.append(Went(label, label, folder, timeline))

    def overview(self) -> str:
        """A row a recipe."""
        groups: dict[str, list[Went]] = {}
        for went in self.runs:
            groups.setdefault(went.recipe, []).append(went)
        return table(self.words.columns("process"), [_row(name, runs) for name, runs in groups.items()])

    def timelines(self) -> list[tuple[str, str]]:
        """Every run with the table of its operations; none where there are too many."""
        if len(self.runs) > MOST_TIMELINES:
            return []
        return [(inline(went.label), self._timeline(went)) for went in self.runs if went.timeline.attempts]

    def _timeline(self, went: Went) -> str:
        w, rows = self.words, []
        for number, attempt in enumerate(went.timeline.attempts, 1):
            for operation in attempt.operations:
                status = w("status." + operation.status, maker=self._maker(went, operation.stage))
                rows.append([number, *_cells(operation, w), status])
            if not attempt.operations:
                status = w(f"status.{attempt.status}")
                cells = (MISSING, w("operation.nothing"), "", "", "")
                rows.append([number, _time(attempt.start), *cells, status])
        return table(w.columns("timeline"), rows)

    def _maker(self, went: Went, stage: str) -> str:
        key = self.stage_keys.get(went.folder, {}).get(stage)
        return self.makers.get(key, self.words("elsewhere"))

    def errors(self) -> list[str]:
        """What failed or was interrupted in the journals, and journals that say nothing."""
        w, lines = self.words, []
        for went in self.runs:
            run, timeline = inline(went.label), went.timeline
            if timeline.problem in ("missing", "empty"):
                lines.append(w(f"journal.{timeline.problem}", run=run))
            elif timeline.problem:
                lines.append(w("journal.unreadable", run=run, reason=inline(timeline.problem)))
            if timeline.interruptions:
                lines.append(w("error.interrupted", run=run, n=timeline.interruptions))
            lines += [
                w(
                    "error.failed",
                    run=run,
                    stage=inline(operation.stage or MISSING),
                    operation=inline(w.name("operation", operation.name)),
                    reason=inline(operation.error),
                )
                for operation in timeline.operations
                if operation.error
            ]
        return shortened(lines, w)

    def without_results(self) -> list[str]:
        """The runs that failed, are not finished or could not be read, each with the reason."""
        lines = []
        for folder, reason in self.problems.items():
            label = folder_label(Path(folder))
            text = reason.removeprefix(f"{folder}: ").replace(folder, label)
            lines.append(f"{inline(label)}{self.words('colon')}{inline(text)}")
        return shortened(lines, self.words)

    def stale(self) -> list[str]:
        """Finished runs that failed when they were run again, after a change of their study."""
        labels = {went.folder.absolute(): went.label for went in self.runs if str(went.folder) not in self.problems}
        studies = dict.fromkeys(study for folder in labels for study in studies_above(folder))
        return [
            self.words("warning.stale", run=inline(labels[study / row["folder"]]), reason=inline(row["error"]))
            for study in studies
            for row in study_rows(study)
            if row["status"] == "failed" and study / row["folder"] in labels
        ]


def folder_label(folder: Path) -> str:
    """A run's folder without the way to it: `prune/seed0` in a study, else its own name."""
    for study in studies_above(folder):
        if folder.absolute().is_relative_to(study / "runs"):
            return folder.absolute().relative_to(study / "runs").as_posix()
    return folder.absolute().name


def shortened(lines: list[str], words: Words) -> list[str]:
    """At most `MOST_LINES` of a list, and how many more there are."""
    left = len(lines) - MOST_LINES
    return lines if left <= 0 else [*lines[:MOST_LINES], words("problems.more", n=left)]


def _row(name: str, runs: Sequence[Went]) -> list[object]:
    timelines = [went.timeline for went in runs]
    attempts = [attempt for timeline in timelines for attempt in timeline.attempts]
    operations = [operation for timeline in timelines for operation in timeline.operations]
    peak = max((operation.peak_bytes for operation in operations), default=0)
    return [
        name,
        len(runs),
        _time(min(filter(None, (attempt.start for attempt in attempts)), default="")) or MISSING,
        _time(max((attempt.end for attempt in attempts), default="")) or MISSING,
        sum(timeline.interruptions for timeline in timelines),
        sum(timeline.failures for timeline in timelines),
        sum(len(timeline.shared) for timeline in timelines),
        f"{sum(operation.seconds for operation in operations):.1f}",
        human_bytes(peak) if peak else MISSING,
    ]


def _cells(operation: Operation, words: Words) -> list[object]:
    return [
        _time(operation.start),
        operation.stage or MISSING,
        words.name("operation", operation.name),
        operation.times,
        f"{operation.seconds:.1f}" if operation.times or operation.seconds else MISSING,
        human_bytes(operation.peak_bytes) if operation.peak_bytes else MISSING,
    ]


def _time(stamp: str) -> str:
    """`2026-11-25T11:42:44.540+00:00` -> `2026-11-25 11:42:44`."""
    return stamp[:19].replace("T", " ")
