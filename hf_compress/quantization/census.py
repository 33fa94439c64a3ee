"""What of an OpenVINO model is quantized: its layers with the bits of their weights and activations."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import openvino

# where the weight of a layer comes in; either side of a MatMul may be it
_WEIGHT_PORTS = {
    "Convolution": (1,),
    "GroupConvolution": (1,),
    "ConvolutionBackpropData": (1,),
    "GroupConvolutionBackpropData": (1,),
    "MatMul": (1, 0),
    "Gather": (0,),
}
_BITS = {"i4": 4, "u4": 4, "i8": 8, "u8": 8, "f16": 16, "bf16": 16, "f32": 32}
# what may stand between a stored weight, or a quantized activation, and its layer
_TRANSPARENT = {"Convert", "Multiply", "Subtract", "Reshape", "Transpose", "Unsqueeze", "Squeeze"}
_MODULE = re.compile(r"^__module\.(.+?)/")


def layers(model: openvino.Model) -> dict[str, dict[str, Any]]:
    """
    The layers of `model` that have weights.

    Args:
        model (`openvino.Model`): converted from torch, so that operations carry the names of its modules.

    Returns:
        `dict[str, dict]`: by module name: `type` (of the operation; a `Gather` is an embedding), `bits` (of a stored
        weight) and `activation_bits` (of the other operand; 32 where it is not quantized, and `None` for an embedding,
        whose other operand is an index).
    """
    found: dict[str, dict[str, Any]] = {}
    for operation in model.get_ordered_ops():
        kind = operation.get_type_name()
        weight = _weight(operation, _WEIGHT_PORTS.get(kind, ()))
        if weight is None:
            continue
        port, bits = weight
        activation = None if kind == "Gather" else _activation_bits(operation.input_value(1 - port))
        found[_name(operation, found)] = {"type": kind, "bits": bits, "activation_bits": activation}
    return found


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How many layers there are, how many hold integer weights and how many compute in integers, by type."""
    integer = [spec for spec in found.values() if spec["bits"] <= 8]
    computing = [spec for spec in integer if spec["activation_bits"] == 8]
    return {
        "layers": len(found),
        "integer_weights": dict(Counter(spec["type"] for spec in integer)),
        "integer_compute": dict(Counter(spec["type"] for spec in computing)),
    }


def _weight(operation: openvino.Node, ports: tuple[int, ...]) -> tuple[int, int] | None:
    """The port and the bits of the weight of `operation`; `None` where no operand is a stored matrix."""
    for port in ports:
        bits = _stored_bits(operation.input_value(port))
        if bits is not None:
            return port, bits
    return None


def _stored_bits(value: openvino.Output) -> int | None:
    levels = None
    node = value.get_node()
    while node.get_type_name() != "Constant":
        if node.get_type_name() == "FakeQuantize":  # a weight that is stored as float, and used on a grid
            levels = node.get_attributes().get("levels")
        elif node.get_type_name() not in _TRANSPARENT:
            return None
        node = node.input_value(0).get_node()
    if len(node.get_output_shape(0)) < 2:
        return None  # an index, a shape or a scale
    stored = _BITS.get(node.get_output_element_type(0).get_type_name())
    return stored if stored is None or levels is None else min(stored, (levels - 1).bit_length())


def _activation_bits(value: openvino.Output) -> int:
    node = value.get_node()
    while node.get_type_name() in _TRANSPARENT:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "FakeQuantize":
        return 32
    return (node.get_attributes()["levels"] - 1).bit_length()


def _name(operation: openvino.Node, taken: dict) -> str:
    match = _MODULE.match(operation.get_friendly_name())
    name = match.group(1) if match else operation.get_friendly_name()
    if name not in taken:
        return name
    return next(f"{name}#{index}" for index in range(2, len(taken) + 3) if f"{name}#{index}" not in taken)
