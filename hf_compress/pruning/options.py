"""Options that methods of pruning have in common."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RecipeError
from ..registry import Target


@dataclass(frozen=True)
class RepairOptions:
    """Options of every method that can repair.

    Args:
        repair (`bool`, *optional*, defaults to `True`): fit the layers that read what was pruned anew afterwards, so
            that the blocks give what they gave; see [`repair`]. Needs examples.
        samples (`int`, *optional*, defaults to 1024): training examples for the repair.
        ridge (`float`, *optional*, defaults to 1e-3): the penalty of the repair.
        refine (`int`, *optional*, defaults to 0): passes over the examples in which all weights of a block are brought
            nearer to the dense one, after the repair.
    """

    repair: bool = True
    samples: int = 1024
    ridge: float = 1e-3
    refine: int = 0

    def __post_init__(self):
        self._at_least_one("samples")
        if not self.ridge > 0:
            raise RecipeError(f"ridge: got {self.ridge!r}; give a number above 0.")
        if self.refine < 0:
            raise RecipeError(f"refine: got {self.refine!r}; give a number of passes, 0 for none.")
        for name in ("ridge", "refine"):
            value = getattr(self, name)
            if not self.repair and value not in (0, getattr(type(self), name)):
                raise RecipeError(
                    f"{name}: got {value!r}, and there is no repair; set repair to true, or leave it out."
                )

    def check_target(self, target: Target | None) -> None:
        """A recipe is checked with this before anything is loaded."""
        if target is None:
            raise RecipeError("target: this key is required and missing; give one such as {macs: 0.5}.")

    def _at_least_one(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}: got {getattr(self, name)!r}; give a whole number, at least 1.")


@dataclass(frozen=True)
class UnitOptions(RepairOptions):
    """Options of the methods that take units out of layers: those of the repair, and

    Args:
        min_channels (`int`, *optional*, defaults to 4): channels that stay in every convolution that stays; `fisher`
            may take out whole residual blocks.
        round_to (`int`, *optional*, defaults to 1): widths of channels and neurons become multiples of this.
        heads (`bool`, *optional*, defaults to `True`), neurons (`bool`, *optional*, defaults to `True`): whether
            attention heads and feed-forward neurons may go; in an encoder only.
    """

    min_channels: int = 4
    round_to: int = 1
    heads: bool = True
    neurons: bool = True

    def __post_init__(self):
        super().__post_init__()
        self._at_least_one("min_channels", "round_to")
        if not self.heads and not self.neurons:
            raise RecipeError(
                "heads: got false, and neurons is false too, so nothing may go; set one of them to true."
            )
