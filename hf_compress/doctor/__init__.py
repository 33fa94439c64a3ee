"""Whether a recipe can run on this machine, and about how long it would take."""

from .checks import Finding, findings, machine_findings
from .report import doctor_json, doctor_text
from .timing import StageEstimate, estimate


__all__ = [
    "Finding",
    "StageEstimate",
    "doctor_json",
    "doctor_text",
    "estimate",
    "findings",
    "machine_findings",
]
