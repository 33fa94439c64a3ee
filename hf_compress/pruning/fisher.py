"""Training-free pruning by second-order information: the method `prune/fisher`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ..errors import RecipeError, UnsupportedModelError
from ..measurement.moments import Moments, input_moments
from ..registry import StepContext, nearest, register_method
from .blocks import chain
from .channels import refresh_timm
from .costs import CostModel
from .elimination import Order, Reader, eliminate, eliminate_masked
from .gradients import MicroBatches, sensitivity
from .inventory import find_units
from .iteration import check_reach
from .latency_costs import inner_groups, measure_latency_costs
from .options import UnitOptions
from .preconditions import check_repair
from .repair import pruned_readers, repairing
from .selection import Costs, choose, lowest_cost
from .sensitivity import Reference, corrected, curves, divergences, stops
from .surgery import shrink
from .token_weights import token_weights
from .units import Selection, Slice, UnitGroup, side_size, widths


if TYPE_CHECKING:
    from ..registry import Batch

SCORES = ("reconstruction", "masks")
MOMENT_BYTES = 2**29  # second moments that are held at once, and the most of one layer
ATTEMPTS = 6  # to meet a target of latency
MARGIN = 0.98  # of the budget, after an attempt that came out too slow or needlessly fast
NEAR = 0.96  # of the budget, from which on an attempt is fast enough and not needlessly so


@dataclass(frozen=True)
class FisherOptions(UnitOptions):
    """Options of `prune: fisher`: those of all methods that take units, and

    Args:
        score (`str`, *optional*, defaults to `"reconstruction"`): what a layer loses with its units. With
            `"reconstruction"` what is left of its readers' outputs after they are fitted anew, weighted by the loss's
            squared gradients there; with `"masks"` the Fisher information of masks on the units, in layers of up to
            256 units with its terms between them. Units whose readers have more than some ten thousand inputs are
            scored by masks anyway.
        score_samples (`int`, *optional*, defaults to 1024): training examples for the scores; `samples` are those of
            the repair.
        probes (`tuple[float, ...]`, *optional*): fractions of every layer's units at which the divergence of the
            predictions is measured, to weigh layers against each other; none leaves that to the scores.
        probe_samples (`int`, *optional*, defaults to 256): training examples for that.
        passes (`int`, *optional*, defaults to 1): the target is approached in this many passes, by the same factor
            each, with a repair after each.
        refine (`int`, *optional*, defaults to 6): passes over the examples in which all weights of a block are brought
            nearer to the dense one, after the repair.
    """

    refine: int = 6
    score: Literal["reconstruction", "masks"] = "reconstruction"
    score_samples: int = 1024
    probes: tuple[float, ...] = (0.75, 0.5, 0.25)
    probe_samples: int = 256
    passes: int = 1

    def __post_init__(self):
        super().__post_init__()
        self._at_least_one("score_samples", "probe_samples", "passes")
        if self.score not in SCORES:
            raise RecipeError(
                f"score: got {self.score!r}{nearest(self.score, SCORES)}; allowed are {', '.join(SCORES)}."
            )
        if not all(0 < share < 1 for share in self.probes):
            raise RecipeError(f"probes: got {list(self.probes)}; give fractions between 0 and 1.")


@register_method(
    "prune",
    "fisher",
    options=FisherOptions,
    needs=("labels", "calibration"),
    targets=("macs", "params", "latency"),
    paper="https://arxiv.org/abs/2204.09656",
    supports=("conv", "bert", "timm"),
)
def prune_fisher(model: nn.Module, options: FisherOptions, context: StepContext) -> None:
    """Remove the units whose loss, after the rest is fitted anew, costs the task least; no training."""
    inventory = find_units(model, heads=options.heads, neurons=options.neurons, min_channels=options.min_channels)
    groups, kept = inventory.groups, inventory.kept
    if context.target.kind == "latency":
        groups, more = inner_groups(groups, chain(model))
        kept |= more
    if kept:
        context.note(kept=kept)
    check_repair(model, options, context)
    costs, budget = _costs(model, groups, context)
    lowest = lowest_cost(groups, costs, options.round_to)
    check_reach(context.target, budget, costs.now, lowest, budget / context.target.fraction)
    readers = partial(pruned_readers, model, groups=groups)
    sizes = {group.name: group.size for group in groups}
    left = dict.fromkeys(sizes, 0)
    with ExitStack() as stack:
        repair = None
        for ahead in range(options.passes, 0, -1):
            orders = _orders(model, groups, options, context, ahead == options.passes)
            aim = costs.now * (budget / costs.now) ** (1 / ahead)
            selection = _selection(model, groups, orders, costs, aim, ahead == 1, options, context)
            if options.repair and repair is None:  # it keeps the dense model: not yet while scores need their memory
                repair = stack.enter_context(repairing(model, readers, options, context))
            kept = widths(selection)
            groups = shrink(model, groups, selection)
            if hasattr(model, "timm_model"):
                refresh_timm(model)
            if ahead > 1:
                costs = costs.after(model, groups, kept)
                if repair is not None:
                    repair()
            left |= kept
    context.note(layers={name: {"kept": left[name], "of": size} for name, size in sizes.items()})


def _costs(model: nn.Module, groups: Sequence[UnitGroup], context: StepContext) -> tuple[Costs, float]:
    """What units cost, and the budget in the same figure."""
    if context.target.kind != "latency":
        return CostModel.measured(model, groups, context.target, context.cost), context.budget
    if not groups:
        raise UnsupportedModelError(
            "target.latency: no units of this network live in a single block, so their times cannot be told apart; "
            "give a target of macs or params."
        )
    costs = measure_latency_costs(model, groups, context.serving, context)
    return costs, costs.now * context.budget / context.cost(model).latency


def _selection(
    model: nn.Module,
    groups: Sequence[UnitGroup],
    orders: Mapping[str, Order],
    costs: Costs,
    budget: float,
    is_last: bool,
    options: FisherOptions,
    context: StepContext,
) -> Selection:
    """The choice; if it is to meet a target of latency, other budgets are tried when the whole network is slower than
    its layers, or faster: in proportion to its time, or between one that met the target and one that did not. The
    largest of those that meet it is taken."""
    if context.target.kind != "latency" or not is_last:
        return choose(groups, orders, costs, budget, options.round_to)
    lowest = lowest_cost(groups, costs, options.round_to) * (1 + 1e-9)  # whatever sums are rounded to
    meeting: list[tuple[float, float, Selection]] = []  # budget, what came of it, choice
    missing: list[tuple[float, float, Selection]] = []
    for _ in range(ATTEMPTS):
        selection = choose(groups, orders, costs, budget, options.round_to)
        same = [reached for _, reached, other in meeting + missing if widths(other) == widths(selection)]
        reached = same[0] if same else _latency(model, groups, selection, context)
        (meeting if reached <= context.budget else missing).append((budget, reached, selection))
        if NEAR * context.budget <= reached <= context.budget:
            break
        if meeting and missing:
            (below, fast, _), (above, slow, _) = max(meeting, key=itemgetter(0)), min(missing, key=itemgetter(0))
            following = below + (above - below) * (MARGIN * context.budget - fast) / (slow - fast)
        else:
            following = budget * context.budget / reached * MARGIN
        following = min(max(following, lowest), costs.now)
        if following == budget:
            break
        budget = following
    return (max(meeting, key=itemgetter(0)) if meeting else min(missing, key=itemgetter(1)))[2]


def _latency(model: nn.Module, groups: Sequence[UnitGroup], selection: Selection, context: StepContext) -> float:
    """Of the network as it would be, as a fraction of the dense one's."""
    trial = copy.deepcopy(model)
    shrink(trial, groups, selection)
    return context.cost(trial).latency


def _orders(
    model: nn.Module, groups: Sequence[UnitGroup], options: FisherOptions, context: StepContext, is_first: bool
) -> dict[str, Order]:
    found = sensitivity(model, groups, context.calibration(options.score_samples), context)
    reference = Reference(model, context.calibration(options.probe_samples)) if options.probes else None
    orders: dict[str, Order] = {}
    by_masks: dict[str, str] = {}
    for part in _parts(model, groups):
        means = None
        too_large = max(_moment_bytes(model, part[0])) > MOMENT_BYTES  # then it is alone
        if too_large and options.score != "masks":
            by_masks[part[0].name] = f"the second moments of what a reader reads take over {MOMENT_BYTES:,} bytes"
        if too_large or options.score == "masks":
            orders |= {g.name: eliminate_masked(found.units[g.name], found.between.get(g.name)) for g in part}
        else:
            layers = {s.module: model.get_submodule(s.module) for group in part for s in group.consumers}
            moments = input_moments(model, layers, context.calibration(options.score_samples), _weigher(model, layers))
            means = {name: moment.mean.cpu() for name, moment in moments.items()}
            for group in part:
                # a block that leaves with all its units is not fitted
                wanted = stops(group, options.probes) if options.probes else []
                fitted = [gone for gone in wanted if gone < group.size or not group.removable]
                readers = [_reader(model, s, moments[s.module], found.outputs[s.module]) for s in group.consumers]
                orders[group.name] = eliminate(readers, stops=fitted)
        if reference is not None:
            measured = divergences(model, part, orders, options.probes, reference, context, means)
            orders |= {group.name: corrected(orders[group.name], measured[group.name]) for group in part}
            if is_first:  # later ones measure what is left of the groups
                context.note(sensitivity=curves(part, measured))
    if by_masks:
        context.note(scored_by_masks=by_masks)
    return orders


def _weigher(model: nn.Module, layers: Iterable[str]) -> Callable[[Batch], dict[str, Tensor]]:
    """What tokens count in layers: what they count in their blocks."""
    try:
        blocks = chain(model)
    except UnsupportedModelError:  # no blocks that repeat, so no tokens either
        blocks = []
    parts = MicroBatches(model)
    homes = {layer: block for layer in layers for block in blocks if layer.startswith(f"{block}.")}

    def weigh(batch: Batch) -> dict[str, Tensor]:
        weights = token_weights(model, blocks, batch, parts) if blocks else {}
        return {layer: weights[block] for layer, block in homes.items() if block in weights}

    return weigh


def _parts(model: nn.Module, groups: Sequence[UnitGroup]) -> Iterator[list[UnitGroup]]:
    """The groups, as many at a time as there is room for the second moments of their readers."""
    part, size = [], 0
    for group in groups:
        more = sum(_moment_bytes(model, group))
        if part and size + more > MOMENT_BYTES:
            yield part
            part, size = [], 0
        part.append(group)
        size += more
    if part:
        yield part


def _moment_bytes(model: nn.Module, group: UnitGroup) -> list[int]:
    """What the second moments of each layer that reads the group take."""
    return [4 * model.get_submodule(part.module).weight[0].numel() ** 2 for part in group.consumers]


def _reader(model: nn.Module, part: Slice, moments: Moments, outputs: Tensor) -> Reader:
    module = model.get_submodule(part.module)
    weight = module.weight.detach().flatten(1).cpu()
    kernel = weight.shape[1] // side_size(module, "in")
    index = (part.index[:, :, None] * kernel + torch.arange(kernel)).flatten(1)
    return Reader(weight, moments.matrix(centred=True).cpu(), index, outputs / 2)
