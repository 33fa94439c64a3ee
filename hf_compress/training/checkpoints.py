"""Going on from the Trainer's own checkpoints: which one is whole, and whether it belongs to this training."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import CompressionError
from ..storage import read_json, write_json


IDENTITY = "training.json"
STATE = "trainer_state.json"  # what Trainer writes last
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
# What a training's result depends on. The split of the global batch into processes and accumulation is not among it.
FIELDS = (
    "seed",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "max_grad_norm",
    "label_smoothing_factor",
    "bf16",
    "fp16",
)


def resume_point(trainer: Trainer, resume: bool) -> str | None:
    """The last whole checkpoint in the trainer's folder, or `None` to begin. The first process decides for all.

    What a killed process left unfinished is removed; without `resume` every checkpoint is.

    Raises:
        `CompressionError`: if the folder holds the checkpoints of another training.
    """
    answer: list[Any] = [None, None]
    if trainer.args.process_index == 0:
        try:
            answer[0] = _resume_point(Path(trainer.args.output_dir), resume, trainer)
        except CompressionError as error:
            answer[1] = str(error)
    if trainer.args.world_size > 1:
        broadcast_object_list(answer)
    if answer[1]:
        raise CompressionError(answer[1])
    return answer[0]


def check_weights(model: nn.Module, checkpoint: str) -> None:
    """Load a checkpoint's weights, all of them; `Trainer`, which loads them again, would let missing ones pass.

    Raises:
        `CompressionError`: names the parameters that the checkpoint lacks.
    """
    path = Path(checkpoint) / "model.safetensors"
    if not path.exists():
        return  # adapters, or several files, which Trainer checks by itself
    try:
        result = model.load_state_dict(load_file(path), strict=False)
    except RuntimeError as error:
        raise CompressionError(f"{path} does not fit the model: {error}") from error
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = [name for name in result.missing_keys if name not in tied]
    if missing or result.unexpected_keys:
        raise CompressionError(
            f"{path} does not fit the model: it lacks {', '.join(missing[:3]) or 'nothing'} and has unknown "
            f"{', '.join(result.unexpected_keys[:3]) or 'nothing'}; remove {checkpoint} to train from the start."
        )


def _resume_point(folder: Path, resume: bool, trainer: Trainer) -> str | None:
    found = sorted(
        (path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if re.fullmatch(r".*-\d+", path.name)),
        key=lambda path: int(path.name.rsplit("-", 1)[1]),
    )
    whole = [path for path in found if _is_whole(path)] if resume else []
    if whole:
        _check_identity(folder, _identity(trainer))
    for path in found:
        if path not in whole:
            shutil.rmtree(path)
    saves = trainer.args.save_strategy != "no"
    if saves and not whole:
        write_json(folder / IDENTITY, _identity(trainer))
    return str(whole[-1]) if whole else None


def _is_whole(path: Path) -> bool:
    if not any((path / name).exists() for name in WEIGHTS) or not (path / "scheduler.pt").exists():
        return False
    try:
        json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False  # killed while it was written
    return (path / "optimizer.pt").exists()


def _check_identity(folder: Path, identity: dict) -> None:
    path = folder / IDENTITY
    if not path.exists():
        raise CompressionError(f"{folder} holds checkpoints without {IDENTITY}; remove them or give another folder.")
    other = read_json(path)
    differing = sorted(key for key in {*identity, *other} if identity.get(key) != other.get(key))
    if differing:
        hint = " To go on with it, load the model as it was at its start." if differing == ["weights"] else ""
        raise CompressionError(
            f"{folder} holds the checkpoints of another training (it differs in {', '.join(differing)}); "
            f"remove the folder, or give another one.{hint}"
        )


def _identity(trainer: Trainer) -> dict[str, Any]:
    args = trainer.args
    shapes = [(name, list(parameter.shape)) for name, parameter in trainer.model.named_parameters()]
    return {
        **{name: getattr(args, name) for name in FIELDS},
        "lr_scheduler_type": str(args.lr_scheduler_type.value),
        "optim": str(getattr(args.optim, "value", args.optim)),
        "global_batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "examples": len(trainer.train_dataset),
        "loss_terms": [repr(term) for term in getattr(trainer, "loss_terms", ())],
        "weights": _digest(trainer.model),
        "parameters": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16],
        "dtype": str(next(trainer.model.parameters()).dtype).removeprefix("torch."),
    }


def _digest(model: nn.Module) -> str:
    """Of the weights that a training starts from."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]
