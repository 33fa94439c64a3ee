"""What each technique cost: the machine's time from the stages, people's time from the journals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..journal import HUMAN_KINDS, JOURNAL, Journal
from .runs import RunRecord
from .tables import OPERATIONS


@dataclass
class Effort:
    """Time spent on one technique, over all runs.

    Attributes:
        technique (`str`): a technique of a recipe, "baseline" for dense models, or "" for time given to none.
        stages (`int`): different stages made.
        machine (`dict[str, float]`): seconds by operation, a stage that several runs share counted once.
        human (`dict[str, float]`): minutes by kind.
        notes (`list[dict]`): the journal's lines behind `human`, in the order of their time.
    """

    technique: str
    stages: int = 0
    machine: dict[str, float] = field(default_factory=dict)
    human: dict[str, float] = field(default_factory=dict)
    notes: list[dict] = field(default_factory=list)

    @property
    def machine_seconds(self) -> float:
        return sum(self.machine.values())

    @property
    def human_minutes(self) -> float:
        return sum(self.human.values())


def efforts(records: Sequence[RunRecord], others: Iterable[Path] = ()) -> list[Effort]:
    """The time spent on each technique, in the order in which the runs come to them; `""` is last.

    Args:
        records (`Sequence[RunRecord]`): finished runs.
        others (`Iterable[Path]`, *optional*): folders of other runs, in which people may have noted their time too.
    """
    found: dict[str, Effort] = {}
    for technique, seconds in unique_stages(records):
        effort = found.setdefault(technique, Effort(technique))
        effort.stages += 1
        for name in OPERATIONS:
            effort.machine[name] = effort.machine.get(name, 0.0) + seconds.get(name, 0.0)
        other = seconds.get("total", 0.0) - sum(seconds.get(name, 0.0) for name in OPERATIONS)
        effort.machine["other"] = effort.machine.get("other", 0.0) + max(0.0, other)
    for event in human_events([*(record.folder for record in records), *others]):
        technique = event.get("technique") or ""
        effort = found.setdefault(technique, Effort(technique))
        kind = event.get("kind") if event.get("kind") in HUMAN_KINDS else "other"
        effort.human[kind] = effort.human.get(kind, 0.0) + event["minutes"]
        effort.notes.append(event)
    return sorted(found.values(), key=lambda effort: effort.technique == "")


def unique_stages(records: Iterable[RunRecord]) -> Iterable[tuple[str, dict[str, float]]]:
    """Technique and seconds of every stage, those with the same history once."""
    seen = set()
    for record in records:
        for stage in record.results["stages"]:
            key = stage.get("key") or (record.folder, stage["name"])
            if key in seen:
                continue
            seen.add(key)
            technique = "baseline" if stage["technique"] == "none" else stage["technique"]
            yield technique, stage.get("seconds", {})


def machine_seconds(records: Sequence[RunRecord]) -> tuple[float, float]:
    """Seconds of all different stages, and the sum of what each run would have taken alone."""
    together = sum(seconds.get("total", 0.0) for _, seconds in unique_stages(records))
    alone = sum(stage.get("seconds", {}).get("total", 0.0) for record in records for stage in record.results["stages"])
    return together, alone


def human_events(folders: Iterable[Path]) -> list[dict]:
    """What people added to the journals of runs and of the studies that these belong to, in the order of time."""
    journals = dict.fromkeys(
        folder / JOURNAL for run in folders for folder in (run, *studies_above(run)) if (folder / JOURNAL).is_file()
    )
    events = [event for path in journals for event in read_journal(path, "human") if event.get("minutes", 0) > 0]
    return sorted(events, key=lambda event: str(event.get("time")))


def read_journal(path: Path, operation: str) -> list[dict]:
    """The events of one operation; none if the journal cannot be read, for a report is made of what can be."""
    try:
        return Journal(path).events(operation)
    except OSError:
        return []


def studies_above(run: Path) -> list[Path]:
    """The folders above a run that are a study's; a run lies in `<study>/runs/<variant>/seed<seed>`."""
    return [folder for folder in list(run.absolute().parents)[:4] if (folder / "study.json").is_file()]
