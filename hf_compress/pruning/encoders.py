"""Heads and feed-forward neurons of Transformers encoders: where they live in each architecture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import UnsupportedModelError
from ..structure import Constant, LowRankLinear
from .units import Slice, UnitGroup


@dataclass(frozen=True)
class EncoderLayout:
    """Names inside one layer of an architecture.

    Args:
        layer (`str`): class of a layer.
        attention (`str`): the module that splits into heads; it has the attributes `heads` and `attention_head_size`.
        projections (`tuple[str, ...]`): query, key and value.
        attention_output (`str`): the linear layer that reads the heads.
        heads (`str`): attribute of `attention` that counts them.
        widths (`tuple[str, ...]`): attributes of `attention` that are heads times head size.
        feed_forward (`str`): the module the neurons are named for.
        expansion (`str`): the linear layer that makes them.
        contraction (`str`): the linear layer that reads them.
        removable_expansion (`str`): what goes when no neuron is left: a module that keeps the shape of its input.
    """

    layer: str
    attention: str
    projections: tuple[str, ...]
    attention_output: str
    heads: str
    widths: tuple[str, ...]
    feed_forward: str
    expansion: str
    contraction: str
    removable_expansion: str


def _bert_like(layer: str) -> EncoderLayout:
    return EncoderLayout(
        layer=layer,
        attention="attention.self",
        projections=("attention.self.query", "attention.self.key", "attention.self.value"),
        attention_output="attention.output.dense",
        heads="num_attention_heads",
        widths=("all_head_size",),
        feed_forward="intermediate",
        expansion="intermediate.dense",
        contraction="output.dense",
        removable_expansion="intermediate",
    )


LAYOUTS = {
    "bert": _bert_like("BertLayer"),
    "roberta": _bert_like("RobertaLayer"),
    "xlm-roberta": _bert_like("XLMRobertaLayer"),
    "camembert": _bert_like("CamembertLayer"),
    "electra": _bert_like("ElectraLayer"),
    "distilbert": EncoderLayout(
        layer="TransformerBlock",
        attention="attention",
        projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_output="attention.out_lin",
        heads="n_heads",
        widths=("dim",),
        feed_forward="ffn",
        expansion="ffn.lin1",
        contraction="ffn.lin2",
        removable_expansion="ffn.lin1",
    ),
}


def encoder_layout(model: nn.Module) -> EncoderLayout:
    """The layout of `model`'s layers.

    Raises:
        [`UnsupportedModelError`]: for an architecture that is not in `LAYOUTS`, or one set up as a decoder.
    """
    config = model.config
    supported = ", ".join(LAYOUTS)
    if config.model_type not in LAYOUTS:
        raise UnsupportedModelError(
            f"{type(model).__name__} ({config.model_type}) cannot be pruned. Supported are the encoders {supported}, "
            "and convolutional timm networks through TimmWrapperForImageClassification."
        )
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} is set up as a decoder (is_decoder or add_cross_attention in its configuration). "
            f"Supported are {supported} as encoders."
        )
    return LAYOUTS[config.model_type]


def encoder_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every Transformer layer, in order."""
    layout = encoder_layout(model)
    for name, module in model.named_modules():
        if type(module).__name__ == layout.layer:
            yield name, module


def encoder_groups(model: nn.Module, heads: bool = True, neurons: bool = True) -> list[UnitGroup]:
    """Groups of attention heads and of feed-forward neurons, two a layer; none for what a layer has lost already."""
    layout = encoder_layout(model)
    groups = []
    for name, block in encoder_blocks(model):
        attention = block.get_submodule(layout.attention)
        if heads and hasattr(attention, layout.heads):
            groups.append(_head_group(model, name, layout, attention))
        if neurons and not isinstance(block.get_submodule(layout.contraction), Constant):
            groups.append(_neuron_group(model, name, layout))
    return groups


def _head_group(model: nn.Module, block: str, layout: EncoderLayout, attention: nn.Module) -> UnitGroup:
    count = getattr(attention, layout.heads)
    index = torch.arange(count * attention.attention_head_size).view(count, -1)
    slices = [Slice(_maker(model, f"{block}.{name}"), "out", index) for name in layout.projections]
    slices.append(Slice(_reader(model, f"{block}.{layout.attention_output}"), "in", index))
    return UnitGroup(f"{block}.{layout.attention}", "heads", tuple(slices), minimum=0, block=block)


def _neuron_group(model: nn.Module, block: str, layout: EncoderLayout) -> UnitGroup:
    maker = _maker(model, f"{block}.{layout.expansion}")
    index = torch.arange(model.get_submodule(maker).out_features)[:, None]
    reader = Slice(_reader(model, f"{block}.{layout.contraction}"), "in", index)
    name = f"{block}.{layout.feed_forward}"
    return UnitGroup(name, "neurons", (Slice(maker, "out", index), reader), minimum=0, block=block)


def _maker(model: nn.Module, name: str) -> str:
    """The linear layer whose rows are the outputs of `name`: itself, or the second factor of a low-rank one."""
    return _plain_linear(model, f"{name}.up" if isinstance(model.get_submodule(name), LowRankLinear) else name)


def _reader(model: nn.Module, name: str) -> str:
    return _plain_linear(model, f"{name}.down" if isinstance(model.get_submodule(name), LowRankLinear) else name)


def _plain_linear(model: nn.Module, name: str) -> str:
    module = model.get_submodule(name)
    if type(module) is not nn.Linear:
        raise UnsupportedModelError(
            f"{name} is a {type(module).__name__}; pruning knows Linear and LowRankLinear. Merge adapters or "
            "dequantize before pruning."
        )
    return name
