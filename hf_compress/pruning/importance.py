"""What to cut: scores of units. Higher is better; only the order matters to the selection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .units import Slice, UnitGroup, is_depthwise


def magnitude_scores(model: nn.Module, groups: Sequence[UnitGroup], power: int = 2) -> dict[str, Tensor]:
    """Mean magnitude of each unit's weights, relative to the other weights of the same layers.

    Of a layer that makes the units their rows count, of one that reads them their columns. Every weight is taken to
    `power` and divided by the mean over its layer, so that layers of different scale, and units of different size (a
    head has a hundred times the weights of a neuron), can be compared: a unit scores 1 if its weights are as large as
    those of its neighbours.

    Args:
        model (`nn.Module`): the model the groups were found in.
        groups (`Sequence[UnitGroup]`): its groups.
        power (`int`, *optional*, defaults to 2): 1 for L1, 2 for L2.

    Returns:
        `dict[str, Tensor]`: name of a group -> float64 scores of shape `(size,)`.
    """
    scores = {}
    for group in groups:
        total = torch.zeros(group.size, dtype=torch.float64)
        weights = 0
        for part in group.slices:
            module = model.get_submodule(part.module)
            if isinstance(module, nn.Linear | nn.Conv2d):
                energy, count = _relative_energy(module, part, power)
                total += energy
                weights += count
        scores[group.name] = total / max(weights, 1)
    return scores


def _relative_energy(module: nn.Module, part: Slice, power: int) -> tuple[Tensor, int]:
    """Relative energy of each unit's weights in one module, and how many weights a unit has there."""
    weight = module.weight.detach().abs().pow(power)
    line = 1 if part.side == "in" and not is_depthwise(module) else 0
    by_line = weight.sum([dim for dim in range(weight.dim()) if dim != line], dtype=torch.float64)
    length = weight.numel() // len(by_line)
    mean = by_line.sum() / weight.numel()
    if mean == 0:  # all zero: nothing tells the units apart
        by_line, mean = torch.full_like(by_line, length), torch.ones_like(mean)
    energy = (by_line / mean).cpu()[part.index].sum(1)
    return energy, part.positions * length


def quantiles(scores: Tensor) -> Tensor:
    """Rank of each score among its own, from 0 to 1: with these, every group loses the same fraction."""
    ranks = torch.empty_like(scores)
    ranks[torch.argsort(scores, stable=True)] = torch.arange(len(scores), dtype=scores.dtype)
    return (ranks + 0.5) / len(scores)
