"""Units: the smallest parts that can leave a network, and where each of them lives.

A unit is a channel of a convolution, an attention head or a neuron of a feed-forward layer. Units that can take each
other's place form a `UnitGroup`. A group says which rows and columns of which modules belong to which of its units;
scoring, masking, counting and surgery need to know no more, whatever the architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


Selection = Mapping[str, Tensor]  # name of a group -> bool of shape (size,), True where the unit stays


@dataclass(frozen=True, eq=False)
class Slice:
    """The part of one module that belongs to the units of a group.

    Args:
        module (`str`): name of a `Linear`, `Conv2d` or batch normalization.
        side (`str`): `"out"` for what the module makes (rows of the weight, the bias, the channels of a normalization
            or of a depthwise convolution), `"in"` for what it reads (columns of the weight).
        index (`torch.LongTensor` of shape `(units, positions)`): the positions along that side, a row a unit.
    """

    module: str
    side: str
    index: Tensor

    @property
    def positions(self) -> int:
        """Positions a unit takes."""
        return self.index.shape[1]


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Units that are ranked together within a layer, or within layers that share their channels.

    Args:
        name (`str`): the module whose width the group is.
        kind (`str`): `"channels"`, `"heads"` or `"neurons"`.
        slices (`tuple[Slice, ...]`): all places the units live in, at least one of them on an `"in"` side.
        minimum (`int`): how many units have to stay; 0 where the layer can do without any.
        block (`str`, *optional*): for heads and neurons, the Transformer layer they belong to; for channels, the
            residual block that can leave with all of them.
    """

    name: str
    kind: str
    slices: tuple[Slice, ...]
    minimum: int = 1
    block: str | None = None

    @property
    def size(self) -> int:
        return self.slices[0].index.shape[0]

    @property
    def removable(self) -> bool:
        """Whether all units may go at once below the minimum, with the block around them."""
        return self.kind == "channels" and self.block is not None

    @property
    def consumers(self) -> tuple[Slice, ...]:
        """The places that read the units' outputs: the unit is gone when it reads as zero here."""
        return tuple(part for part in self.slices if part.side == "in")

    @property
    def producers(self) -> tuple[Slice, ...]:
        return tuple(part for part in self.slices if part.side == "out")


def full_selection(groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """The selection that keeps every unit."""
    return {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}


def widths(selection: Selection) -> dict[str, int]:
    """How many units of each group stay."""
    return {name: int(keep.sum()) for name, keep in selection.items()}


def removed_positions(groups: Sequence[UnitGroup], selection: Selection) -> dict[tuple[str, str], Tensor]:
    """`(module, side)` -> sorted positions that go, over all groups that share the module."""
    gone: dict[tuple[str, str], list[Tensor]] = {}
    for group in groups:
        drop = ~selection[group.name]
        if drop.any():
            for part in group.slices:
                gone.setdefault((part.module, part.side), []).append(part.index[drop].flatten())
    return {key: torch.cat(parts).sort().values for key, parts in gone.items()}


def remaining_groups(groups: Sequence[UnitGroup], selection: Selection) -> list[UnitGroup]:
    """The groups as they stand after `selection` was cut out: positions close up, empty groups are gone."""
    gone = removed_positions(groups, selection)
    removed = tuple(f"{group.block}." for group in groups if group.removable and not selection[group.name].any())
    nothing = torch.empty(0, dtype=torch.long)
    left = []
    for group in groups:
        keep = selection[group.name]
        if not keep.any():
            continue
        slices = []
        for part in group.slices:
            if part.module.startswith(removed):
                continue
            index = part.index[keep]
            before = torch.searchsorted(gone.get((part.module, part.side), nothing), index)
            slices.append(replace(part, index=index - before))
        left.append(replace(group, slices=tuple(slices), minimum=min(group.minimum, int(keep.sum()))))
    return left


def side_size(module: nn.Module, side: str) -> int:
    """How many positions `module` has along `side`."""
    if isinstance(module, nn.Linear):
        return module.out_features if side == "out" else module.in_features
    if isinstance(module, nn.Conv2d):
        return module.out_channels if side == "out" else module.in_channels
    return module.num_features


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution keeps its channels apart, so that it passes units on instead of reading them."""
    return isinstance(module, nn.Conv2d) and module.groups > 1 and module.groups == module.in_channels
