"""What was found, as text for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .checks import Finding
from .timing import StageEstimate


MARKS = {"ok": "+", "remote": "~", "note": "!", "missing": "x"}
BASIS = (
    "an estimate: some batches of the dense model with made-up inputs were timed here and multiplied; smaller models "
    "take less, a busy machine more"
)


def doctor_text(found: Sequence[Finding], stages: Sequence[StageEstimate] = (), why_not: str | None = None) -> str:
    """A line a finding, those that are missing last with what helps, and a line a stage."""
    lines, topic = [], None
    for finding in found:
        if finding.topic != topic:
            topic = finding.topic
            lines.append(f"{topic}")
        lines.append(f"  {MARKS[finding.state]} {finding.name}: {finding.detail}")
        lines += [f"      {command}" for command in finding.remedy if finding.state != "ok"]
    if stages:
        lines.append(f"time ({BASIS})")
        for stage in stages:
            parts = {name: getattr(stage, name) for name in ("train", "calibrate", "evaluate", "measure")}
            shown = ", ".join(f"{name} {duration(value)}" for name, value in parts.items() if value)
            memory = f"{stage.peak_bytes / 1e9:.1f} GB"
            lines.append(f"    {stage.stage:<16} {duration(stage.seconds):>9}   {shown}; memory {memory}")
        lines.append(f"    {'in all':<16} {duration(sum(stage.seconds for stage in stages)):>9}")
    elif why_not:
        lines.append(f"time\n  ! no estimate: {why_not}")
    missing = [finding.name for finding in found if finding.state == "missing"]
    lines.append(f"missing: {', '.join(missing)}" if missing else "nothing is missing")
    return "\n".join(lines) + "\n"


def doctor_json(found: Sequence[Finding], stages: Sequence[StageEstimate] = (), why_not: str | None = None) -> str:
    """All of it as one JSON object: `findings`, `stages`, `no_estimate`, `seconds`."""
    content = {
        "findings": [finding.to_dict() for finding in found],
        "stages": [stage.to_dict() for stage in stages],
        "no_estimate": why_not,
        "seconds": sum(stage.seconds for stage in stages) if stages else None,
        "basis": BASIS,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def duration(seconds: float) -> str:
    """`75.2` -> `"75 s"`, `4530` -> `"76 min"`."""
    if seconds < 180:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 10_800 else f"{seconds / 3600:.1f} h"
