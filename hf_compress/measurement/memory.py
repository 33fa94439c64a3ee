"""Peak memory of this process."""

from __future__ import annotations

from ..journal import peak_memory, reset_peak_memory


__all__ = ["PeakMemory", "peak_memory", "reset_peak_memory"]


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
