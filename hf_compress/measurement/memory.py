"""Peak memory of this process."""

from __future__ import annotations

from ..journal import PeakMemory, peak_memory, reset_peak_memory


__all__ = ["PeakMemory", "peak_memory", "reset_peak_memory"]
