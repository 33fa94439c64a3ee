"""What the trainer does at fixed points of the training loop."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import torch
from transformers import TrainerCallback

from ..errors import CompressionError
from .order import GlobalBatchSampler


class EpochOrder(TrainerCallback):
    """Tells the order of the examples, and the data set's augmentation, which epoch begins.

    The data loader cannot: with several processes, or when a training goes on in the middle of an epoch, Accelerate
    wraps the sampler so that the loader's own `set_epoch` does not reach it.
    """

    def __init__(self):
        self.sampler: GlobalBatchSampler | None = None
        self.dataset = None
        self._next_epoch = 0

    def on_train_begin(self, args, state, control, **kwargs):
        if self.sampler is not None:
            self._next_epoch = state.global_step // self.sampler.steps

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.sampler is None:
            return
        self.sampler.set_epoch(self._next_epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self._next_epoch)
        self._next_epoch += 1


class StepSeed(TrainerCallback):
    """Makes dropout a function of (seed, step, process), so that a training that goes on repeats none and skips none.

    Processes other than the first then need no random state of their own on the disk.
    """

    def on_step_begin(self, args, state, control, **kwargs):
        words = np.random.SeedSequence((args.seed, state.global_step, args.process_index)).generate_state(2)
        torch.manual_seed(int(words[0]))
        random.seed(int(words[1]))
        np.random.seed(words[1])


class LogBeforeSave(TrainerCallback):
    """Logs whenever a checkpoint is saved within an epoch: losses that are summed up but not logged are not saved."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log = control.should_log or control.should_save


class TellSaved(TrainerCallback):
    """Calls `tell` with the step of every checkpoint, once it is there."""

    def __init__(self, tell: Callable[[int], None]):
        self.tell = tell

    def on_save(self, args, state, control, **kwargs):
        self.tell(state.global_step)


class Divergence(TrainerCallback):
    """Stops a training whose loss is no number any more, before it is saved."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise CompressionError(
                f"training: the loss is {loss} at step {state.global_step}, so the training diverged; lower "
                f"learning_rate ({args.learning_rate:g}), or raise warmup_steps or max_grad_norm."
            )
