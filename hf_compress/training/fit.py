"""One path for every training: set up, go on where a killed one stood, train, give the model back clean."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

import torch
from torch import nn
from transformers import EvalPrediction, TrainerCallback, TrainerState, TrainingArguments

from .checkpoints import check_weights, resume_point
from .data import ModelInputs, TrainingData, forward_columns, unused_columns
from .trainer import CompressionTrainer, LossTerm


@dataclass
class TrainReport:
    """What a training did.

    Attributes:
        epochs (`list[dict]`): the curve, an entry an epoch: `epoch` (from 1), `loss` (the mean over its steps),
            `learning_rate`, and where a holdout is watched `holdout_loss` and `holdout_<metric>`.
        seconds (`float`): wall time of this call; of a training that went on, the time of the last process only.
        steps (`int`): optimizer steps from the first one on.
        resumed_from (`int`, *optional*): the step it went on from.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    resumed_from: int | None = None

    def to_dict(self) -> dict:
        return asdict(self)


def fit(
    model: nn.Module,
    *,
    data: Any,
    arguments: TrainingArguments,
    loss_terms: Sequence[LossTerm] = (),
    callbacks: Sequence[TrainerCallback] = (),
    compute_metrics=None,
    resume: bool = True,
) -> TrainReport:
    """Train `model` in place.

    Args:
        model ([`~transformers.PreTrainedModel`]): in any mode; in eval mode afterwards, without traces of the trainer.
        data ([`TrainingData`], or what [`TrainingData.of`] reads): the training split and the holdout.
        arguments ([`~transformers.TrainingArguments`]): see [`build_arguments`]. Checkpoints go to its `output_dir`
            and stay there; whoever has saved the model removes them.
        loss_terms (`Sequence[Callable]`, *optional*): see [`CompressionTrainer`].
        callbacks (`Sequence[TrainerCallback]`, *optional*): schedules of methods that compress while they train.
        compute_metrics (`Callable`, *optional*): `(logits, labels) -> dict[str, float]` for the holdout, instead of
            the data's own.
        resume (`bool`, *optional*, defaults to `True`): go on from the last whole checkpoint in `output_dir`, to the
            weights and the curve of an uninterrupted training; `model` has to be as it was at its start.

    Raises:
        `CompressionError`: if the checkpoints there belong to another training, or the loss stops being a number.
    """
    started = time.perf_counter()
    data = TrainingData.of(data)
    holdout = data.watched()
    compute_metrics = compute_metrics or data.compute_metrics
    if holdout is None:
        arguments.eval_strategy = "no"
    columns = forward_columns(model)
    arguments.remove_unused_columns = bool(unused_columns(data.train, columns))
    restore_layout = prefer_channels_last(model, arguments.device)
    trainer = CompressionTrainer(
        model=model,
        args=arguments,
        data_collator=ModelInputs(data.collate, columns),
        train_dataset=data.train,
        eval_dataset=holdout,
        compute_metrics=_trainer_metrics(compute_metrics) if compute_metrics else None,
        callbacks=list(callbacks),
        loss_terms=loss_terms,
    )
    try:
        checkpoint = resume_point(trainer, resume)
        if checkpoint is not None:
            check_weights(model, checkpoint)
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        _release(trainer, restore_layout)
    return TrainReport(
        epochs=curve(trainer.state),
        seconds=time.perf_counter() - started,
        steps=trainer.state.global_step,
        resumed_from=int(checkpoint.rsplit("-", 1)[1]) if checkpoint else None,
    )


def prefer_channels_last(model: nn.Module, device: torch.device) -> bool:
    """Lay the convolutions of `model` out channels-last, in which CPUs and tensor cores compute them fastest.

    Returns:
        `bool`: whether anything was changed. `model.to(memory_format=torch.contiguous_format)` undoes it.
    """
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    if not weights or device.type not in ("cpu", "cuda"):
        return False
    if all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights):
        return False
    model.to(memory_format=torch.channels_last)
    return True


def curve(state: TrainerState) -> list[dict[str, float]]:
    """The log of a trainer as one entry an epoch, however often it logged within them."""
    epochs: dict[int, dict[str, float]] = {}
    sums: dict[int, list[float]] = {}
    last_step = 0
    for entry in state.log_history:
        if "epoch" not in entry or "train_loss" in entry:
            continue
        number = max(1, ceil(entry["epoch"] - 1e-9))
        row = epochs.setdefault(number, {"epoch": number})
        if "loss" in entry:
            steps = entry["step"] - last_step
            last_step = entry["step"]
            total = sums.setdefault(number, [0.0, 0.0])
            total[0] += entry["loss"] * steps
            total[1] += steps
            row["loss"] = total[0] / total[1]
            row["learning_rate"] = entry["learning_rate"]
        for key, value in entry.items():
            # how fast the holdout was read differs from run to run, and is no part of the curve
            if key.startswith("eval_") and not key.endswith(("_runtime", "_per_second", "_preparation_time")):
                row[f"holdout_{key.removeprefix('eval_')}"] = value
    return [epochs[number] for number in sorted(epochs)]


def _release(trainer: CompressionTrainer, restore_layout: bool) -> None:
    """Give the model back, and the memory of gradients and optimizer with it."""
    trainer.remove_traces()
    trainer.accelerator.free_memory()
    trainer.model.zero_grad(set_to_none=True)
    if restore_layout:
        trainer.model.to(memory_format=torch.contiguous_format)
    trainer.model.eval()


def _trainer_metrics(compute_metrics):
    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions
        # models that also return hidden states give a tuple that begins with the logits
        return compute_metrics(logits[0] if isinstance(logits, tuple) else logits, prediction.label_ids)

    return compute
