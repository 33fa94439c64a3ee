"""Trains the same models in one process or in several: `torchrun … -m training.processes_worker FOLDER` in `tests`.

Every process gets a folder of its own for checkpoints, so that it shows who wrote.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from hf_compress.distillation import DistillOptions
from hf_compress.training import Context, apply_method

from .material import image_data, text_data, tiny_compressed_model, tiny_image_model, tiny_text_model


GLOBAL_BATCH = 12
CASES = ("text", "text_distilled", "text_accumulated", "compressed", "image_distilled")


class Losses(TrainerCallback):
    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.values.append(logs["loss"])


def freeze_statistics(model):
    """Batch normalization in eval mode whatever the trainer says: its batch statistics depend on the split."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module
    return model


def run(case: str, folder: Path, processes: int) -> dict:
    image = case.startswith("image")
    accumulation = 2 if case.endswith("accumulated") else 1
    training = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": GLOBAL_BATCH // processes // accumulation,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 0.01,
        "optim": "sgd",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "bf16": False,
        "disable_tqdm": True,
    }
    make = tiny_image_model if image else tiny_text_model
    student = freeze_statistics((tiny_compressed_model if case == "compressed" else make)(0))
    losses = Losses()
    context = Context(
        data=image_data() if image else text_data(),
        baseline=lambda: make(1),
        training=training,
        output_dir=folder / case,
    )
    if case.endswith("distilled"):
        context.train(student, loss_terms=[DistillOptions().term(student, context)], callbacks=[losses])
    else:
        context.train(student, callbacks=[losses])
    return {
        "losses": losses.values,
        "weights": {name: value.sum().item() for name, value in student.named_parameters()},
    }


def refused_everywhere(folder: Path) -> bool:
    """Checkpoints of another training stop all processes, not the first alone."""
    context = Context(data=text_data(), training={"learning_rate": 0.5}, output_dir=folder / "text")
    try:
        apply_method(tiny_text_model(), "finetune", "full", None, context)
    except ValueError as error:
        return "another training" in str(error)
    return False


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    folder = Path(sys.argv[1])
    results = {case: run(case, folder / f"rank{rank}", int(os.environ["WORLD_SIZE"])) for case in CASES}
    results["refused"] = refused_everywhere(folder / f"rank{rank}")
    (folder / f"results{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()
