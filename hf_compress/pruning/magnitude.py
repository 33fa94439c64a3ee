"""Magnitude pruning of channels, heads and neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..errors import RecipeError
from ..registry import StepContext, Target, nearest, register_method
from .importance import magnitude_scores, quantiles
from .inventory import find_units
from .iteration import prune_to_target
from .units import UnitGroup


NORMS = {"l1": 1, "l2": 2}
SCOPES = ("global", "local")


@dataclass(frozen=True)
class MagnitudeOptions:
    """Options of `prune: magnitude`.

    Args:
        norm (`str`, *optional*, defaults to `"l2"`): `"l1"` or `"l2"`.
        scope (`str`, *optional*, defaults to `"global"`): `"global"` ranks the units of all layers together, `"local"`
            takes the same fraction from every layer.
        min_channels (`int`, *optional*, defaults to 4): channels that stay in every convolution.
        round_to (`int`, *optional*, defaults to 1): widths of channels and neurons become multiples of this.
        heads (`bool`, *optional*, defaults to `True`), neurons (`bool`, *optional*, defaults to `True`): whether
            attention heads and feed-forward neurons may go; in an encoder only.
        steps (`int`, *optional*, defaults to 10): the target is approached in this many steps, each of which scores
            what is left anew.
    """

    norm: Literal["l1", "l2"] = "l2"
    scope: Literal["global", "local"] = "global"
    min_channels: int = 4
    round_to: int = 1
    heads: bool = True
    neurons: bool = True
    steps: int = 10

    def __post_init__(self):
        for name, allowed in (("norm", tuple(NORMS)), ("scope", SCOPES)):
            value = getattr(self, name)
            if value not in allowed:
                raise RecipeError(f"{name}: got {value!r}{nearest(value, allowed)}; allowed are {', '.join(allowed)}.")
        for name in ("min_channels", "round_to", "steps"):
            value = getattr(self, name)
            if value < 1:
                raise RecipeError(f"{name}: got {value!r}; give a whole number, at least 1.")
        if not self.heads and not self.neurons:
            raise RecipeError(
                "heads: got false, and neurons is false too, so nothing may go; set one of them to true."
            )

    def check_target(self, target: Target | None) -> None:
        """A recipe is checked with this before anything is loaded."""
        if target is None:
            raise RecipeError("target: this key is required and missing; give one such as {macs: 0.5}.")


@register_method(
    "prune",
    "magnitude",
    options=MagnitudeOptions,
    targets=("macs", "params"),
    paper="https://arxiv.org/abs/1608.08710",
    supports=("conv", "bert", "timm"),
)
def prune_magnitude(model: nn.Module, options: MagnitudeOptions, context: StepContext) -> None:
    """Remove the channels, heads and neurons with the smallest weights."""
    inventory = find_units(model, heads=options.heads, neurons=options.neurons, min_channels=options.min_channels)
    if inventory.kept:
        context.note(kept=inventory.kept)

    def score(model: nn.Module, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
        scores = magnitude_scores(model, groups, NORMS[options.norm])
        if options.scope == "local":
            scores = {name: quantiles(values) for name, values in scores.items()}
        return scores

    prune_to_target(model, inventory.groups, score, context, steps=options.steps, round_to=options.round_to)
