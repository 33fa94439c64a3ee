"""How much: the scheme and the rank of every layer, under a budget or by a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..allocate import Choice, allocate
from .factors import Basis, smallest_rank
from .layers import Layer


Option = tuple[str, int] | None  # a scheme and a rank, or dense
Candidates = Mapping[str, Mapping[str, Sequence[int]]]  # ranks by layer and scheme
Bases = Mapping[tuple[str, str], Basis]  # by layer and scheme


def candidate_ranks(layer: Layer, round_to: int = 1, rank: int | None = None) -> dict[str, list[int]]:
    """For every scheme the ranks that make the layer smaller; schemes without any are left out.

    They go in steps of `round_to`; a fixed `rank` is taken as it is.
    """
    found = {}
    for scheme in layer.schemes:
        limit = layer.max_rank(scheme)
        ranks = list(range(round_to, limit + 1, round_to)) if rank is None else [rank] * (rank <= limit)
        if ranks:
            found[scheme] = ranks
    return found


def least_cost(layers: Sequence[Layer], candidates: Candidates, kind: str) -> float:
    """What the layers cost together with the least ranks."""
    return sum(
        min([layer.cost(kind), *(layer.cost(kind, scheme, min(r)) for scheme, r in candidates[layer.name].items())])
        for layer in layers
    )


def ranks_for_budget(
    layers: Sequence[Layer], candidates: Candidates, bases: Bases, kind: str, budget: float, allocation: str
) -> dict[str, Option]:
    """Choose under a budget for what the layers cost together.

    Args:
        kind (`str`): "params" or "macs".
        allocation (`str`): "relative" for the least sum of the layers' squared errors, each as a part of the layer's
            own squared norm; "absolute" for the errors as they are; "uniform" for the same fraction of every layer.
    """
    if allocation == "uniform":
        return _uniform(layers, candidates, bases, kind, budget)
    units = {}
    for layer in layers:
        choices = [Choice(None, 0.0, layer.cost(kind))]
        for scheme, ranks in candidates[layer.name].items():
            errors = bases[layer.name, scheme].errors
            norm = float(errors[0]) if allocation == "relative" else 1.0
            for rank in ranks:
                loss = float(errors[rank]) / norm if norm > 0 else 0.0
                choices.append(Choice((scheme, rank), loss, layer.cost(kind, scheme, rank)))
        units[layer.name] = choices
    return {name: choice.option for name, choice in allocate(units, budget).items()}


def ranks_for_rank(layers: Sequence[Layer], candidates: Candidates, bases: Bases, rank: int) -> dict[str, Option]:
    """The same rank everywhere, by the scheme that loses less; dense where it makes nothing smaller."""
    chosen: dict[str, Option] = {}
    for layer in layers:
        found = [(bases[layer.name, scheme].relative_error(rank), scheme) for scheme in candidates[layer.name]]
        chosen[layer.name] = (min(found, key=lambda pair: pair[0])[1], rank) if found else None
    return chosen


def ranks_for_energy(
    layers: Sequence[Layer], candidates: Candidates, bases: Bases, energy: float
) -> dict[str, Option]:
    """The cheapest way to keep a part of every layer's squared norm; dense where none is cheaper than that."""
    chosen: dict[str, Option] = {}
    for layer in layers:
        found = []
        for scheme, ranks in candidates[layer.name].items():
            least = smallest_rank(bases[layer.name, scheme].errors, energy)
            rank = next((rank for rank in ranks if rank >= least), None)
            if rank is not None:
                found.append((layer.cost("macs", scheme, rank), layer.cost("params", scheme, rank), scheme, rank))
        chosen[layer.name] = min(found, key=lambda entry: entry[:2])[2:] if found else None
    return chosen


def _uniform(
    layers: Sequence[Layer], candidates: Candidates, bases: Bases, kind: str, budget: float
) -> dict[str, Option]:
    """The greatest fraction, the same for every layer that can be smaller, that fits the budget."""

    def at(fraction: float) -> dict[str, Option]:
        return {layer.name: _largest(layer, candidates[layer.name], bases, kind, fraction) for layer in layers}

    def cost(chosen: Mapping[str, Option]) -> float:
        return sum(layer.cost(kind, *(chosen[layer.name] or ())) for layer in layers)

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)) <= budget else (low, middle)
    chosen, more = at(low), at(high)
    for layer in layers:  # layers that take their next step at once, one after the other for as long as it fits
        trial = {**chosen, layer.name: more[layer.name]}
        if cost(trial) <= budget:
            chosen = trial
    return chosen


def _largest(
    layer: Layer, candidates: Mapping[str, Sequence[int]], bases: Bases, kind: str, fraction: float
) -> Option:
    """The best option that costs at most this fraction of the layer; the cheapest where none is so cheap."""
    if not candidates:
        return None
    room = fraction * layer.cost(kind)
    # errors fall with the rank, so that of every scheme only the greatest rank that fits can be the best
    fitting = [
        (scheme, max(rank for rank in ranks if layer.cost(kind, scheme, rank) <= room))
        for scheme, ranks in candidates.items()
        if layer.cost(kind, scheme, min(ranks)) <= room
    ]
    if not fitting:
        cheapest = min(candidates, key=lambda scheme: layer.cost(kind, scheme, min(candidates[scheme])))
        return cheapest, min(candidates[cheapest])
    return min(fitting, key=lambda option: bases[layer.name, option[0]].relative_error(option[1]))
