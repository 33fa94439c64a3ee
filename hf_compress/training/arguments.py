"""`TrainingArguments` from the `training` block of a recipe, with defaults for the kind of model."""

from __future__ import annotations

import logging
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from ..errors import RecipeError
from ..measurement import has_fast_bf16
from ..registry import nearest


logger = logging.getLogger(__name__)

# Recovery and training of CIFAR-size networks as the distillation literature does it. No clipping: with SGD at these
# rates it changes the result.
CONVOLUTIONAL = {
    "optim": "sgd",
    "optim_args": "momentum=0.9,nesterov=True",
    "learning_rate": 0.05,
    "weight_decay": 5e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "per_device_train_batch_size": 128,
    "per_device_eval_batch_size": 250,
    "max_grad_norm": 0.0,
    "num_train_epochs": 10,
}
TRANSFORMER = {
    "optim": "adamw_torch_fused",
    "learning_rate": 5e-5,
    "weight_decay": 0.01,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.06,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "max_grad_norm": 1.0,
    "num_train_epochs": 3,
}
COMMON = {
    "logging_strategy": "epoch",
    "save_strategy": "epoch",
    "eval_strategy": "epoch",
    "save_total_limit": 1,
    "logging_nan_inf_filter": False,  # a diverging training has to show, not to be averaged away
    "report_to": "none",
    "disable_tqdm": False,  # Trainer would hide the progress where the log is quiet
}
# What the run decides, with where to say it instead.
RESERVED = {
    "output_dir": "the recipe's output_dir",
    "seed": "the recipe's seed",
    "data_seed": "the recipe's seed",
    "push_to_hub": "hub.push",
    "hub_model_id": "hub.repo_id",
    "hub_strategy": "hub.push",
    "hub_token": "the environment variable HF_TOKEN",
    "hub_private_repo": "hub.private",
    "resume_from_checkpoint": "running the same command again",
    "save_only_model": "nothing; a training that was stopped could not go on",
    "remove_unused_columns": "nothing; it follows from the data",
    "auto_find_batch_size": "per_device_train_batch_size and gradient_accumulation_steps",
    "do_train": "steps",
    "do_eval": "steps",
    "do_predict": "steps",
}
POSITIVE = (
    "num_train_epochs",
    "learning_rate",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
)


def default_training(model: nn.Module) -> dict[str, Any]:
    """The training defaults for `model`: SGD for networks with batch normalization, AdamW for all others."""
    convolutional = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return dict(CONVOLUTIONAL if convolutional else TRANSFORMER)


def build_arguments(
    values: dict[str, Any], output_dir: str | os.PathLike, seed: int, path: str = "training"
) -> TrainingArguments:
    """`TrainingArguments` of a training block.

    Without an accelerator the CPU is used; bf16 autocast is the default where the CPU computes in it (AMX or
    AVX512-BF16) or an accelerator does. Every epoch the loss is logged, the holdout watched and a checkpoint saved.

    Args:
        values (`dict`): fields of `TrainingArguments`, usually [`default_training`] updated with a recipe's blocks.
        output_dir (`str` or `os.PathLike`): where the checkpoints go.
        seed (`int`): of the order of the examples, augmentation and dropout.
        path (`str`, *optional*, defaults to `"training"`): of the block in a recipe, for messages.

    Raises:
        `RecipeError`: names an unknown field with the nearest known one, or a value of the wrong type or range.
    """
    check_training(values, path)
    threads = torch.get_num_threads()
    settings = {**COMMON, **choose_bf16(values)}
    settings.setdefault("use_cpu", not torch.accelerator.is_available())
    settings.setdefault("dataloader_pin_memory", not settings["use_cpu"])
    try:
        arguments = TrainingArguments(output_dir=str(Path(output_dir)), seed=seed, data_seed=seed, **settings)
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"{path}: {error}") from error
    # setting up several CPU processes may give each of them other threads than the run has chosen
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return arguments


def choose_bf16(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with a `bf16`: their own, else whether what they train on computes in it, and never beside fp16."""
    use_cpu = values.get("use_cpu", not torch.accelerator.is_available())
    return {"bf16": not values.get("fp16", False) and _bf16_by_default(use_cpu), **values}


def _bf16_by_default(use_cpu: bool) -> bool:
    if use_cpu:
        return has_fast_bf16()
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def check_training(values: dict[str, Any], path: str = "training") -> None:
    """Refuse a training block, found at `path` of a recipe, that names unknown fields or has values of another type.

    Raises:
        `RecipeError`: names the field by its path, and the nearest known one.
    """
    known = {field.name: field for field in fields(TrainingArguments) if field.init}
    for name, value in values.items():
        if name in RESERVED:
            raise RecipeError(f"{path}.{name}: this is not set here; use {RESERVED[name]}.")
        if name not in known:
            allowed = [key for key in known if key not in RESERVED]
            raise RecipeError(
                f"{path}.{name}: unknown field{nearest(name, allowed)}; allowed are the fields of "
                "transformers.TrainingArguments."
            )
        kind = known[name].type
        if kind in (bool, "bool"):
            fits, wanted = isinstance(value, bool), "true or false"
        elif kind in (int, "int"):
            fits, wanted = isinstance(value, int) and not isinstance(value, bool), "a whole number"
        elif kind in (float, "float"):
            fits, wanted = isinstance(value, int | float) and not isinstance(value, bool), "a number"
        else:
            continue  # an enumeration, a text or a mapping: TrainingArguments checks it
        if name in POSITIVE:
            fits, wanted = fits and value > 0, f"{wanted} above 0"
        if not fits:
            raise RecipeError(f"{path}.{name}: got {value!r} ({type(value).__name__}); allowed is {wanted}.")
