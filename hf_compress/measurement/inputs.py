"""Inputs of the right names and shapes for a model, made from its configuration."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import CompressionError
from .states import device_of


if TYPE_CHECKING:
    from ..registry import Batch


DEFAULT_LENGTH = 128  # tokens, where neither the caller nor the model's positions say otherwise


def example_inputs(model: nn.Module, batch: int = 1, length: int | None = None, seed: int = 0) -> Batch:
    """
    Inputs for `model(**inputs)` with reproducible random content and no padding.

    Args:
        model ([`~transformers.PreTrainedModel`] or `OVModel`):
            A model of tokens (`main_input_name` is `"input_ids"`) or of images (`"pixel_values"`).
        batch (`int`, *optional*, defaults to 1):
            Number of examples.
        length (`int`, *optional*):
            Tokens of an example; by default 128, or fewer where the model has fewer positions. Images take their size
            from the model's configuration, and no length.
        seed (`int`, *optional*, defaults to 0):
            Seed of the content. The global generators are left alone.

    Returns:
        `dict[str, torch.Tensor]`: on the model's device; `input_ids`, `attention_mask` and, where the model knows
        segments, `token_type_ids`, each of shape `(batch, length)`; or float32 `pixel_values` of shape `(batch,
        channels, height, width)`. On the meta device there is no `attention_mask`, because its content would be looked
        at.

    Raises:
        [`CompressionError`]: for a length that the model cannot take, or a model of other inputs.
    """
    if batch < 1:
        raise CompressionError(f"batch: got {batch}; give the number of examples, at least 1.")
    if type(model).__name__.endswith("ForMultipleChoice"):
        raise CompressionError(
            f"{type(model).__name__} reads several texts an example, and inputs for that are not made here; compress "
            "the encoder with another head, or give the inputs yourself."
        )
    name = _main_input(model)
    generator = torch.Generator().manual_seed(seed)
    if name == "pixel_values":
        if length is not None:
            raise CompressionError(f"length: got {length} for a model of images; leave it out, or null in a recipe.")
        return {name: torch.randn(batch, *image_size(model), generator=generator).to(device_of(model))}
    if name == "input_ids":
        return _tokens(model, batch, _checked_length(model, length), generator)
    raise CompressionError(
        f"{type(model).__name__} takes {name!r}; example inputs can be made for models of input_ids or pixel_values. "
        "Give the inputs yourself."
    )


def image_size(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images that `model` was configured for."""
    config = model.config
    pretrained = getattr(config, "pretrained_cfg", None)
    if not pretrained and hasattr(model, "timm_model"):
        pretrained = model.timm_model.pretrained_cfg
    if pretrained and pretrained.get("input_size"):
        return tuple(pretrained["input_size"])
    size = getattr(config, "image_size", None)
    if size is None:
        raise CompressionError(
            f"The configuration of {type(model).__name__} states no image size; give config.image_size, or "
            "config.pretrained_cfg['input_size'] for a timm model, or give the inputs yourself."
        )
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(config, "num_channels", 3), height, width


def max_length(model: nn.Module) -> int | None:
    """The longest sequence, in tokens, that the position table of `model` allows; `None` where there is none."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if not positions or positions < 0:
        return None
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        # RoBERTa and its kin count positions from padding_idx + 1
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return positions - module.padding_idx - 1
    return positions


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the forward of `model`, or an exported model, has an input called `name`."""
    if not isinstance(model, nn.Module):
        return name in model.input_names
    return name in inspect.signature(model.forward).parameters


def _main_input(model: nn.Module) -> str | None:
    if isinstance(model, nn.Module):
        return getattr(model, "main_input_name", None)
    names = getattr(model, "input_names", ())
    return next((name for name in ("pixel_values", "input_ids") if name in names), None)


def has_segments(model: nn.Module) -> bool:
    """Whether the model tells a first from a second text."""
    # an export has the input only if its model had segments
    return not isinstance(model, nn.Module) or (getattr(model.config, "type_vocab_size", 0) or 0) > 1


def _checked_length(model: nn.Module, length: int | None) -> int:
    limit = max_length(model)
    if length is None:
        return DEFAULT_LENGTH if limit is None else min(DEFAULT_LENGTH, limit)
    if length < 1 or (limit is not None and length > limit):
        allowed = "at least 1" if limit is None else f"1 to {limit}"
        raise CompressionError(f"length: got {length}; {type(model).__name__} takes {allowed} tokens.")
    return length


def _tokens(model: nn.Module, batch: int, length: int, generator: torch.Generator) -> Batch:
    config, device = model.config, device_of(model)
    padding = getattr(config, "pad_token_id", None)
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
    if padding is not None:  # some models derive positions or a mask from the padding token
        ids[ids == padding] = (padding + 1) % config.vocab_size
    inputs = {"input_ids": ids.to(device)}
    if accepts(model, "attention_mask") and device.type != "meta":
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if accepts(model, "token_type_ids") and has_segments(model):
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    return inputs
