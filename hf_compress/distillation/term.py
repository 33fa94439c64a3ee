"""The teacher as a term of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import CompressionError
from ..measurement.inputs import has_segments, max_length
from ..measurement.openvino_export import to_openvino
from ..measurement.runtimes import OpenVinoCallable, openvino_callable
from ..registry import nearest
from ..training import prefer_channels_last
from .compatibility import (
    accepted_inputs,
    check_hidden_states,
    check_teacher,
    is_regression,
    renormalization,
    token_types,
)
from .losses import distillation_loss, hidden_loss, mix, regression_loss


RUNTIMES = ("torch", "openvino")


class DistillationTerm:
    """Mixes the teacher's logits into the loss, `(1 - alpha) · CE + alpha · T² · KL`, and if asked for adds how far
    the hidden states of the layers are from the teacher's, see [`hidden_loss`].

    For a regression both parts are mean squared errors and the temperature plays no role. The teacher stays outside
    the student, so it is in no optimizer, no checkpoint and no wrapper for several processes; it is in eval mode, is
    not trained, and moves once to the device of the student. Trainers leave the term out of evaluation.

    Args:
        student ([`~transformers.PreTrainedModel`]), teacher ([`~transformers.PreTrainedModel`]): the same task; they
            may be of different architectures. Pixels are normalized anew for a teacher with another mean and standard
            deviation, and a teacher that knows the segments of a pair is told them where the student takes none.
        temperature (`float`, *optional*, defaults to 4.0): T, above 0.
        alpha (`float`, *optional*, defaults to 0.9): the weight of the teacher, from 0 to 1; 1 needs no labels.
        name (`str`, *optional*): the teacher's name, for messages.
        runtime (`str`, *optional*, defaults to `"torch"`): what the teacher runs in. `"openvino"` needs the extra of
            that name and a training on the CPU, and computes in bf16 where the training does.
        hidden (`float`, *optional*, defaults to 0): the weight of the hidden states; the teacher runs in torch then.

    Attributes:
        needs_hidden_states (`bool`): whether trainers have to ask the student for them.

    Raises:
        `CompressionError`: if the teacher does not fit the student, or a value is out of its range.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        temperature: float = 4.0,
        alpha: float = 0.9,
        name: str | None = None,
        runtime: str = "torch",
        hidden: float = 0.0,
    ):
        check_ranges(temperature, alpha, runtime, hidden)
        check_teacher(student, teacher)
        if hidden:
            check_hidden_states(student, teacher)
        self.teacher = teacher.eval()
        self.temperature = temperature
        self.alpha = alpha
        self.hidden = hidden
        self.needs_hidden_states = hidden > 0
        self.name = name or type(teacher).__name__
        self.runtime = runtime
        self._compiled: OpenVinoCallable | None = None
        self._regression = is_regression(student)
        self._inputs = accepted_inputs(teacher)
        self._renormalization = renormalization(student, teacher)
        self._segments = "token_type_ids" in self._inputs - accepted_inputs(student) and has_segments(teacher)
        self._positions = max_length(teacher)
        self._device: torch.device | None = None

    def __repr__(self) -> str:
        hidden = f", hidden={self.hidden:g}" if self.hidden else ""
        return (
            f"DistillationTerm(teacher={self.name!r}, temperature={self.temperature:g}, alpha={self.alpha:g}{hidden})"
        )

    def __call__(self, loss: torch.Tensor | None, outputs: Any, inputs: dict, model: nn.Module) -> torch.Tensor:
        if loss is None:
            check_unlabelled(self.alpha)
        if self.alpha == 0.0 and not self.hidden:
            return loss
        student = outputs.get("logits") if isinstance(outputs, dict) else outputs[0 if loss is None else 1]
        if self.alpha > 0.0 and (student is None or student.dim() != 2):
            got = "none" if student is None else f"the shape {tuple(student.shape)}"
            raise CompressionError(
                f"logits: got {got}; distillation is for one prediction an example, (examples, classes)."
            )
        said = self.outputs(inputs, next(model.parameters()).device)
        if self.alpha > 0.0 and self._regression:
            loss = mix(loss, regression_loss(student, said["logits"]), self.alpha)
        elif self.alpha > 0.0:
            loss = mix(loss, distillation_loss(student, said["logits"], self.temperature), self.alpha)
        if not self.hidden:
            return loss
        states = [each.get("hidden_states") if isinstance(each, dict) else None for each in (outputs, said)]
        if None in states:
            raise CompressionError("hidden: student or teacher gives no hidden states; leave hidden out.")
        return loss + self.hidden * hidden_loss(*states, inputs.get("attention_mask"))

    @torch.no_grad()
    def outputs(self, inputs: dict, device: torch.device) -> Mapping[str, Any]:
        """What the teacher says to a batch: `logits`, of the shape of the student's, and `hidden_states` if needed."""
        if self.runtime == "openvino" and device.type != "cpu":
            raise CompressionError(f"teacher_runtime: got openvino for a training on {device.type}; give torch.")
        if self._device != device:
            self.teacher.to(device)
            prefer_channels_last(self.teacher, device)
            self._device = device
        if self.teacher.training:
            self.teacher.eval()
        inputs = {name: value for name, value in inputs.items() if name in self._inputs}
        pixels, tokens = inputs.get("pixel_values"), inputs.get("input_ids")
        if pixels is not None and self._renormalization is not None:
            scale, shift = (value.to(pixels) for value in self._renormalization)
            inputs["pixel_values"] = pixels * scale + shift
        if tokens is not None and self._positions is not None and tokens.shape[-1] > self._positions:
            raise CompressionError(
                f"teacher: got {tokens.shape[-1]} tokens, and it reads at most {self._positions}; lower max_length."
            )
        if self._segments and tokens is not None and "token_type_ids" not in inputs:
            inputs["token_type_ids"] = token_types(tokens, inputs.get("attention_mask"))
        if self.runtime == "torch":
            return self.teacher(**inputs, **({"output_hidden_states": True} if self.hidden else {}))
        if self._compiled is None:
            graph = to_openvino(self.teacher, inputs)
            self._compiled = openvino_callable(graph, "bf16" if torch.is_autocast_enabled("cpu") else "f32")
        found = self._compiled(self._compiled.prepare(inputs))["logits"]
        rows = len(next(iter(inputs.values())))
        if len(found) != rows:  # seen with poolings of images that are too small
            raise CompressionError(
                f"teacher_runtime: OpenVINO gives {len(found)} predictions of {self.name} for {rows} examples; give "
                "torch."
            )
        return {"logits": torch.from_numpy(found.copy())}  # the next call writes over it


def check_unlabelled(alpha: float) -> None:
    """Raise a `CompressionError` if `alpha` leaves a share to labels, of which the data has none."""
    if alpha != 1.0:
        raise CompressionError(
            f"alpha: got {alpha:g}, which leaves {1 - alpha:.2g} to the labels, and the data has none; give alpha 1, "
            "or data with labels."
        )


def check_ranges(temperature: float, alpha: float, runtime: str = "torch", hidden: float = 0.0) -> None:
    """Raise a `CompressionError` for a temperature of 0 or less, an alpha outside of 0 to 1, an unknown runtime, or a
    weight of hidden states below 0 or of a runtime that gives none."""
    if not 0 < temperature <= 1000:
        raise CompressionError(f"temperature: got {temperature!r}; give a number above 0, such as 4.")
    if not 0 <= alpha <= 1:
        raise CompressionError(f"alpha: got {alpha!r}; give the weight of the teacher, from 0 to 1.")
    if runtime not in RUNTIMES:
        raise CompressionError(
            f"teacher_runtime: got {runtime!r}{nearest(runtime, RUNTIMES)}; allowed are {', '.join(RUNTIMES)}."
        )
    if not 0 <= hidden <= 1e6:
        raise CompressionError(f"hidden: got {hidden!r}; give the weight of the hidden states, 0 or more.")
    if hidden and runtime != "torch":
        raise CompressionError(f"teacher_runtime: got {runtime} with hidden; it gives logits alone, so give torch.")
