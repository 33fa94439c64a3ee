"""How a process ends that is told to, or whose parent is gone: soon, and with its temporary folders cleared away."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


LAUNCHED = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}  # variables that launchers set
GRACE = 10.0  # seconds that a process has to clear away what it made


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, by an exception; in a main thread, elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame) -> None:
    signal.signal(number, signal.SIG_IGN)  # once; what clears away is not to be interrupted
    raise SystemExit(128 + number)


def end_after(wait: Callable[[], None]) -> None:
    """End this process when `wait` returns, by SIGTERM and, where that does not help, at once."""

    def watch() -> None:
        wait()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_launcher() -> None:
    """End this process when the `accelerate launch` or `torchrun` that started it is gone; one that neither started
    goes on."""
    if LAUNCHED.isdisjoint(os.environ):
        return
    launcher = os.getppid()

    def wait() -> None:
        while os.getppid() == launcher:
            time.sleep(1)

    end_after(wait)
