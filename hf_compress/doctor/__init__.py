"""Whether a recipe can run on this machine, and about how long it would take."""

from .checks import Finding, findings, finished_stages, machine_findings
from .report import doctor_json, doctor_text, resource_findings
from .timing import Estimate, StageEstimate, estimate


__all__ = [
    "Estimate",
    "Finding",
    "StageEstimate",
    "doctor_json",
    "doctor_text",
    "estimate",
    "findings",
    "finished_stages",
    "machine_findings",
    "resource_findings",
]
