"""When: prune in many small steps, scoring what is left anew, until the measured cost meets the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from ..errors import RecipeError, TargetError
from ..registry import StepContext, Target
from .channels import refresh_timm
from .costs import CostModel
from .selection import floor, select
from .surgery import shrink
from .units import UnitGroup, widths


Scorer = Callable[[nn.Module, Sequence[UnitGroup]], Mapping[str, Tensor]]

# Rounds after the planned ones, should the counted cost turn out above the computed one.
EXTRA_ROUNDS = 5

UNIT_ADVICE = ", or options that let more go (a smaller min_channels or round_to, heads and neurons both)"


def prune_to_target(
    model: nn.Module,
    groups: Sequence[UnitGroup],
    scorer: Scorer,
    context: StepContext,
    *,
    steps: int = 1,
    round_to: int = 1,
) -> None:
    """Shrink `model` in place until `context.cost` meets `context.target`.

    Args:
        model ([`~transformers.PreTrainedModel`]): the model.
        groups (`Sequence[UnitGroup]`): what may go, as found by `find_units`.
        scorer (`Callable`): `scorer(model, groups)` gives scores by group; called before every step.
        context ([`StepContext`]): target, budget and cost; gets the notes `layers`.
        steps (`int`, *optional*, defaults to 1): the cost goes down geometrically in this many steps.
        round_to (`int`, *optional*, defaults to 1): widths of channels and neurons become multiples of this.

    Raises:
        [`TargetError`]: the target is met already or out of reach; the model is untouched.
    """
    target, budget = context.target, context.budget
    if target is None or budget is None:
        raise RecipeError("prune.target: got none; give what is to be left, such as {macs: 0.5} or {params: 0.5}.")
    original = {group.name: group.size for group in groups}
    costs = CostModel.measured(model, groups, target, context.cost)
    check_reach(target, budget, costs.now, floor(groups, costs, round_to), context.baseline_cost.of(target))
    start = costs.now
    for step in context.progress(range(1, steps + 1), "prune", total=steps):
        goal = start * (budget / start) ** (step / steps)
        groups, costs = _come_down(model, groups, scorer, costs, goal, round_to)
    for _ in range(EXTRA_ROUNDS):
        costs = CostModel.measured(model, groups, target, context.cost)
        if costs.now <= budget:
            break
        groups, costs = _come_down(model, groups, scorer, costs, budget, round_to)
    if hasattr(model, "timm_model"):
        refresh_timm(model)
    left = {group.name: group.size for group in groups}
    context.note(layers={name: {"kept": left.get(name, 0), "of": size} for name, size in original.items()})


def _come_down(
    model: nn.Module, groups: list[UnitGroup], scorer: Scorer, costs: CostModel, goal: float, round_to: int
) -> tuple[list[UnitGroup], CostModel]:
    """Cut the model to `goal`, or as low as it gets, and say what is left and what that costs."""
    goal = max(goal, floor(groups, costs, round_to))
    selection = select(groups, scorer(model, groups), costs, goal, round_to)
    groups = shrink(model, groups, selection)
    return groups, costs.after(model, groups, widths(selection))


def check_reach(
    target: Target, budget: float, now: float, lowest: float, baseline: float, advice: str = UNIT_ADVICE
) -> None:
    """Refuse a target that is met already, or below what is reachable.

    Args:
        target ([`~registry.Target`]): with `budget`, `now`, `lowest` and `baseline` in its figure.
        advice (`str`, *optional*): what else than a larger fraction would help.

    Raises:
        [`TargetError`]: with the reachable range as fractions of the baseline.
    """
    reachable = (
        f"From here, between {_up(lowest / baseline)} and {now / baseline:.4f} of the baseline's {target.scope} "
        f"{target.kind} can be reached"
    )
    if now <= budget:
        raise TargetError(
            f"target.{target.kind}: got {target.fraction}, but the model is at {now / baseline:.4f} already. "
            f"{reachable}; give a smaller fraction or leave the step out."
        )
    if lowest > budget:
        raise TargetError(
            f"target.{target.kind}: got {target.fraction}, which is out of reach. {reachable}; give a larger "
            f"fraction{advice}."
        )


def _up(fraction: float) -> str:
    return f"{-(-fraction * 10000 // 1) / 10000:.4f}"
