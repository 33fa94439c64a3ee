"""Names of torch modules for the convolutions of a converted model.

The converter folds batch normalization into the convolution before it, and the folded operation loses the name of its
module, under which results speak of a layer and users exclude one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


if TYPE_CHECKING:
    import openvino

_KINDS = ("Convolution", "GroupConvolution")
_CERTAIN = 0.999  # mean cosine of a filter with its folded self; other filters are nowhere near


def name_convolutions(converted: openvino.Model, model: nn.Module) -> None:
    """
    Give every nameless convolution of `converted` the name of the module of `model` that it came from.

    Folding multiplies every filter by a number, so a module is recognized by the directions of its filters.

    Args:
        converted (`openvino.Model`): made of `model`, not quantized; its friendly names are changed in place.
        model (`nn.Module`): in the state in which it was converted.
    """
    filters: dict[tuple[int, int], list[tuple[str, Tensor]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            directions = _directions(module.weight.detach())
            filters.setdefault(tuple(directions.shape), []).append((name, directions))
    for operation in converted.get_ordered_ops():
        if operation.get_type_name() not in _KINDS or operation.get_friendly_name().startswith("__module."):
            continue
        weight = _weight(operation)
        if weight is None:
            continue
        matching = filters.get(tuple(weight.shape), [])
        alive = max(1.0, float(weight.norm(dim=1).round().sum()))
        likeness = [float((directions * weight).sum(1).abs().sum()) / alive for _, directions in matching]
        if likeness and max(likeness) > _CERTAIN:
            name, _ = matching.pop(likeness.index(max(likeness)))
            operation.set_friendly_name(f"__module.{name}/convolution")


def _weight(operation: openvino.Node) -> Tensor | None:
    """The directions of the filters of an operation; `None` where they are not a plain constant."""
    node = operation.input_value(1).get_node()
    groups = operation.get_type_name() == "GroupConvolution"
    shape = node.get_output_shape(0)
    while node.get_type_name() == "Reshape":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    filters = shape[0] * shape[1] if groups else shape[0]
    return _directions(torch.tensor(node.data.reshape(filters, -1)))


def _directions(weight: Tensor) -> Tensor:
    """Filters as rows of length 1, or 0 where the scale of the batch normalization is 0."""
    return normalize(weight.flatten(1).float().cpu(), eps=1e-30)
