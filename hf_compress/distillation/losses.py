"""The one convention for mixing labels and teacher: alpha is the weight of the teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from ..errors import CompressionError


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """`T² · KL(teacher ‖ student)` of the softened distributions, the mean over the batch (Hinton et al., 2015).

    The factor T² keeps the gradient's size independent of T, so that alpha means the same at every temperature.

    Args:
        student (`torch.Tensor` of shape `(batch, classes)`): logits.
        teacher (`torch.Tensor` of shape `(batch, classes)`): logits; no gradient reaches them.
        temperature (`float`): T, above 0.

    Returns:
        `torch.Tensor`: a scalar in float32, 0 where both distributions are the same.
    """
    student = functional.log_softmax(student.float() / temperature, dim=-1)
    teacher = functional.log_softmax(teacher.detach().float() / temperature, dim=-1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def regression_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the student's scores from the teacher's, a scalar in float32."""
    return functional.mse_loss(student.float(), teacher.detach().float())


def hidden_loss(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The squared error of hidden states as a share of the teacher's energy, the mean over layers: 0 where they are
    the same, about 1 where the student gives nothing (layer-wise distillation, as in Jiao et al., 2020,
    arXiv:1909.10351).

    The last states are left out: the logits speak for them, and a classifier may read one token of theirs. Where the
    numbers of layers differ, a layer is compared with that of the teacher at the same share of the depth.

    Args:
        student (`Sequence[torch.Tensor]`), teacher (`Sequence[torch.Tensor]`): before the first layer and after each,
            `(batch, length, features)` or `(batch, channels, height, width)`; no gradient reaches the teacher's.
        mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 0 at tokens that do not count.

    Returns:
        `torch.Tensor`: a scalar in float32.

    Raises:
        `CompressionError`: if there is no layer before the last one, or features differ in number.
    """
    layers, depth = len(student) - 1, len(teacher) - 1
    if min(layers, depth) < 2:
        raise CompressionError(f"hidden: got networks of {layers} and {depth} layers; it needs two or more of each.")
    shares = []
    for index in range(1, layers):
        place = min(max(round(index * depth / layers), 1), depth - 1)
        ours, theirs = student[index].float(), teacher[place].detach().float()
        if ours.shape != theirs.shape:
            raise CompressionError(
                f"hidden: the states of layer {index} have the shape {tuple(ours.shape)}, and those of the teacher "
                f"{tuple(theirs.shape)}; leave hidden out, or give a teacher of the same width."
            )
        weights = 1.0 if mask is None or ours.dim() != 3 else mask.to(ours)[..., None]
        shares.append((weights * (ours - theirs).square()).sum() / (weights * theirs.square()).sum())
    return torch.stack(shares).mean()


def mix(label_loss: torch.Tensor | None, teacher_loss: torch.Tensor, alpha: float) -> torch.Tensor:
    """`(1 - alpha) · label_loss + alpha · teacher_loss`; without labels alpha is 1."""
    if alpha == 1.0:
        return teacher_loss  # a label loss that is infinite or missing must not reach the sum
    return (1.0 - alpha) * label_loss + alpha * teacher_loss
