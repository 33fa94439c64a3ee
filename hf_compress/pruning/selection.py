"""How much: which units stay, so that a budget is met as closely as whole units allow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..allocate import Choice, allocate
from .costs import CostModel
from .elimination import Order
from .units import UnitGroup


class Costs(Protocol):
    """What units cost, whatever the figure."""

    now: float  # with all of them

    def total(self, kept: Mapping[str, int]) -> float:
        """The figure when `kept` units of each group stay."""

    def change(self, kept: Mapping[str, int], name: str, width: int) -> float:
        """What the figure gains when the group `name` has another width than in `kept`."""

    def widths(self, group: UnitGroup) -> Collection[int]:
        """The widths of a group among which the figure can tell."""


# A selection that falls below its budget by more than this share looks for units of a better size.
CLOSE_ENOUGH = 0.005


@dataclass(frozen=True)
class _Chunk:
    """Units of one group that go together, so that what is left is a multiple of `round_to`.

    They are those at `start` to `stop` of the group's units in the order of their scores.
    """

    score: float
    group: int
    start: int
    stop: int


def narrowest(group: UnitGroup, round_to: int = 1) -> int:
    """The smallest width that `group` may come to: its minimum, rounded up, and never above its size."""
    step = 1 if group.kind == "heads" else round_to
    return min(group.size, -(-group.minimum // step) * step)


def floor(groups: Sequence[UnitGroup], costs: CostModel, round_to: int = 1) -> float:
    """The lowest figure that can be reached."""
    return costs.total({group.name: narrowest(group, round_to) for group in groups})


def select(
    groups: Sequence[UnitGroup], scores: Mapping[str, Tensor], costs: CostModel, budget: float, round_to: int = 1
) -> dict[str, Tensor]:
    """Give up the units with the lowest scores until the budget is met, then take back what still fits.

    Args:
        groups (`Sequence[UnitGroup]`): all groups.
        scores (`Mapping[str, Tensor]`): name of a group -> scores of shape `(size,)`, comparable across groups.
        costs ([`CostModel`]): what the units cost.
        budget (`float`): the figure to come down to; at least `floor(groups, costs, round_to)`.
        round_to (`int`, *optional*, defaults to 1): widths of channels and neurons become multiples of this, except
            where nothing is removed.

    Returns:
        `dict[str, Tensor]`: for each group which units stay, bool of shape `(size,)`.
    """
    chunks: list[_Chunk] = []
    for index, group in enumerate(groups):
        chunks += _chunks(index, group, scores[group.name], round_to)
    chunks.sort(key=lambda chunk: (chunk.score, chunk.group, chunk.start))
    kept = _kept(groups, _given_up(groups, chunks, costs, budget))
    selection = {}
    for group in groups:
        keep = torch.ones(group.size, dtype=torch.bool)
        keep[_order(scores[group.name])[: group.size - kept[group.name]]] = False
        selection[group.name] = keep
    return selection


def _order(scores: Tensor) -> Tensor:
    return torch.argsort(scores, stable=True)


def _given_up(groups: Sequence[UnitGroup], chunks: list[_Chunk], costs: CostModel, budget: float) -> list[_Chunk]:
    """The chunks that go: the first ones, unless the last of them is too large and smaller ones do as well."""
    best, best_cost = None, -1.0
    while True:
        count = _fewest(groups, chunks, costs, budget)
        if count is None:
            return best if best is not None else chunks
        gone = _taken_back(groups, chunks[:count], costs, budget)
        cost = costs.total(_kept(groups, gone))
        if cost > best_cost:
            best, best_cost = gone, cost
        if not count or cost >= budget * (1 - CLOSE_ENOUGH):
            return best
        # try without the chunk that went too far, and those of its group that come after it
        last = chunks[count - 1]
        chunks = [chunk for chunk in chunks if chunk.group != last.group or chunk.start < last.start]


def _fewest(groups: Sequence[UnitGroup], chunks: list[_Chunk], costs: CostModel, budget: float) -> int | None:
    """How many of the first chunks have to go; `None` if all of them are not enough."""
    if costs.total(_kept(groups, chunks)) > budget:
        return None
    low, high = 0, len(chunks)
    while low < high:
        middle = (low + high) // 2
        if costs.total(_kept(groups, chunks[:middle])) <= budget:
            high = middle
        else:
            low = middle + 1
    return low


def _chunks(index: int, group: UnitGroup, scores: Tensor, round_to: int) -> list[_Chunk]:
    step = 1 if group.kind == "heads" else round_to
    ordered = scores[_order(scores)].tolist()
    spare = group.size - narrowest(group, round_to)
    chunks, start = [], 0
    while start < spare:
        # the first chunk brings the width down to a multiple
        stop = start + (group.size % step or step) if start == 0 else start + step
        chunks.append(_Chunk(sum(ordered[start:stop]) / (stop - start), index, start, stop))
        start = stop
    return chunks


def _kept(groups: Sequence[UnitGroup], gone: Sequence[_Chunk]) -> dict[str, int]:
    kept = {group.name: group.size for group in groups}
    for chunk in gone:
        kept[groups[chunk.group].name] -= chunk.stop - chunk.start
    return kept


def _taken_back(groups: Sequence[UnitGroup], gone: Sequence[_Chunk], costs: CostModel, budget: float) -> list[_Chunk]:
    """`gone` without those that the budget has room for, the best first; a group takes back its last ones first."""
    kept = _kept(groups, gone)
    blocked: set[int] = set()
    left = []
    for chunk in reversed(gone):
        name = groups[chunk.group].name
        if chunk.group not in blocked:
            kept[name] += chunk.stop - chunk.start
            if costs.total(kept) <= budget:
                continue
            kept[name] -= chunk.stop - chunk.start
            blocked.add(chunk.group)
        left.append(chunk)
    return left


def lowest_cost(groups: Sequence[UnitGroup], costs: Costs, round_to: int = 1) -> float:
    """The lowest figure that [`choose`] can reach, by removing blocks too."""
    return costs.total({group.name: min(_widths(group, costs, round_to)) for group in groups})


def choose(
    groups: Sequence[UnitGroup], orders: Mapping[str, Order], costs: Costs, budget: float, round_to: int = 1
) -> dict[str, Tensor]:
    """Widths with the least sum of losses that meet the budget, and which units stay; bool of shape `(size,)`.

    A residual block may lose all its units, and leaves then.
    """
    full = {group.name: group.size for group in groups}
    options = {group.name: _widths(group, costs, round_to) for group in groups}

    def around(kept: Mapping[str, int]) -> dict[str, list[Choice]]:
        share = costs.total(kept) / len(groups)
        return {
            name: [
                Choice(w, float(orders[name].losses[full[name] - w]), share + costs.change(kept, name, w))
                for w in widths
            ]
            for name, widths in options.items()
        }

    chosen = allocate(
        around(full), budget, recost=lambda selection: around({name: c.option for name, c in selection.items()})
    )
    selection = {}
    for group in groups:
        keep = torch.ones(group.size, dtype=torch.bool)
        keep[orders[group.name].units[: group.size - chosen[group.name].option]] = False
        selection[group.name] = keep
    return selection


def _widths(group: UnitGroup, costs: Costs, round_to: int) -> list[int]:
    """The widths to choose from: for each that the costs tell of, the largest one allowed that is not above it."""
    step = 1 if group.kind == "heads" else round_to
    allowed = {group.size, *range(narrowest(group, round_to), group.size, step), *([0] if group.removable else [])}
    widths = sorted(allowed)
    places = (bisect_right(widths, width) for width in costs.widths(group))
    return sorted({widths[place - 1] for place in places if place})
