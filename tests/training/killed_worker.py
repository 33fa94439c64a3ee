"""Trains a model of MODELS until step 10 and waits there to be killed.

Run as `python -m training.killed_worker FOLDER MODEL` in `tests`.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import torch
from transformers import TrainerCallback

from hf_compress.training import Context

from .material import text_data, tiny_compressed_model, tiny_text_model


TRAINING = {"num_train_epochs": 3, "per_device_train_batch_size": 16, "learning_rate": 1e-3, "bf16": False}
MODELS = {"dense": partial(tiny_text_model, dropout=0.1), "compressed": partial(tiny_compressed_model, dropout=0.1)}


def context(folder: Path) -> Context:
    return Context(data=text_data(), training=TRAINING, seed=1, output_dir=folder)


class WaitAt(TrainerCallback):
    def __init__(self, step: int, marker: Path):
        self.step, self.marker = step, marker

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.marker.touch()
            time.sleep(600)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    context(folder).train(MODELS[sys.argv[2]](), callbacks=[WaitAt(10, folder / "waiting")])
