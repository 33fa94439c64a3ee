"""Training on the task's own labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..registry import StepContext, register_method


@dataclass(frozen=True)
class FinetuneOptions:
    """None: how long and how fast is said in the step's `training` block."""


@register_method(
    "finetune",
    "full",
    options=FinetuneOptions,
    needs={"labels"},
    trains=True,
    supports=("conv", "linear", "bert", "timm"),
)
def finetune_full(model: nn.Module, options: FinetuneOptions, context: StepContext) -> None:
    """Train all parameters on the labels, or with a `distill` block on labels and teacher."""
    context.train(model)
