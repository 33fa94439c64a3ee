"""Pruning by a criterion: the units with the lowest scores go, in many small steps.

The criteria differ in what they look at: weights (magnitude, fpgm, lamp, bn_scale), activations, gradients of the loss
(taylor, hessian), or nothing (random).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import CompressionError, RecipeError, UnsupportedModelError
from ..registry import StepContext, Target, nearest, register_method
from .channels import refresh_timm
from .costs import CostModel
from .gradients import sensitivity
from .importance import (
    activation_scores,
    distance_scores,
    lamp_scores,
    look_alikes,
    magnitude_scores,
    norm_scale_scores,
    norm_scales,
    quantiles,
    random_scores,
    shared_quantiles,
)
from .inventory import find_units
from .iteration import Scorer, check_reach, prune_to_target
from .options import UnitOptions
from .preconditions import check_repair
from .repair import pruned_readers, repairing
from .selection import narrowest
from .surgery import shrink
from .units import UnitGroup, full_selection


NORMS = {"l1": 1, "l2": 2}
SCOPES = ("global", "local", "isomorphic")


@dataclass(frozen=True)
class CriterionOptions(UnitOptions):
    """Options of all criteria: those of all methods that take units, and

    Args:
        scope (`str`, *optional*, defaults to `"global"`): `"global"` ranks the units of all layers together, `"local"`
            takes the same fraction from every layer, `"isomorphic"` the same fraction from every kind of layers, of
            which all that look the same are ranked together.
        keep (`dict[str, float]`, *optional*): the fraction of its units that a layer keeps, by name or pattern
            (`"timm_model.layer1.*": 0.5`; the first that matches). The other layers are left to the target; without a
            target they are not pruned.
        steps (`int`, *optional*, defaults to 10): the target is approached in this many steps, each of which scores
            what is left anew.
        repair (`bool`, *optional*, defaults to `False`): fit the layers that read what was pruned anew afterwards, so
            that the blocks give what they gave; see [`repair`]. Needs examples.
        samples (`int`, *optional*, defaults to 1024): training examples for the repair, and for scores that look at
            data.
    """

    repair: bool = False
    scope: Literal["global", "local", "isomorphic"] = "global"
    keep: dict[str, float] = field(default_factory=dict)
    steps: int = 10

    def __post_init__(self):
        super().__post_init__()
        self._at_least_one("steps")
        if self.scope not in SCOPES:
            raise RecipeError(
                f"scope: got {self.scope!r}{nearest(self.scope, SCOPES)}; allowed are {', '.join(SCOPES)}."
            )
        for pattern, fraction in self.keep.items():
            if not 0 <= fraction <= 1:
                raise RecipeError(f"keep.{pattern}: got {fraction!r}; give a fraction from 0 to 1.")

    def check_target(self, target: Target | None) -> None:
        """A recipe is checked with this before anything is loaded."""
        if target is None and not self.keep:
            raise RecipeError("target: this key is required and missing; give one such as {macs: 0.5}, or keep.")


@dataclass(frozen=True)
class MagnitudeOptions(CriterionOptions):
    """Options of `prune: magnitude`: those of all criteria, and

    Args:
        norm (`str`, *optional*, defaults to `"l2"`): `"l1"` or `"l2"`.
    """

    norm: Literal["l1", "l2"] = "l2"

    def __post_init__(self):
        super().__post_init__()
        if self.norm not in NORMS:
            raise RecipeError(f"norm: got {self.norm!r}{nearest(self.norm, NORMS)}; allowed are {', '.join(NORMS)}.")


def _criterion(name: str, paper: str, options: type = CriterionOptions, needs=(), supports=("conv", "bert", "timm")):
    return register_method(
        "prune", name, options=options, needs=needs, targets=("macs", "params"), paper=paper, supports=supports
    )


@_criterion("magnitude", "https://arxiv.org/abs/1608.08710", MagnitudeOptions)
def prune_magnitude(model: nn.Module, options: MagnitudeOptions, context: StepContext) -> None:
    """Remove the channels, heads and neurons with the smallest weights."""
    _prune(model, options, context, lambda model, groups: magnitude_scores(model, groups, NORMS[options.norm]))


@_criterion("fpgm", "https://arxiv.org/abs/1811.00250")
def prune_fpgm(model: nn.Module, options: CriterionOptions, context: StepContext) -> None:
    """Remove the units whose weights are nearest to those of the others of their layer."""
    _prune(model, options, context, distance_scores)


@_criterion("lamp", "https://arxiv.org/abs/2010.07611")
def prune_lamp(model: nn.Module, options: CriterionOptions, context: StepContext) -> None:
    """Remove the units whose weights are small beside what would be left of their layer."""
    _prune(model, options, context, lamp_scores)


@_criterion("bn_scale", "https://arxiv.org/abs/1708.06519", supports=("conv", "timm"))
def prune_bn_scale(model: nn.Module, options: CriterionOptions, context: StepContext) -> None:
    """Remove the channels that batch normalization scales down most."""

    def unscaled(group: UnitGroup) -> str | None:
        return None if norm_scales(model, group) else "no batch normalization scales its channels"

    _prune(model, options, context, norm_scale_scores, unscaled)


@_criterion("activation", "https://arxiv.org/abs/1611.06440", needs=("calibration",))
def prune_activation(model: nn.Module, options: CriterionOptions, context: StepContext) -> None:
    """Remove the units whose outputs are smallest on training examples."""

    def score(model: nn.Module, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
        return activation_scores(model, groups, context.calibration(options.samples))

    _prune(model, options, context, score)


@_criterion("taylor", "https://arxiv.org/abs/1611.06440", needs=("labels", "calibration"))
def prune_taylor(model: nn.Module, options: CriterionOptions, context: StepContext) -> None:
    """Remove the units whose absence changes the loss least, to first order, on training examples."""

    def score(model: nn.Module, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
        return sensitivity(model, groups, context.calibration(options.samples), context).slopes

    _prune(model, options, context, score)


@_criterion("hessian", "https://arxiv.org/abs/2204.09656", needs=("labels", "calibration"))
def prune_hessian(model: nn.Module, options: CriterionOptions, context: StepContext) -> None:
    """Remove the units whose absence raises the loss least, to second order, on training examples."""

    def score(model: nn.Module, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
        return sensitivity(model, groups, context.calibration(options.samples), context).units

    _prune(model, options, context, score)


@_criterion("random", "https://arxiv.org/abs/1810.05270")
def prune_random(model: nn.Module, options: CriterionOptions, context: StepContext) -> None:
    """Remove units by chance: what every criterion has to beat."""
    generator = torch.Generator().manual_seed(context.seed)  # one, so that no two steps draw the same
    _prune(model, options, context, lambda model, groups: random_scores(groups, generator))


def _prune(
    model: nn.Module,
    options: CriterionOptions,
    context: StepContext,
    criterion: Scorer,
    blind: Callable[[UnitGroup], str | None] = lambda group: None,
) -> None:
    """Prune by a criterion, which may be `blind` to some groups, for the reason given: these are kept."""
    inventory = find_units(model, heads=options.heads, neurons=options.neurons, min_channels=options.min_channels)
    reasons = {group.name: reason for group in inventory.groups if (reason := blind(group)) is not None}
    groups = found = [group for group in inventory.groups if group.name not in reasons]
    if reasons and not found:
        reason = next(iter(reasons.values()))
        raise UnsupportedModelError(
            f"{type(model).__name__}: {reason}, in all of its layers; prune with another method, such as magnitude."
        )
    if kept := inventory.kept | reasons:
        context.note(kept=kept)
    check_repair(model, options, context)
    alike = look_alikes(model, found)  # of the dense model: cut layers look alike no more

    def score(model: nn.Module, groups: Sequence[UnitGroup]) -> Mapping[str, Tensor]:
        scores = criterion(model, groups)
        broken = next((name for name, values in scores.items() if not values.isfinite().all()), None)
        if broken is not None:
            raise CompressionError(
                f"The scores of {broken} are not finite: weights or activations are NaN or infinite. Check the model "
                "and the data."
            )
        if options.scope == "local":
            return {name: quantiles(values) for name, values in scores.items()}
        return shared_quantiles(model, groups, scores, alike) if options.scope == "isomorphic" else scores

    def cut(dense: nn.Module) -> list[str]:
        return pruned_readers(model, dense, found)

    with repairing(model, cut, options, context) if options.repair else nullcontext():
        if options.keep:
            groups = _keep(model, groups, options, score, context)
        if not options.keep or _is_above_target(model, context):
            prune_to_target(model, groups, score, context, steps=options.steps, round_to=options.round_to)


def _is_above_target(model: nn.Module, context: StepContext) -> bool:
    return context.target is not None and context.cost(model).of(context.target) > context.budget


def _keep(
    model: nn.Module, groups: list[UnitGroup], options: CriterionOptions, score: Scorer, context: StepContext
) -> list[UnitGroup]:
    """Cut the layers that `options.keep` names to their fractions; the groups that are left to the target."""
    fractions = {group.name: _fraction(group.name, options.keep) for group in groups}
    unknown = [pattern for pattern in options.keep if not fnmatch.filter(fractions, pattern)]
    if unknown:
        raise RecipeError(
            f"keep.{unknown[0]}: no layer of this model that may go has that name; they are {', '.join(fractions)}."
        )
    kept = {
        group.name: max(narrowest(group, options.round_to), _width(group, fractions[group.name], options.round_to))
        for group in groups
        if fractions[group.name] is not None
    }
    if context.target is not None:
        _check_kept(model, groups, kept, options.round_to, context)
    scores, selection = score(model, groups), full_selection(groups)
    for name, count in kept.items():
        selection[name][torch.argsort(scores[name], stable=True)[: len(selection[name]) - count]] = False
    left = shrink(model, groups, selection)
    if hasattr(model, "timm_model"):
        refresh_timm(model)
    context.note(layers={group.name: {"kept": kept.get(group.name, group.size), "of": group.size} for group in groups})
    return [group for group in left if group.name not in kept]


def _width(group: UnitGroup, fraction: float, round_to: int) -> int:
    if fraction == 1:
        return group.size
    step = 1 if group.kind == "heads" else round_to
    return min(group.size, max(round(fraction * group.size / step), fraction > 0) * step)


def _fraction(name: str, keep: Mapping[str, float]) -> float | None:
    return next((fraction for pattern, fraction in keep.items() if fnmatch.fnmatchcase(name, pattern)), None)


def _check_kept(
    model: nn.Module, groups: list[UnitGroup], kept: Mapping[str, int], round_to: int, context: StepContext
) -> None:
    """Refuse a target that cannot be reached with layers of the widths `kept`, before anything is cut."""
    costs = CostModel.measured(model, groups, context.target, context.cost)
    lowest = costs.total({group.name: kept.get(group.name, narrowest(group, round_to)) for group in groups})
    check_reach(context.target, context.budget, costs.now, lowest, context.baseline_cost.of(context.target))
