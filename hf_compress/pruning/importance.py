"""What to cut: scores of units. Higher is better; only the order matters to the selection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import CompressionError
from ..measurement import evaluating
from .blocks import run
from .units import Slice, UnitGroup, is_depthwise


if TYPE_CHECKING:
    from ..registry import Batch


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
    weight = module.weight.detach()  # squares of half precision would have few digits left
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32)).abs().pow(power)
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


def distance_scores(model: nn.Module, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """How far each unit's weights are from those of the other units of its group, relative to the mean.

    A unit near the geometric median of its layer can be replaced by others (FPGM, He et al. 2019,
    https://arxiv.org/abs/1811.00250).

    Returns:
        `dict[str, Tensor]`: name of a group -> float64 scores, `(size,)`; the mean of a group is 1.
    """
    scores = {}
    for group in groups:
        relative = []
        for part in group.producers:
            module = model.get_submodule(part.module)
            if isinstance(module, nn.Linear | nn.Conv2d):
                rows = module.weight.detach().flatten(1).double().cpu()[part.index].flatten(1)
                distances = torch.cdist(rows, rows).sum(1)
                mean = distances.mean()
                relative.append(torch.ones_like(distances) if mean == 0 else distances / mean)
        # without a layer that makes them nothing tells the units apart
        scores[group.name] = torch.stack(relative).mean(0) if relative else torch.ones(group.size).double()
    return scores


def lamp_scores(model: nn.Module, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """The energy of each unit's weights as a share of that of all units of its group with no less.

    The last unit of a group has the share 1 whatever its layer's scale, so that no layer vanishes (LAMP, Lee et al.
    2021, https://arxiv.org/abs/2010.07611, here for whole units).

    Returns:
        `dict[str, Tensor]`: name of a group -> float64 scores in (0, 1], `(size,)`.
    """
    scores = {}
    for name, energy in magnitude_scores(model, groups).items():
        order = torch.argsort(energy, stable=True)
        rest = energy[order].flip(0).cumsum(0).flip(0)
        share = torch.empty_like(energy)
        share[order] = torch.where(rest > 0, energy[order] / rest, 0.0)
        scores[name] = share
    return scores


def norm_scale_scores(model: nn.Module, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """The mean absolute scale that batch normalizations give each channel (Liu et al. 2017,
    https://arxiv.org/abs/1708.06519).

    Args:
        model (`nn.Module`): the model the groups were found in.
        groups (`Sequence[UnitGroup]`): those for which [`norm_scales`] finds any.

    Returns:
        `dict[str, Tensor]`: name of a group -> float64 scores, `(size,)`.
    """
    scores = {}
    for group in groups:
        scales = [scale.detach().abs().double().cpu()[part.index].mean(1) for scale, part in norm_scales(model, group)]
        scores[group.name] = torch.stack(scales).mean(0)
    return scores


def norm_scales(model: nn.Module, group: UnitGroup) -> list[tuple[Tensor, Slice]]:
    """The scales that batch normalizations give the channels of a group, and where in them these are."""
    modules = [(model.get_submodule(part.module), part) for part in group.producers]
    return [(m.weight, part) for m, part in modules if isinstance(m, _BatchNorm) and m.weight is not None]


def random_scores(groups: Sequence[UnitGroup], generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform scores: what every criterion has to beat."""
    return {group.name: torch.rand(group.size, generator=generator, dtype=torch.float64) for group in groups}


def activation_scores(model: nn.Module, groups: Sequence[UnitGroup], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The mean absolute value of what is read from each unit, over examples and positions, relative to its group.

    Args:
        batches (`Iterable[Batch]`): inputs; tokens that the attention mask leaves out do not count.

    Returns:
        `dict[str, Tensor]`: name of a group -> float64 scores, `(size,)`; the mean of a group is 1.

    Raises:
        `CompressionError`: without examples.
    """
    readers: dict[str, list[tuple[UnitGroup, Slice]]] = {}
    for group in groups:
        for part in group.consumers:
            readers.setdefault(part.module, []).append((group, part))
    sums = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
    totals: dict[str, Tensor] = {}
    counts = dict.fromkeys(readers, 0)
    mask: list[Tensor | None] = [None]

    def watch(name: str):
        def add(module: nn.Module, args: tuple) -> None:
            sizes = args[0].detach().abs()
            if isinstance(module, nn.Conv2d):
                by_position = sizes.flatten(2).mean(2)  # images of one size
            elif mask[0] is not None and sizes.shape[:2] == mask[0].shape:
                by_position = sizes[mask[0].to(sizes.device)]
            else:
                by_position = sizes.flatten(0, -2)
            totals[name] = totals.get(name, 0) + by_position.double().sum(0).cpu()
            counts[name] += len(by_position)

        return add

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in readers]
    try:
        with evaluating(model):
            for batch in batches:
                attention = batch.get("attention_mask")
                mask[0] = attention.bool() if attention is not None and attention.dim() == 2 else None
                run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if not totals:
        raise CompressionError("calibration: the data has no example to look at; give at least one.")
    for name, total in totals.items():
        for group, part in readers[name]:
            sums[group.name] += (total / counts[name])[part.index].mean(1)
    means = {name: values.mean() for name, values in sums.items()}
    return {
        name: torch.ones_like(values) if means[name] == 0 else values / means[name] for name, values in sums.items()
    }


def look_alikes(model: nn.Module, groups: Sequence[UnitGroup]) -> list[list[UnitGroup]]:
    """The groups, together with those whose units the same kinds of layers of the same shapes make and read."""
    kinds: dict[tuple, list[UnitGroup]] = {}
    for group in groups:
        shapes = Counter(_shape(model.get_submodule(part.module), part.side) for part in group.slices)
        kinds.setdefault((group.kind, group.size, *sorted(shapes.items())), []).append(group)
    return list(kinds.values())


def shared_quantiles(
    model: nn.Module,
    groups: Sequence[UnitGroup],
    scores: Mapping[str, Tensor],
    alike: Iterable[Sequence[UnitGroup]] | None = None,
) -> dict[str, Tensor]:
    """Rank of each score among those of all groups that look alike, from 0 to 1.

    This is the isomorphic scope of Fang et al. 2024 (https://arxiv.org/abs/2407.04616): what looks alike is ranked
    together, and every kind of group loses the same fraction.
    """
    found = {}
    for kind in look_alikes(model, groups) if alike is None else alike:
        names = [group.name for group in kind if group.name in scores]
        if not names:
            continue
        ranks = quantiles(torch.cat([scores[name] for name in names]))
        found.update(zip(names, ranks.split([len(scores[name]) for name in names]), strict=True))
    return found


def _shape(module: nn.Module, side: str) -> tuple:
    return type(module).__name__, side, *(() if module.weight is None else module.weight.shape)
