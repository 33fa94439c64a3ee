"""What is timed for a moment: training steps, and calls."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import TrainerCallback


WARM_UP = 2  # training steps
PATIENCE = 3.0  # seconds that one training step or batch may take; a longer one is timed on fewer examples


class Stopwatch(TrainerCallback):
    """Times training steps with the loading of their batches, and the optimizer's part of them, for `seconds`."""

    def __init__(self, seconds: float):
        self.seconds, self.state_bytes = seconds, 0
        self.steps: list[float] = []
        self.updates: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self._last = time.perf_counter()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._update = time.perf_counter()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.updates.append(time.perf_counter() - self._update)

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        now = time.perf_counter()
        self.steps.append(now - self._last)
        self._last = now
        # the first steps set much up (a teacher may be compiled); unless one alone takes too long, they are not enough
        if sum(self.steps[WARM_UP:]) >= self.seconds or sum(self.steps) >= self.seconds + PATIENCE:
            control.should_training_stop = True
            values = [value for state in optimizer.state.values() for value in state.values()]
            self.state_bytes = sum(value.nbytes for value in values if isinstance(value, torch.Tensor))

    def read(self) -> tuple[float, float]:
        """Seconds of a step without the optimizer's, and of the optimizer's; the first steps, in which much is set up,
        do not count where there are others."""
        some = slice(WARM_UP, None) if len(self.steps) > WARM_UP + 1 else slice(-1, None)
        update = float(np.median(self.updates[some]))
        return max(0.0, float(np.median(self.steps[some])) - update), update


def affordable(example: float, wanted: int) -> int:
    """How many examples, of so many seconds each, may be taken at once."""
    return max(1, min(wanted, int(PATIENCE / max(example, 1e-9))))


def median_seconds(call: Callable, patience: float) -> float:
    """The median seconds of a call, after one that does not count; of that one, where it took long."""
    started = time.perf_counter()
    call()
    times = [time.perf_counter() - started]
    if times[0] > patience:
        return times[0]
    begun, times = time.perf_counter(), []
    while not times or time.perf_counter() - begun < patience:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return float(np.median(times))
