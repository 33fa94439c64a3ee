"""Distillation from logits as a step, or as a block inside of another step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from ..errors import CompressionError
from ..measurement import evaluating
from ..registry import StepContext, register_method
from ..training.data import to_device
from .term import DistillationTerm, check_ranges, check_unlabelled


@dataclass(frozen=True)
class DistillOptions:
    """What to learn from, and how much.

    Args:
        teacher (`str`, *optional*, defaults to `"baseline"`): the dense model, or a name or path of any model of the
            same task.
        temperature (`float`, *optional*, defaults to 4.0): softens both distributions; above 0.
        alpha (`float`, *optional*, defaults to 0.9): the weight of the teacher, from 0 to 1; 1 needs no labels.
        teacher_runtime (`str`, *optional*, defaults to `"torch"`): what the teacher runs in; `"openvino"` is for
            trainings on a CPU and needs the extra of that name.
        hidden (`float`, *optional*, defaults to 0): the weight of the distance of the layers' hidden states from the
            teacher's, which has to be of the same width; see [`~distillation.losses.hidden_loss`].
    """

    teacher: str = "baseline"
    temperature: float = 4.0
    alpha: float = 0.9
    teacher_runtime: Literal["torch", "openvino"] = "torch"
    hidden: float = 0.0

    def __post_init__(self):
        if not self.teacher:
            raise CompressionError("teacher: got an empty text; give 'baseline', or a name or path of a model.")
        check_ranges(self.temperature, self.alpha, self.teacher_runtime, self.hidden)

    def term(self, model: nn.Module, context) -> DistillationTerm:
        """The loss term for the student `model`; loads the teacher.

        Raises:
            `CompressionError`: if the teacher does not fit, or the data has no labels and `alpha` wants some.
        """
        if context.data is not None and not context.data.has_labels:
            check_unlabelled(self.alpha)
        teacher = context.teacher(self.teacher)
        return DistillationTerm(
            model, teacher, self.temperature, self.alpha, self.teacher, self.teacher_runtime, self.hidden
        )

    def check(self, model: nn.Module, context) -> None:
        """Compare the hidden states of a student with its teacher's on an example, if a training will.

        Raises:
            `CompressionError`: if they differ in shape, because pruning has taken channels out of them for example.
        """
        if not self.hidden:
            return
        term = self.term(model, context)
        (batch,) = context.calibration(1)
        batch = to_device(batch, model)
        with evaluating(model):
            outputs = model(**batch, output_hidden_states=True)
            term(outputs.get("loss"), outputs, batch, model)


@register_method(
    "distill",
    "logits",
    options=DistillOptions,
    needs={"teacher"},
    trains=True,
    paper="Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (arXiv:1503.02531)",
    supports=("conv", "linear", "bert", "timm"),
)
def distill_logits(model: nn.Module, options: DistillOptions, context: StepContext) -> None:
    """Train on labels and on the softened logits of a teacher."""
    context.train(model, loss_terms=[options.term(model, context)])
