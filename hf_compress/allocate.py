"""How much: one option for every unit, with the least total loss that a budget allows.

Widths, ranks and bits are all chosen here. The problem is the multiple-choice knapsack: its relaxation (a price on
cost, found on the convex hull of each unit's choices) gives a solution and a bound, and what the bound leaves open is
searched exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import CompressionError, TargetError


# partial selections kept side by side; beyond it the search drops those the bound likes least and stays near-optimal
FRONTIER = 10_000
ROUNDS = 50
REACH, EXCHANGES = 4, 50  # steps of a unit, and pairs of units, that are tried where costs multiply


@dataclass(frozen=True)
class Choice:
    """One thing that can be done with a unit.

    Args:
        option (`Any`): what the caller makes of it, such as a rank or a width; `None` often stands for "as it is".
        loss (`float`): what it does to the model; losses of different units are added.
        cost (`float`): its part of the budget; costs of different units are added.
    """

    option: Any
    loss: float
    cost: float


Units = Mapping[str, Sequence[Choice]]
Selection = dict[str, Choice]


def allocate(units: Units, budget: float, recost: Callable[[Selection], Units] | None = None) -> Selection:
    """Choose one option a unit so that the total loss is least and the total cost is at most `budget`.

    Optimal for additive costs, up to the size of the search (`FRONTIER`), beyond which it is within one step of one
    unit of the optimum. The result depends on the arguments alone; equal choices are settled by their order.

    Args:
        units (`Mapping[str, Sequence[Choice]]`): the choices of each unit, in any order.
        budget (`float`): the greatest total cost allowed.
        recost (`Callable`, *optional*): for costs that multiply between neighbours. Called with a selection, it gives
            the units again (the same options in the same order) with costs linear around that selection: the sum of
            the selection's own new costs must be its true total cost. The result then keeps to `budget` in true cost,
            and its loss is that of the best selection met on the way.

    Returns:
        `dict[str, Choice]`: the choice of each unit, in the order of `units`; with `recost`, with its re-linearised
        cost.

    Raises:
        [`~errors.TargetError`]: the cheapest selection is above `budget`; the message names the reachable range.
    """
    _check(units, budget)
    if not units:
        return {}
    if recost is None:
        floor = math.fsum(min(choice.cost for choice in choices) for choices in units.values())
        if floor > budget:
            raise _below_floor(units, budget, floor)
        return _Problem(units, budget).solve()
    return _Relinearized(units, budget, recost).solve()


def total_cost(selection: Mapping[str, Choice]) -> float:
    return math.fsum(choice.cost for choice in selection.values())


def total_loss(selection: Mapping[str, Choice]) -> float:
    return math.fsum(choice.loss for choice in selection.values())


def _check(units: Units, budget: float) -> None:
    if math.isnan(budget):
        raise CompressionError("allocate: the budget is not a number.")
    for name, choices in units.items():
        if not choices:
            raise CompressionError(f"allocate: the unit {name!r} has no choice; give it at least one.")
        for choice in choices:
            if not (math.isfinite(choice.loss) and math.isfinite(choice.cost)):
                raise CompressionError(f"allocate: {name!r} has {choice}; losses and costs must be finite numbers.")


def _below_floor(units: Units, budget: float, floor: float) -> TargetError:
    return TargetError(
        f"A budget of {budget:g} cannot be met; these {len(units)} units cost at least {floor:g}. Allow more, or let "
        "more units be compressed."
    )


class _Unit:
    """The choices of a unit that no other beats in both loss and cost, by growing cost, and their convex hull."""

    def __init__(self, choices: Sequence[Choice]):
        self.choices: list[Choice] = []
        for choice in sorted(choices, key=lambda choice: (choice.cost, choice.loss)):
            if not self.choices or choice.loss < self.choices[-1].loss:
                self.choices.append(choice)
        self.costs = np.array([choice.cost for choice in self.choices], dtype=np.float64)
        self.losses = np.array([choice.loss for choice in self.choices], dtype=np.float64)
        self.hull = self._hull()

    def _hull(self) -> list[int]:
        hull: list[int] = []
        for index in range(len(self.choices)):
            while len(hull) > 1 and self.slope(hull[-2], hull[-1]) <= self.slope(hull[-2], index):
                hull.pop()
            hull.append(index)
        return hull

    def slope(self, start: int, stop: int) -> float:
        """Loss saved for one unit of cost, on the way from one choice to a dearer one."""
        return (self.losses[start] - self.losses[stop]) / (self.costs[stop] - self.costs[start])


class _Problem:
    def __init__(self, units: Units, budget: float):
        self.names = list(units)
        self.units = [_Unit(choices) for choices in units.values()]
        self.budget = budget

    def solve(self) -> Selection:
        picks, price = self._relaxed()
        self._fill(picks)
        better = self._search(picks, price)
        if better is not None and self._cost(better) <= self.budget and self._loss(better) < self._loss(picks):
            picks = better
        return {name: unit.choices[pick] for name, unit, pick in zip(self.names, self.units, picks, strict=True)}

    def _cost(self, picks: Sequence[int]) -> float:
        return math.fsum(unit.costs[pick] for unit, pick in zip(self.units, picks, strict=True))

    def _loss(self, picks: Sequence[int]) -> float:
        return math.fsum(unit.losses[pick] for unit, pick in zip(self.units, picks, strict=True))

    def _relaxed(self) -> tuple[list[int], float]:
        """Walk all hulls together, the best slope first, until a step does not fit; its slope is the price of cost."""
        steps = sorted(
            (
                (unit.slope(start, stop), index, start, stop)
                for index, unit in enumerate(self.units)
                for start, stop in zip(unit.hull, unit.hull[1:], strict=False)
            ),
            key=lambda step: (-step[0], step[1]),
        )
        picks, price = [0] * len(self.units), 0.0
        spent = self._cost(picks)
        for slope, index, start, stop in steps:
            if picks[index] != start:
                continue
            extra = self.units[index].costs[stop] - self.units[index].costs[start]
            if spent + extra <= self.budget:
                picks[index] = stop
                spent += extra
            else:
                price = max(price, slope)
        # adding up one by one may round to just above the budget
        while self._cost(picks) > self.budget:
            index = max(range(len(picks)), key=lambda i: picks[i])
            picks[index] -= 1
        return picks, price

    def _fill(self, picks: list[int]) -> None:
        """Spend what is left on the dearer choice that saves the most, again and again."""
        while True:
            left, best = self.budget - self._cost(picks), (0.0, 0, 0)
            for index, (unit, pick) in enumerate(zip(self.units, picks, strict=True)):
                reach = int(np.searchsorted(unit.costs, unit.costs[pick] + left, side="right")) - 1
                if reach > pick and unit.losses[pick] - unit.losses[reach] > best[0]:
                    best = (unit.losses[pick] - unit.losses[reach], index, reach)
            if best[0] <= 0:
                return
            previous, picks[best[1]] = picks[best[1]], best[2]
            if self._cost(picks) > self.budget:
                picks[best[1]] = previous
                return

    def _search(self, incumbent: Sequence[int], price: float) -> list[int] | None:
        """Exact search among what can still beat `incumbent`, by dominance between partial selections.

        With `price`, every choice has an excess `loss + price * cost - (the least of its unit)`. A selection within
        the budget loses at least the relaxation's bound plus the sum of its excesses, so that whatever exceeds the gap
        between incumbent and bound is left out.
        """
        excesses = [unit.losses + price * unit.costs for unit in self.units]
        bound = math.fsum(excess.min() for excess in excesses) - price * self.budget
        loss = self._loss(incumbent)
        gap = loss - bound
        if gap <= 1e-12 * max(abs(loss), abs(bound)):
            return None
        excesses = [excess - excess.min() for excess in excesses]
        kept = [np.flatnonzero(excess <= gap) for excess in excesses]
        if any(len(options) == 0 for options in kept):
            return None
        cheapest = np.array([unit.costs[options[0]] for unit, options in zip(self.units, kept, strict=True)])
        rest = np.append(np.cumsum(cheapest[::-1])[::-1][1:], 0.0)
        cost = excess = np.zeros(1)
        trail = []
        for index, (unit, options) in enumerate(zip(self.units, kept, strict=True)):
            costs = np.add.outer(cost, unit.costs[options]).ravel()
            sums = np.add.outer(excess, excesses[index][options]).ravel()
            open_ = np.flatnonzero((sums <= gap) & (costs + rest[index] <= self.budget))
            front = open_[_undominated(costs[open_], sums[open_] - price * costs[open_])]
            if len(front) > FRONTIER:
                front = np.sort(front[np.argsort(sums[front], kind="stable")[:FRONTIER]])
            if len(front) == 0:
                return None
            cost, excess = costs[front], sums[front]
            trail.append((front // len(options), options[front % len(options)]))
        state = int(np.argmin(excess - price * cost))
        picks: list[int] = []
        for parents, chosen in reversed(trail):
            picks.append(int(chosen[state]))
            state = int(parents[state])
        return picks[::-1]


def _undominated(costs: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Indices of the points that no other point matches in cost and beats, or equals, in loss."""
    if len(costs) == 0:
        return np.zeros(0, dtype=np.int64)
    order = np.lexsort((losses, costs))
    sorted_losses = losses[order]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(sorted_losses)[:-1]])
    return order[sorted_losses < best_before]


class _Relinearized:
    """Solve, look at the true cost, and solve again around it, holding back what the linear costs missed."""

    def __init__(self, units: Units, budget: float, recost: Callable[[Selection], Units]):
        self.first, self.budget, self.recost = units, budget, recost

    def solve(self) -> Selection:
        best = {name: _cheapest(choices) for name, choices in self.first.items()}
        units, actual = self._around(self.first, best)
        if total_cost(actual) > self.budget:
            raise _below_floor(units, self.budget, total_cost(actual))
        least_loss = total_loss(actual)
        missed, seen, additive = 0.0, set(), True
        for _ in range(ROUNDS):
            least = math.fsum(choices[_cheapest(choices)].cost for choices in units.values())
            chosen = _Problem(units, max(self.budget - missed, least)).solve()
            positions = {name: _position(units[name], choice) for name, choice in chosen.items()}
            units, actual = self._around(units, positions)
            if total_cost(actual) <= self.budget and total_loss(actual) < least_loss:
                best, least_loss = positions, total_loss(actual)
            key = tuple(positions.values())
            if key in seen:
                break
            seen.add(key)
            missed = max(0.0, total_cost(actual) - total_cost(chosen))
            additive &= math.isclose(total_cost(actual), total_cost(chosen), rel_tol=1e-9)
        best, selection = self._improved(best)
        while not additive:  # the search above is exact for costs that add up
            exchanged = self._exchanged(best)
            if exchanged is None:
                break
            best, selection = self._improved(exchanged)
        return selection

    def _around(self, units: Units, positions: Mapping[str, int]) -> tuple[Units, Selection]:
        """The units with costs linear around the choices at `positions`, and those choices with their new costs."""
        renewed = self.recost({name: units[name][position] for name, position in positions.items()})
        for name, choices in units.items():
            if len(renewed.get(name, ())) != len(choices):
                raise CompressionError(f"allocate: recost must give every unit's choices again; {name!r} has others.")
        renewed = {name: renewed[name] for name in units}
        _check(renewed, self.budget)
        return renewed, {name: renewed[name][position] for name, position in positions.items()}

    def _exchanged(self, positions: Mapping[str, int]) -> dict[str, int] | None:
        """One unit a few steps up and another one down, so that less is lost and the true cost fits; the best such."""
        units, selection = self._around(self.first, positions)
        moves: dict[int, list[tuple[float, str, int]]] = {-1: [], 1: []}  # what is lost less, and more; and where to
        for name, choices in units.items():
            changes = [(choice.loss - selection[name].loss, position) for position, choice in enumerate(choices)]
            for side in (1, -1):
                nearest = sorted((abs(change), change, position) for change, position in changes if change * side > 0)
                moves[side] += [(change, name, position) for _, change, position in nearest[:REACH]]
        pairs = sorted(
            (up[0] + down[0], up[1:], down[1:])
            for up, down in itertools.product(moves[-1], moves[1])
            if up[1] != down[1] and up[0] + down[0] < 0
        )
        for _, up, down in pairs[:EXCHANGES]:
            trial = {**positions, up[0]: up[1], down[0]: down[1]}
            if total_cost(self._around(units, trial)[1]) <= self.budget:
                return trial
        return None

    def _improved(self, positions: Mapping[str, int]) -> tuple[dict[str, int], Selection]:
        """Take single steps up, the greatest saving first, for as long as one fits in true cost."""
        units, selection = self._around(self.first, positions)
        while True:
            left = self.budget - total_cost(selection)
            steps = [
                (selection[name].loss - choice.loss, name, position)
                for name, choices in units.items()
                for position, choice in enumerate(choices)
                if choice.loss < selection[name].loss and choice.cost - selection[name].cost <= left
            ]
            for _, name, position in sorted(steps, key=lambda step: -step[0])[:ROUNDS]:
                trial = {**positions, name: position}
                renewed, actual = self._around(units, trial)
                if total_cost(actual) <= self.budget:
                    units, selection, positions = renewed, actual, trial
                    break
            else:
                return dict(positions), selection


def _cheapest(choices: Sequence[Choice]) -> int:
    return min(range(len(choices)), key=lambda index: (choices[index].cost, choices[index].loss))


def _position(choices: Sequence[Choice], chosen: Choice) -> int:
    return next(index for index, choice in enumerate(choices) if choice is chosen)
