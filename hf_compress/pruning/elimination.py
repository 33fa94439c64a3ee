"""Which units of a layer go first, and what that costs: optimal brain surgery, one unit after another.

A layer that reads `x` and gives `W x` can make up for a missing unit with what else it reads. With the second moment
`H = E[x x^T]` of its inputs, taking out the positions `S` of a unit and refitting the rest costs
`w_S^T ([H^-1]_SS)^-1 w_S` for every output with weights `w`; then `w` and `H^-1` are brought up to date, and the next
unit is chosen among those that are left (Hassibi and Stork 1993; for structures Kurtic et al. 2023,
https://arxiv.org/abs/2302.04089).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Reader:
    """A layer that reads the units of a group.

    Args:
        weight (`torch.Tensor` of shape `(out, n)`): its weights.
        moment (`torch.Tensor` of shape `(n, n)`): second moment of its inputs.
        index (`torch.LongTensor` of shape `(units, positions)`): the columns that belong to each unit.
        worth (`torch.Tensor` of shape `(out,)`): what a squared error of each output loses.
    """

    weight: Tensor
    moment: Tensor
    index: Tensor
    worth: Tensor


@dataclass
class Order:
    """Units in the order in which they go.

    Attributes:
        units (`torch.LongTensor` of shape `(size,)`): the first one to go first.
        losses (`torch.Tensor` of shape `(size + 1,)`): what the layers lose in all when the first 0, 1, … are gone.
        weights (`dict[int, list[torch.Tensor]]`): by number of units gone, where asked for, the fitted weights of each
            reader, `(out, n)`, zero where the units were.
    """

    units: Tensor
    losses: Tensor
    weights: dict[int, list[Tensor]] = field(default_factory=dict)


def eliminate(
    readers: Sequence[Reader], damping: float = 1e-3, share: float = 0.02, stops: Collection[int] = ()
) -> Order:
    """Take out the units of a group one after another, always the one whose loss is least.

    Args:
        readers (`Sequence[Reader]`): all layers that read the group's units.
        damping (`float`, *optional*, defaults to 1e-3): added to the diagonal of the moments, as a share of its mean.
        share (`float`, *optional*, defaults to 0.02): where there are many units, this share of those that are left
            goes at a time, at least one.
        stops (`Collection[int]`, *optional*): numbers of units gone at which the fitted weights are wanted.
    """
    states = [_State(reader, damping) for reader in readers]
    size = len(readers[0].index)
    left = torch.arange(size)
    units, losses, weights = [], [torch.zeros(1, dtype=torch.float64)], {}
    ahead = sorted(stop for stop in stops if 0 < stop <= size)
    while len(left):
        scores = sum(state.scores() for state in states)
        count = max(1, int(share * len(left)))
        if ahead:
            count = min(count, ahead[0] - (size - len(left)))
        chosen = torch.argsort(scores, stable=True)[:count]
        keep = torch.ones(len(left), dtype=torch.bool)
        keep[chosen] = False
        loss = sum(state.take_out(chosen, keep) for state in states)
        # of units that go together only the sum is known; spread as their scores are
        share_of = scores[chosen] / scores[chosen].sum() if scores[chosen].sum() > 0 else torch.ones(count) / count
        losses.append(losses[-1][-1:] + loss * torch.cumsum(share_of.double(), 0))
        units.append(left[chosen])
        left = left[keep]
        if ahead and size - len(left) == ahead[0]:
            weights[ahead.pop(0)] = [state.fitted() for state in states]
    return Order(torch.cat(units), torch.cat(losses), weights)


def eliminate_masked(alone: Tensor, between: Tensor | None = None) -> Order:
    """Take out the units of a group one after another, always the one with which the loss rises least.

    The loss of a set of units is the second-order expansion in masks on them with the Fisher information `F`: half the
    sum of `F` over the set. With terms between units, two that do the same thing do not both go first; Kwon et al.
    2022 (https://arxiv.org/abs/2204.09656) rearrange the masks of one width for that, this is an order of all widths.

    Args:
        alone (`torch.Tensor` of shape `(size,)`): the diagonal of `F`.
        between (`torch.Tensor` of shape `(size, size)`, *optional*): all of `F`; without it units add up.
    """
    if between is None:
        units = torch.argsort(alone, stable=True)
        return Order(units, torch.cat([alone.new_zeros(1), torch.cumsum(alone[units], 0)]) / 2)
    rises, units, losses = alone / 2, [], [0.0]
    for _ in range(len(alone)):
        unit = int(torch.argmin(rises))
        units.append(unit)
        losses.append(losses[-1] + float(rises[unit]))
        rises = rises + between[unit]
        rises[units] = torch.inf
    # a unit may make up for another; yet more gone never counts as less lost
    return Order(torch.tensor(units), torch.tensor(losses, dtype=torch.float64).cummax(0).values)


class _State:
    """A reader without the units that are gone; columns are grouped by unit."""

    def __init__(self, reader: Reader, damping: float):
        self.units, self.positions = reader.index.shape
        columns = reader.index.flatten()
        others = torch.ones(reader.weight.shape[1], dtype=torch.bool)
        others[columns] = False
        # columns of no unit of this group stay to the end, and help
        order = torch.cat([columns, others.nonzero().flatten()])
        moment = reader.moment.double()[order][:, order]
        mean = moment.diagonal().mean()
        moment.diagonal().add_(damping * mean if mean > 0 else 1.0)
        self.inverse = torch.linalg.inv(moment)
        self.weight, self.worth = reader.weight.double()[:, order], reader.worth.double()
        self.columns, self.width = order, len(order)

    def scores(self) -> Tensor:
        end = self.units * self.positions
        if self.positions == 1:
            return self.worth @ self.weight[:, :end].square() / self.inverse.diagonal()[:end]
        blocks = self._blocks()
        weights = self.weight[:, :end].view(-1, self.units, self.positions)
        solved = torch.linalg.solve(blocks, weights.permute(1, 2, 0))
        return (solved * weights.permute(1, 2, 0)).sum(1) @ self.worth

    def _blocks(self) -> Tensor:
        end = self.units * self.positions
        grid = self.inverse[:end, :end].view(self.units, self.positions, self.units, self.positions)
        return grid.diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    def take_out(self, chosen: Tensor, keep: Tensor) -> Tensor:
        """Remove units by their places among those left; what that loses."""
        gone = (chosen[:, None] * self.positions + torch.arange(self.positions)).flatten()
        rest = torch.ones(self.weight.shape[1], dtype=torch.bool)
        rest[gone] = False
        weight, block = self.weight[:, gone], self.inverse[gone][:, gone]
        solved = torch.linalg.solve(block, torch.cat([weight.T, self.inverse[gone][:, rest]], dim=1))
        loss = (solved[:, : len(weight)].T * weight).sum(1) @ self.worth
        across = self.inverse[rest][:, gone]
        self.weight = self.weight[:, rest] - (across @ solved[:, : len(weight)]).T
        self.inverse = self.inverse[rest][:, rest] - across @ solved[:, len(weight) :]
        self.units, self.columns = int(keep.sum()), self.columns[rest]
        return loss

    def fitted(self) -> Tensor:
        weight = self.weight.new_zeros(len(self.weight), self.width)
        weight[:, self.columns] = self.weight
        return weight
