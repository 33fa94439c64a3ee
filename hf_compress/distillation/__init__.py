"""Knowledge distillation: learn from a teacher's logits."""

from .logits import DistillOptions
from .losses import distillation_loss, regression_loss
from .term import DistillationTerm
from .trainer import DistillationArguments, DistillationTrainer


__all__ = [
    "DistillOptions",
    "DistillationArguments",
    "DistillationTerm",
    "DistillationTrainer",
    "distillation_loss",
    "regression_loss",
]
