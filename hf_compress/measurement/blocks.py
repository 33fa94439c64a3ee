"""Where the repeated blocks of a model are: what the scope `encoder` counts."""

from __future__ import annotations

import re
from collections import Counter

from torch import nn

from ..errors import CompressionError


# below the base model, in the order they are looked for
CONTAINERS = (
    "encoder.layer",  # BERT, RoBERTa, ELECTRA, ViT, ...
    "encoder.layers",
    "encoder.stages",
    "encoder.block",
    "encoder.albert_layer_groups",
    "transformer.layer",  # DistilBERT
    "transformer.h",
    "blocks",  # timm's vision transformers, EfficientNets, ...
    "stages",  # timm's ConvNeXts, ...
    "layers",
    "h",
)
STAGE = re.compile(r"(layer|stage|s|block)\d+")  # timm's ResNets (layer1 ... layer4), RegNets (s1 ... s4)


def encoder_modules(model: nn.Module) -> list[nn.Module]:
    """
    The repeated blocks of a model, without embeddings, stem, pooler and head.

    Args:
        model (`nn.Module`):
            The layers of a Transformers encoder, the stages (`layer1`, `layer2`, ...) or blocks of a timm network, or
            of any other model the largest `ModuleList` or `Sequential` that holds at least two blocks of one type.

    Returns:
        `list[nn.Module]`: disjoint modules in the order of the forward pass.

    Raises:
        [`CompressionError`]: where no blocks repeat.
    """
    base = getattr(model, getattr(model, "base_model_prefix", "") or "", model)
    for path in CONTAINERS:
        container = _descend(base, path)
        if isinstance(container, nn.ModuleList | nn.Sequential) and len(container):
            return list(container)
    stages = [child for name, child in base.named_children() if STAGE.fullmatch(name)]
    if len(stages) > 1:
        return stages
    containers = [module for module in base.modules() if _repeats(module)]
    if not containers:
        raise CompressionError(
            f"{type(model).__name__} has no repeated blocks; use the scope 'model' for it, or put its blocks into a "
            "ModuleList."
        )
    return list(max(containers, key=lambda module: sum(p.numel() for p in module.parameters())))


def _descend(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _repeats(module: nn.Module) -> bool:
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        return False
    types = Counter(type(child) for child in module if any(True for _ in child.children()))
    return bool(types) and max(types.values()) > 1
