"""Module specs: the JSON a structure is stored as, its checks, and the way from a spec to a module and back.

    {"kind": "Resized", "class": "Linear", "shapes": {"weight": [24, null]}, "attributes": {"out_features": 24}}
    {"kind": "LowRankLinear", "rank": 8}
    {"kind": "LowRankConv2d", "rank": 8, "scheme": "spatial", "in_channels": 12}
    {"kind": "Removed", "seal": "query.weight", "returns": "tuple"}
    {"kind": "Constant", "seal": "weight", "returns": "tensor"}

What is left out, or `null` in a shape, is as in the module that the model's config alone describes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import StructureError
from ..registry import nearest
from .attributes import plain_attributes, structural_attributes, to_plain
from .modules import SEALED, Constant, LowRankConv2d, LowRankLinear, Removed


ModuleSpec = dict[str, Any]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_size(item) for item in value)


def _is_padding(value: Any) -> bool:
    pair = isinstance(value, list) and len(value) == 2 and all(type(item) is int and item >= 0 for item in value)
    return pair or value in ("same", "valid")


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


Fields = dict[str, Callable[[Any], bool]]
_SEAL: Fields = {"seal": _is_text, "returns": _is_text}
_KINDS: dict[str, tuple[type[nn.Module], Fields]] = {
    "LowRankLinear": (
        LowRankLinear,
        {"in_features": _is_size, "out_features": _is_size, "rank": _is_size, "bias": _is_flag},
    ),
    "LowRankConv2d": (
        LowRankConv2d,
        {
            "in_channels": _is_size,
            "out_channels": _is_size,
            "rank": _is_size,
            "kernel_size": _is_pair,
            "stride": _is_pair,
            "padding": _is_padding,
            "dilation": _is_pair,
            "groups": _is_size,
            "bias": _is_flag,
            "scheme": _is_text,
        },
    ),
    "Removed": (Removed, _SEAL),
    "Constant": (Constant, {"features": _is_size, **_SEAL}),
}
KINDS = ("Resized", *_KINDS)


def replacement_spec(module: nn.Module, original: nn.Module) -> ModuleSpec:
    """The spec of one of the `SEALED` modules that stands where the config alone puts `original`."""
    kind = type(module).__name__
    given = _fields_of(original)
    spec: ModuleSpec = {"kind": kind}
    for name in _KINDS[kind][1]:
        try:
            value = module.up.bias is not None if name == "bias" else to_plain(getattr(module, name))
        except AttributeError as error:
            parts = ", ".join(f"{key} is a {type(part).__name__}" for key, part in module.named_children())
            raise StructureError(f"this {kind} is not made of what it should be ({parts}).") from error
        if name not in given or given[name] != value:
            spec[name] = value
    return spec


def build_replacement(spec: Mapping[str, Any], original: nn.Module) -> nn.Module:
    """Make the module that `spec` describes, to stand for `original`, on its device and with its dtype.

    Raises:
        StructureError: if the spec is not valid, or cannot stand for `original`.
    """
    cls, fields = _KINDS[spec["kind"]]
    given = {name: value for name, value in _fields_of(original).items() if name in fields}
    values = {**given, **{name: value for name, value in spec.items() if name != "kind"}}
    for name, value in values.items():
        if name not in fields:
            raise StructureError(f"unknown field {name!r}{nearest(name, fields)}; allowed are {', '.join(fields)}.")
        if not fields[name](value):
            raise StructureError(f"{name}: got {value!r}, which is no valid value for it.")
    missing = [name for name in fields if name not in values]
    if missing:
        raise StructureError(f"a {spec['kind']} for a {type(original).__name__} must say its {', '.join(missing)}.")
    check_seal(values.get("seal", getattr(cls, "seal", None)), original)
    place = next((t for t in [*original.parameters(), *original.buffers()] if t.is_floating_point()), None)
    if cls is LowRankConv2d and values["rank"] % values["groups"]:
        raise StructureError(f"rank: got {values['rank']}; it must be a multiple of groups, {values['groups']}.")
    try:
        module = cls(**values, device=place.device, dtype=place.dtype)
    except (ValueError, RuntimeError) as error:
        raise StructureError(f"it describes no module that can exist: {error}") from error
    return module.train(original.training)


def check_seal(seal: str, original: nn.Module) -> None:
    """Refuse a seal that would not stop a loader which expects `original`."""
    keys = [name for name, _ in original.named_parameters()]
    if seal not in keys:
        raise StructureError(
            f"the seal {seal!r} is no parameter of the {type(original).__name__} it stands for; "
            f"{'its first is ' + repr(keys[0]) if keys else 'that has none, so it cannot be replaced'}."
        )


def is_conflicting(spec: ModuleSpec) -> bool:
    """Whether a loader that ignores the spec stops, because a stored tensor has another shape than it expects."""
    if spec["kind"] != "Resized":
        return True
    return any(shape is not None and any(size is not None for size in shape) for shape in spec["shapes"].values())


def resized_spec(module: nn.Module, shapes: dict[str, list | None], attributes: dict[str, Any]) -> ModuleSpec:
    return {"kind": "Resized", "class": type(module).__name__, "shapes": shapes, "attributes": attributes}


def resize(module: nn.Module, spec: Mapping[str, Any]) -> None:
    """Give `module` the tensor shapes and attributes of a `Resized` spec; its tensors become zeros.

    Raises:
        StructureError: if the spec is not valid, or does not fit the module.
    """
    if set(spec) != {"kind", "class", "shapes", "attributes"}:
        raise StructureError(f"got the fields {sorted(spec)}; a Resized has kind, class, shapes and attributes.")
    if spec["class"] != type(module).__name__:
        raise StructureError(f"it is meant for a {spec['class']}, but there is a {type(module).__name__}.")
    if not isinstance(spec["shapes"], dict) or not isinstance(spec["attributes"], dict):
        raise StructureError("shapes and attributes must be mappings.")
    for name, shape in spec["shapes"].items():
        _resize_tensor(module, name, shape)
    known, present = structural_attributes(module), plain_attributes(module)
    for name, value in spec["attributes"].items():
        if name not in known or name not in present:
            raise StructureError(f"a {type(module).__name__} has no structural attribute {name!r}.")
        _set_attribute(module, name, value, present[name])


def _set_attribute(module: nn.Module, name: str, value: Any, present: Any) -> None:
    kinds = (int, float) if type(present) in (int, float) and not isinstance(value, bool) else (type(present),)
    if present is not None and type(value) not in kinds:
        raise StructureError(f"{name}: got {value!r}, where {present!r} is expected.")
    if isinstance(value, list):
        if not all(type(item) is int for item in value):
            raise StructureError(f"{name}: got {value!r}, where {present!r} is expected.")
        value = type(getattr(module, name))(value)
    elif not isinstance(value, int | float | str | bool | None):
        raise StructureError(f"{name}: got {value!r}, which is no plain value.")
    setattr(module, name, value)


def _resize_tensor(module: nn.Module, name: str, shape: Any) -> None:
    tensors = module._parameters if name in module._parameters else module._buffers
    if name not in tensors:
        raise StructureError(f"a {type(module).__name__} has no tensor {name!r}.")
    if shape is None:
        tensors[name] = None
        return
    old = tensors[name]
    if not isinstance(shape, list) or not all(size is None or _is_size(size) for size in shape):
        raise StructureError(f"{name}: got the shape {shape!r}; give a list of positive sizes (null where unchanged).")
    if None in shape:
        if old is None or old.dim() != len(shape):
            raise StructureError(f"{name}: the shape {shape!r} does not fit what is there.")
        shape = [new or size for new, size in zip(shape, old.shape, strict=True)]
    like = old if old is not None else next(module.parameters())
    new = like.detach().new_zeros(shape)
    if tensors is module._parameters:
        new = nn.Parameter(new, requires_grad=like.requires_grad)
    tensors[name] = new


def _fields_of(original: nn.Module) -> dict[str, Any]:
    """What a stand-in takes over from `original` where its spec says nothing."""
    fields = {
        name: to_plain(getattr(original, name))
        for name in ("in_features", "out_features", "in_channels", "out_channels", "kernel_size")
        + ("stride", "padding", "dilation", "groups")
        if hasattr(original, name)
    }
    if isinstance(original, nn.Linear):
        fields["features"] = original.out_features
    if isinstance(getattr(original, "weight", None), torch.Tensor):
        fields["bias"] = getattr(original, "bias", None) is not None
    return fields


__all__ = [
    "KINDS",
    "SEALED",
    "ModuleSpec",
    "build_replacement",
    "check_seal",
    "is_conflicting",
    "replacement_spec",
    "resize",
    "resized_spec",
]
