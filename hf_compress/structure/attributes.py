"""Which plain attributes of a module belong to its structure, and which may differ without changing its result."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from torch import nn

from ..models.cifar_resnet import PadShortcut


NOT_PLAIN = object()

_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")

_ATTRIBUTES: dict[type[nn.Module], set[str]] = {
    nn.Linear: {"in_features", "out_features"},
    nn.Conv1d: {*_CONVOLUTION},
    nn.Conv2d: {*_CONVOLUTION},
    nn.Conv3d: {*_CONVOLUTION},
    nn.modules.batchnorm._BatchNorm: {"num_features", "eps"},
    nn.LayerNorm: {"normalized_shape", "eps"},
    nn.GroupNorm: {"num_groups", "num_channels", "eps"},
    nn.Embedding: {"num_embeddings", "embedding_dim", "padding_idx"},
    PadShortcut: {"in_channels", "out_channels", "stride", "before"},
    # Widths that blocks, attention modules and whole networks of Transformers and timm keep beside their weights.
    nn.Module: {
        "in_features",
        "out_features",
        "in_channels",
        "out_channels",
        "stride",
        "groups",
        "num_features",
        "head_hidden_size",
        "hidden_size",
        "embed_dim",
        "dim",
        "attn_dim",
        "num_attention_heads",
        "num_heads",
        "n_heads",
        "num_key_value_heads",
        "num_key_value_groups",
        "attention_head_size",
        "head_dim",
        "all_head_size",
    },
}

# Matter in training or for bookkeeping only: not stored, and free to differ.
_IGNORED = frozenset(
    {
        "training",
        "gradient_checkpointing",
        "grad_checkpointing",
        "p",
        "drop_prob",
        "drop_rate",
        "momentum",
        "inplace",
        "layer_idx",
        "num_classes",
        "num_labels",
    }
)


def register_attributes(cls: type[nn.Module], names: Iterable[str]) -> None:
    """Declare plain attributes of a module class that surgery may change, so that they are stored and restored.

    Args:
        cls (`type`): the class they belong to, and its subclasses.
        names (`Iterable[str]`): attributes holding `None`, a boolean, number or string, or a tuple of those.
    """
    _ATTRIBUTES.setdefault(cls, set()).update(names)


def structural_attributes(module: nn.Module) -> set[str]:
    """The names that `register_attributes` knows for the class of `module` and its bases."""
    return set().union(*(_ATTRIBUTES.get(cls, ()) for cls in type(module).__mro__))


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """The public plain attributes of `module` as JSON values (tuples become lists), without those free to differ."""
    values = {
        name: to_plain(value)
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _IGNORED
    }
    return {name: value for name, value in values.items() if value is not NOT_PLAIN}


def to_plain(value: Any) -> Any:
    """`value` as JSON knows it, or `NOT_PLAIN` where it is no plain value."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):  # also NumPy's
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, tuple | list):
        items = [to_plain(item) for item in value]
        return NOT_PLAIN if any(item is NOT_PLAIN for item in items) else items
    return NOT_PLAIN
