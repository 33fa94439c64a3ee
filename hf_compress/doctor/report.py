"""What was found, as text for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..measurement.machine import usable_memory
from .checks import Finding, free_bytes
from .timing import OPERATIONS, Estimate, StageEstimate


MARKS = {"ok": "+", "remote": "~", "note": "!", "missing": "x"}
BASIS = (
    "each step was tried here on the model for a moment, and what was timed is multiplied; int8 export and its "
    "calibration are not tried, but counted by rule"
)
NO_ESTIMATE = Estimate()


def resource_findings(estimate: Estimate, folder: Path) -> list[Finding]:
    """Whether the memory of the machine and the disk of `folder` hold what was estimated."""
    found = []
    (memory, available), needed = usable_memory(), estimate.peak_bytes
    if needed > available:
        state = "missing" if needed > memory else "note"
        detail = f"about {needed / 1e9:.1f} GB are needed at once, and {available / 1e9:.1f} are free"
        found.append(Finding("machine", "memory needed", state, detail))
    free = free_bytes(folder)
    if estimate.disk_bytes > free:
        detail = f"about {estimate.disk_bytes / 1e9:.1f} GB are written, and {free / 1e9:.1f} are free for {folder}"
        found.append(Finding("machine", "disk needed", "missing", detail))
    return found


def doctor_text(found: Sequence[Finding], estimate: Estimate = NO_ESTIMATE, why_not: str | None = None) -> str:
    """A line a finding, with what helps, those that are missing named at the end, and a line a stage."""
    lines, topic = [], None
    for finding in _gathered(found):
        if finding.topic != topic:
            topic = finding.topic
            lines.append(f"{topic}")
        lines.append(f"  {MARKS[finding.state]} {finding.name}: {finding.detail}")
        lines += [f"      {command}" for command in finding.remedy if finding.state != "ok"]
    if estimate.stages:
        lines += _time(estimate)
    elif why_not:
        lines.append(f"time\n  ! no estimate: {why_not}")
    missing = [finding.name for finding in found if finding.state == "missing"]
    lines.append(f"missing: {', '.join(missing)}" if missing else "nothing is missing")
    return "\n".join(lines) + "\n"


def doctor_json(found: Sequence[Finding], estimate: Estimate = NO_ESTIMATE, why_not: str | None = None) -> str:
    """All of it as one JSON object: `findings`, `stages`, `seconds`, `peak_bytes`, `disk_bytes`, `basis` and
    `no_estimate`, the reason why there is none."""
    there = bool(estimate.stages)
    content = {
        "findings": [finding.to_dict() for finding in found],
        "stages": [stage.to_dict() for stage in estimate.stages],
        "seconds": estimate.seconds if there else None,
        "peak_bytes": estimate.peak_bytes if there else None,
        "disk_bytes": estimate.disk_bytes if there else None,
        "basis": [BASIS, *estimate.basis],
        "no_estimate": why_not,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _gathered(found: Sequence[Finding]) -> list[Finding]:
    """The findings by topic; an extra that a recipe lacks is told once, and folders that are free in one line."""
    missing = {(finding.topic, finding.name) for finding in found if finding.state == "missing"}
    kept = [f for f in dict.fromkeys(found) if f.state == "missing" or (f.topic, f.name) not in missing]
    free = [finding for finding in kept if (finding.topic, finding.detail) == ("output", "free")]
    if len(free) > 1:
        kept = [finding for finding in kept if finding not in free]
        kept.append(Finding("output", f"{free[0].name} and {len(free) - 1} more", "ok", "free"))
    topics = list(dict.fromkeys(finding.topic for finding in kept))
    return sorted(kept, key=lambda finding: topics.index(finding.topic))


def _time(estimate: Estimate) -> list[str]:
    lines = ["time, an estimate", f"  {BASIS}", *(f"  {line}" for line in estimate.basis)]
    recipes: dict[str, list[StageEstimate]] = {}
    for stage in estimate.stages:
        recipes.setdefault(stage.recipe, []).append(stage)
    if len(recipes) == 1:
        lines += [_stage_line(stage) for stage in estimate.stages]
        width = 16
    else:
        width = max(map(len, recipes))
        lines += [_recipe_line(name, stages, width) for name, stages in recipes.items()]
    lines.append(
        f"    {'in all':<{width}} {duration(estimate.seconds):>9}   memory {estimate.peak_bytes / 1e9:.1f} GB"
    )
    return lines


def _recipe_line(name: str, stages: list[StageEstimate], width: int) -> str:
    """What a recipe of a study adds to those before it, over its seeds."""
    seconds = sum(stage.seconds for stage in stages if not stage.done)
    named = ", ".join(dict.fromkeys(stage.stage for stage in stages))
    seeds = len({stage.seed for stage in stages})
    return f"    {name:<{width}} {duration(seconds):>9}   {named}" + (f", {seeds} seeds" if seeds > 1 else "")


def _stage_line(stage: StageEstimate) -> str:
    if stage.done:
        return f"    {stage.stage:<16} {'done':>9}"
    shown = [f"{name} {duration(getattr(stage, name))}" for name in OPERATIONS if getattr(stage, name) >= 0.5]
    return f"    {stage.stage:<16} {duration(stage.seconds):>9}   {', '.join(shown)}"


def duration(seconds: float) -> str:
    """`75.2` -> `"75 s"`, `4530` -> `"76 min"`."""
    if seconds < 180:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 10_800 else f"{seconds / 3600:.1f} h"
