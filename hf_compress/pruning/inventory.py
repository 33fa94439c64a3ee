"""All units of a model, whatever its architecture."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from ..errors import CompressionError, UnsupportedModelError
from ..measurement import example_inputs
from .blocks import removable
from .channels import channel_groups
from .encoders import encoder_groups
from .units import UnitGroup


@dataclass
class Inventory:
    """What may go and what has to stay.

    Attributes:
        groups (`list[UnitGroup]`): in the order of the modules.
        kept (`dict[str, str]`): modules whose width has to stay, and why.
    """

    groups: list[UnitGroup]
    kept: dict[str, str]


def find_units(model: nn.Module, *, heads: bool = True, neurons: bool = True, min_channels: int = 1) -> Inventory:
    """Find the units of a convolutional timm network or of a Transformers encoder.

    Args:
        model ([`~transformers.PreTrainedModel`]): not changed.
        heads (`bool`, *optional*, defaults to `True`), neurons (`bool`, *optional*, defaults to `True`): whether
            attention heads and feed-forward neurons of an encoder may go.
        min_channels (`int`, *optional*, defaults to 1): how many channels of a convolution have to stay. Layers that
            have no more than that are left alone; encoder layers may lose all heads and neurons.

    Raises:
        [`UnsupportedModelError`]: for other architectures, by name.
    """
    if hasattr(model, "timm_model"):
        groups, kept = channel_groups(model)
        groups = [replace(group, minimum=min(min_channels, group.size)) for group in groups]
        return Inventory(_with_blocks(model, groups), kept)
    if not hasattr(model, "config"):
        raise UnsupportedModelError(
            f"{type(model).__name__} is no model of Transformers; wrap timm networks with "
            "TimmWrapperForImageClassification."
        )
    groups = encoder_groups(model, heads=heads, neurons=neurons)
    if not groups:
        raise CompressionError(
            f"{type(model).__name__}: got heads={heads} and neurons={neurons}, and nothing is left that may go; allow "
            "one of them, or leave the step out."
        )
    return Inventory(groups, {})


def _with_blocks(model: nn.Module, groups: list[UnitGroup]) -> list[UnitGroup]:
    """`groups`, of which those that are all there is inside a block that can leave know it."""
    try:
        blocks, _ = removable(model, example_inputs(model))
    except CompressionError:  # a network without such blocks
        return groups

    def inside(block: str) -> list[UnitGroup]:
        return [g for g in groups if all(part.module.startswith(f"{block}.") for part in g.slices)]

    homes = {inside(block)[0].name: block for block in blocks if len(inside(block)) == 1}
    return [replace(group, block=homes.get(group.name)) for group in groups]
