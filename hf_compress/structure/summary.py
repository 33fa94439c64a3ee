"""A structure in a few words: what is left of each module, and of how much."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .describe import build_skeleton, describe
from .specs import ModuleSpec


_HEADS = ("num_attention_heads", "n_heads", "num_heads")
_WIDTHS = ("out_features", "out_channels")


def structural_summary(model: PreTrainedModel) -> dict[str, dict[str, int]]:
    """Say for each compressed module what is left, and what the config alone would build.

    Args:
        model (`PreTrainedModel`): a compressed model.

    Returns:
        `dict[str, dict[str, int]]`: by module name, one of `{"width": 24, "of": 64}` (output features or channels),
        `{"heads": 3, "of": 12}`, `{"rank": 8, "of": 32}` (with `"width"` where that is pruned, too) or
        `{"blocks": 0, "of": 1}` (a removed block). Modules that only follow their neighbours are left out.
    """
    skeleton = build_skeleton(model)
    modules = dict(skeleton.named_modules(remove_duplicate=False))
    lines = {name: _line(spec, modules[name]) for name, spec in describe(model, skeleton).items()}
    return {name: line for name, line in lines.items() if line}


def _line(spec: ModuleSpec, original: nn.Module) -> dict[str, int]:
    kind = spec["kind"]
    if kind == "Resized":
        for word, names in (("heads", _HEADS), ("width", _WIDTHS)):
            for name in names:
                if name in spec["attributes"]:
                    return {word: spec["attributes"][name], "of": getattr(original, name)}
        return {}
    if kind in ("LowRankLinear", "LowRankConv2d"):
        line = {"rank": spec["rank"], "of": _full_rank(original)}
        for name in _WIDTHS:
            if name in spec:
                line["width"] = spec[name]
        return line
    return _removed(original) if kind == "Removed" or spec["returns"] == "tuple" else {}


def _removed(original: nn.Module) -> dict[str, int]:
    for name in _HEADS:
        if hasattr(original, name):
            return {"heads": 0, "of": getattr(original, name)}
    children = [module for module in original.modules() if isinstance(module, nn.Linear)]
    if len(children) == 1:
        return {"width": 0, "of": children[0].out_features}
    return {"blocks": 0, "of": 1}


def _full_rank(original: nn.Module) -> int | Any:
    weight: Any = original.weight
    return min(weight.shape[0], weight[0].numel())
