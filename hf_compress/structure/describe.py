"""Find the structure of a model: how its modules differ from those that its config alone would build."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import meta_device_safe_creation_ops

from ..errors import StructureError
from .attributes import plain_attributes, structural_attributes
from .specs import (
    SEALED,
    ModuleSpec,
    build_replacement,
    is_conflicting,
    replacement_spec,
    resized_spec,
)


# Hooks of these packages observe, or place tensors; they do not change the result.
_HARMLESS_HOOKS = ("transformers.", "accelerate.", "peft.")


def build_skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """Build, on the meta device, the model that `model.config` alone describes.

    Raises:
        StructureError: if the class of `model` cannot be built from its config.
    """
    if not isinstance(model, PreTrainedModel):
        raise StructureError(
            f"Got a {_title(model)}; only the structure of a `PreTrainedModel` can be kept. Wrap timm networks with "
            "`TimmWrapperForImageClassification`; merge PEFT adapters first (`merge_and_unload`)."
        )
    try:
        with torch.device("meta"), meta_device_safe_creation_ops():
            return type(model)(copy.deepcopy(model.config), **_options(model))
    except Exception as error:  # whatever a third-party constructor raises, the model is not described by its config
        raise StructureError(
            f"{type(model).__name__} cannot be built from its own config ({type(error).__name__}: {error}), so it "
            "could not be loaded back either. Make the config describe the model, or load it with `from_pretrained`."
        ) from error


def _options(model: PreTrainedModel) -> dict[str, bool]:
    """What the constructor was told beside the config: base models can be built without a pooler."""
    takes = "add_pooling_layer" in inspect.signature(type(model).__init__).parameters
    return {"add_pooling_layer": False} if takes and model._modules.get("pooler") is None else {}


def describe(model: PreTrainedModel, skeleton: nn.Module | None = None) -> dict[str, ModuleSpec]:
    """Describe how `model` differs from what its config alone would build.

    Args:
        model (`PreTrainedModel`): any model of Transformers, or of timm through its wrapper.
        skeleton (`nn.Module`, *optional*): what to compare with; built from `model.config` if not given.

    Returns:
        `dict[str, ModuleSpec]`: a plain-JSON spec by module name (see `specs`), empty where nothing differs. Values of
        weights, dtypes and devices do not belong to the structure.

    Raises:
        StructureError: for a difference that could not be stored and rebuilt; the message names the module.
    """
    if skeleton is None:
        skeleton = build_skeleton(model)
    specs = dict(_differences("", model, skeleton))
    if specs and not any(is_conflicting(spec) for spec in specs.values()):
        name, spec = next(iter(specs.items()))
        raise StructureError(
            f"{name or type(model).__name__}: {spec['attributes'] or spec['shapes']} differs from what the config "
            "describes, but no weight has another shape, so a program without hf_compress would load the model and "
            "compute something else. Put it back, or express it in the config."
        )
    return specs


def check_describable(model: PreTrainedModel) -> None:
    """Refuse, before surgery, a model with what could not be stored after it.

    Raises:
        StructureError: as [`describe`].
    """
    for _ in _differences("", model, build_skeleton(model)):
        pass


def _differences(name: str, module: nn.Module, original: nn.Module) -> Iterator[tuple[str, ModuleSpec]]:
    _check_unpatched(name, module)
    if type(module) in SEALED and type(module) is not type(original):
        yield name, _describe_replacement(name, module, original)
        return
    if type(module) is not type(original):
        raise StructureError(
            f"{name}: a {_title(module)} stands where the config describes a {_title(original)}. Only "
            f"{', '.join(cls.__name__ for cls in SEALED)} can replace a module; merge adapters and undo other "
            "quantizations first."
        )
    shapes, attributes = _tensor_differences(name, module, original), _attribute_differences(name, module, original)
    if shapes or attributes:
        yield name, resized_spec(module, shapes, attributes)
    for child in [*original._modules, *(key for key in module._modules if key not in original._modules)]:
        path = f"{name}.{child}" if name else child
        mine, theirs = module._modules.get(child), original._modules.get(child)
        if mine is None and theirs is None:
            continue
        if mine is None:
            raise StructureError(
                f"{path}: the config describes a {_title(theirs)}, which the model lacks. Put "
                "`Removed.replacing(module)` in its place, or express the change in the config."
            )
        if theirs is None:
            raise StructureError(f"{path}: the config does not describe this {_title(mine)}; take it out to save.")
        yield from _differences(path, mine, theirs)


def _describe_replacement(name: str, module: nn.Module, original: nn.Module) -> ModuleSpec:
    try:
        spec = replacement_spec(module, original)
        fresh = build_replacement(spec, original)
    except StructureError as error:
        raise StructureError(f"{name}: {error}") from error
    inside = dict(_differences(name, module, fresh))
    if inside:
        raise StructureError(f"{next(iter(inside))}: it does not fit the {type(module).__name__} it is part of.")
    return spec


def _tensor_differences(name: str, module: nn.Module, original: nn.Module) -> dict[str, list[int | None] | None]:
    shapes: dict[str, list[int | None] | None] = {}
    for kind in ("_parameters", "_buffers"):
        mine, theirs = getattr(module, kind), getattr(original, kind)
        for key in [*theirs, *(key for key in mine if key not in theirs)]:
            stored = kind == "_parameters" or key not in module._non_persistent_buffers_set
            if key not in theirs:
                if stored:
                    raise StructureError(f"{name}: a {_title(module)} has no {key!r} of its own; take it out to save.")
                continue  # a buffer that is not stored, and which the class does not know
            tensor, expected = mine.get(key), theirs[key]
            shape = None if tensor is None else list(tensor.shape)
            if shape == (None if expected is None else list(expected.shape)):
                continue
            if not stored:
                raise StructureError(
                    f"{name}.{key}: this buffer is not stored with the weights, so its shape {shape} cannot differ "
                    f"from {list(expected.shape)}. Express the change in the config."
                )
            if shape is not None and expected is not None and len(shape) == expected.dim():
                shape = [None if size == dense else size for size, dense in zip(shape, expected.shape, strict=True)]
            shapes[key] = shape
    return shapes


def _attribute_differences(name: str, module: nn.Module, original: nn.Module) -> dict[str, Any]:
    known, mine, theirs = structural_attributes(module), plain_attributes(module), plain_attributes(original)
    differing = {key: mine[key] for key in theirs if key in mine and mine[key] != theirs[key]}
    unknown = [key for key in differing if key not in known]
    # A model keeps many settings beside its config; only its modules can be expected to have none.
    if unknown and not isinstance(module, PreTrainedModel):
        key = unknown[0]
        raise StructureError(
            f"{name}: {key} of this {_title(module)} is {mine[key]!r}, where the config gives {theirs[key]!r}, and it "
            f"is not known as part of the structure. Put it back, or declare it with "
            f"`register_attributes({type(module).__name__}, [{key!r}])`."
        )
    return {key: value for key, value in differing.items() if key in known}


def _check_unpatched(name: str, module: nn.Module) -> None:
    attributes = vars(module)
    # Accelerate wraps `forward` for autocast or placement, and keeps the original beside it.
    wrapped = "_original_forward" in attributes or "_hf_hook" in attributes
    for key, value in attributes.items():
        if callable(value) and not isinstance(value, nn.Module) and callable(getattr(type(module), key, None)):
            if not (key == "forward" and wrapped):
                raise StructureError(
                    f"{name or _title(module)}: its {key} has been replaced on the instance, which cannot be stored. "
                    f"Undo it (`del module.{key}`) before saving."
                )
    for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]:
        origin = getattr(hook, "__module__", None) or type(hook).__module__
        if not origin.startswith(_HARMLESS_HOOKS):
            raise StructureError(
                f"{name or _title(module)}: a forward hook from {origin} is registered, which cannot be stored. "
                "Remove it before saving."
            )


def _title(module: nn.Module) -> str:
    kind = type(module)
    return kind.__name__ if kind.__module__.startswith("torch.") else f"{kind.__module__}.{kind.__name__}"
