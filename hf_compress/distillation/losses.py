"""The one convention for mixing labels and teacher: alpha is the weight of the teacher."""

from __future__ import annotations

import torch
from torch.nn import functional


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


def mix(label_loss: torch.Tensor | None, teacher_loss: torch.Tensor, alpha: float) -> torch.Tensor:
    """`(1 - alpha) · label_loss + alpha · teacher_loss`; without labels alpha is 1."""
    if alpha == 1.0:
        return teacher_loss  # a label loss that is infinite or missing must not reach the sum
    return (1.0 - alpha) * label_loss + alpha * teacher_loss
