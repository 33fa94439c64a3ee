"""Give a model the structure that a description says; the reverse of `describe`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import StructureError
from ..registry import nearest
from .specs import KINDS, build_replacement, resize


def rebuild(model: nn.Module, specs: Mapping[str, Mapping[str, Any]]) -> None:
    """Change `model`, fresh from its config, in place into the structure that `specs` describe.

    New tensors are zeros on the device and with the dtype of those they replace, so this works on the meta device;
    load the weights afterwards. Nothing is imported or executed for a spec: kinds, attributes and tensors are looked
    up among those that the package and the model have.

    Args:
        model (`nn.Module`): what the config alone describes.
        specs (`Mapping[str, ModuleSpec]`): as returned by `describe`.

    Raises:
        StructureError: if a module does not exist, or a spec is not valid or does not fit it.
    """
    for name, spec in specs.items():
        try:
            _apply(model, name, spec)
        except StructureError as error:
            raise StructureError(f"quantization_config.modules[{name!r}]: {error}") from error


def _apply(model: nn.Module, name: str, spec: Any) -> None:
    if not isinstance(spec, Mapping) or not isinstance(spec.get("kind"), str):
        raise StructureError(f"got {spec!r}; a spec is a mapping with the key 'kind'.")
    kind = spec["kind"]
    if kind not in KINDS:
        raise StructureError(
            f"unknown kind {kind!r}{nearest(kind, KINDS)}; this version of hf_compress knows {', '.join(KINDS)}."
        )
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        raise StructureError(f"the model that the config describes has no such module{nearest(name, modules)}.")
    if kind == "Resized":
        resize(modules[name], spec)
        return
    if not name:
        raise StructureError("the whole model cannot be replaced.")
    parent, _, child = name.rpartition(".")
    modules[parent]._modules[child] = build_replacement(spec, modules[name])
