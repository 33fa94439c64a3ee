"""Methods with their options, and the contract between a method and whoever runs it.

A method is a function registered under a technique and a name:

    @register_method("prune", "magnitude", options=MagnitudeOptions, targets={"macs", "params"}, paper="...")
    def prune_magnitude(model, options, context): ...

It changes `model` in place and returns `None`; a method of the technique `quantize` returns the exported model.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .errors import CompressionError, RecipeError


if TYPE_CHECKING:
    import torch
    from torch import nn

    Batch = dict[str, torch.Tensor]

TECHNIQUES = ("finetune", "prune", "factorize", "distill", "quantize")
TARGET_KINDS = ("macs", "params", "latency", "size")
SCOPES = ("model", "encoder")


@dataclass(frozen=True)
class Target:
    """What a step must reach, as a fraction of the baseline.

    Args:
        kind (`str`): one of `TARGET_KINDS`.
        fraction (`float`): in (0, 1].
        scope (`str`, *optional*, defaults to `"model"`): `"model"`, or `"encoder"` for the repeated blocks only.
    """

    kind: str
    fraction: float
    scope: str = "model"

    def __post_init__(self):
        if self.kind not in TARGET_KINDS:
            raise RecipeError(f"target: got the kind {self.kind!r}; allowed are {', '.join(TARGET_KINDS)}.")
        if isinstance(self.fraction, bool) or not isinstance(self.fraction, int | float) or not 0 < self.fraction <= 1:
            raise RecipeError(
                f"target.{self.kind}: got {self.fraction!r}; give the fraction of the baseline that is to be left, "
                "more than 0 and at most 1."
            )
        if self.scope not in SCOPES:
            raise RecipeError(f"target.scope: got {self.scope!r}; allowed are {', '.join(SCOPES)}.")
        if self.scope != "model" and self.kind not in ("macs", "params"):
            raise RecipeError(
                f"target.scope: got {self.scope} with {self.kind}; it is for macs and params, leave it out."
            )

    @classmethod
    def from_dict(cls, value: dict) -> Target:
        """Read `{"macs": 0.5, "scope": "encoder"}`."""
        if not isinstance(value, dict):
            raise RecipeError(f"target: got {value!r}; give a mapping such as {{macs: 0.5}}.")
        unknown = [key for key in value if key not in (*TARGET_KINDS, "scope")]
        if unknown:
            raise RecipeError(
                f"target.{unknown[0]}: unknown key{nearest(unknown[0], (*TARGET_KINDS, 'scope'))}; allowed are "
                f"{', '.join(TARGET_KINDS)} and scope."
            )
        kinds = [key for key in value if key in TARGET_KINDS]
        if len(kinds) != 1:
            raise RecipeError(f"target: got {sorted(kinds) or 'none'}; give exactly one of {', '.join(TARGET_KINDS)}.")
        return cls(kinds[0], value[kinds[0]], value.get("scope", "model"))

    def to_dict(self) -> dict:
        return {self.kind: self.fraction, "scope": self.scope}


@dataclass
class Cost:
    """What a model costs. `params` and `macs` count the whole model, `encoder_*` its repeated blocks only.

    `macs` are multiply-accumulates of one example, of as many tokens as the recipe measures at, or of the image size.
    `latency` (seconds, the median of one batch in the serving runtime) and `size` (bytes on disk) are `None` where
    nobody measured them.
    """

    params: int
    macs: int
    encoder_params: int
    encoder_macs: int
    nonzero_params: int | None = None
    latency: float | None = None
    size: int | None = None

    def of(self, target: Target) -> float:
        """The figure that `target` speaks of."""
        if target.kind in ("params", "macs"):
            return getattr(self, target.kind if target.scope == "model" else f"encoder_{target.kind}")
        value = getattr(self, target.kind)
        if value is None:
            raise CompressionError(f"target.{target.kind}: this cost was not measured here; use macs or params.")
        return value


class StepContext(Protocol):
    """All that a method may know. The runner builds one from a recipe, a verb one from a model and data."""

    seed: int
    target: Target | None
    budget: float | None  # the target as an absolute figure: target.fraction * baseline_cost.of(target)
    baseline_cost: Cost
    serving: Any  # the runtime, precision and batch that a target of latency speaks of, see `measurement.Serving`
    output_dir: Path | None  # where an exporting method may keep its working files

    def calibration(self, n: int) -> Iterable[Batch]:
        """Batches, in eval form, of the first `n` examples of a seeded shuffle of the training split."""

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The task's loss of `model` on `batch`, a scalar with its graph."""

    def cost(self, model: nn.Module) -> Cost: ...

    def train(self, model: nn.Module, *, loss_terms: Sequence = (), callbacks: Sequence = (), **overrides) -> Any:
        """Train in place on the one `Trainer` path; `overrides` are `TrainingArguments` fields."""

    def baseline(self) -> nn.Module:
        """The dense model that targets and distances refer to; loaded when asked for, eval mode."""

    def progress(self, iterable: Iterable, description: str, total: int | None = None) -> Iterable:
        """Wrap an iterable in a progress bar (silent on other ranks)."""

    def note(self, **facts) -> None:
        """Keep JSON-plain facts for the journal and the results, such as `layers={...}` or `warnings=[...]`."""


@dataclass(frozen=True)
class Method:
    """A registered method. `needs` is a subset of {"labels", "calibration", "teacher"}; `extra` has its engine."""

    technique: str
    name: str
    function: Callable[[nn.Module, Any, StepContext], Any]
    options: type
    needs: frozenset[str]
    trains: bool
    targets: frozenset[str]
    paper: str
    supports: tuple[str, ...]
    extra: str | None = None

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").strip().splitlines()[0]


def check_trains(method: Method, training: Any, distill: Any, path: str = "") -> None:
    """Refuse fields of a training where none will be.

    Raises:
        `RecipeError`: if there are fields, and neither the method trains nor a block of distillation does afterwards.
    """
    if training and distill is None and not method.trains:
        raise RecipeError(
            f"{path}training: got {', '.join(training)}, and {method.technique}/{method.name} does not train; add "
            "distill, which trains after the surgery, or leave training out."
        )


_METHODS: dict[tuple[str, str], Method] = {}


def register_method(
    technique: str,
    name: str,
    *,
    options: type,
    needs: Iterable[str] = (),
    trains: bool = False,
    targets: Iterable[str] = (),
    paper: str = "",
    supports: Iterable[str] = (),
    extra: str | None = None,
) -> Callable:
    """Register the decorated function as the method `name` of `technique`.

    Args:
        options (`type`): a dataclass; its fields are the keys a recipe's step may have beside the common ones. It may
            have a `check_target(target)` that raises where the recipe's target, or its absence, does not fit.
        needs (`Iterable[str]`, *optional*): of "labels", "calibration", "teacher".
        trains (`bool`, *optional*, defaults to `False`): whether the method trains while it compresses.
        targets (`Iterable[str]`, *optional*): the kinds of target it understands; none means it takes no target.
        paper (`str`, *optional*): the source of the formula.
        supports (`Iterable[str]`, *optional*): of "conv", "linear", "bert", "timm".
        extra (`str`, *optional*): the extra of this package that installs what it needs beyond the core.
    """
    if technique not in TECHNIQUES:
        raise ValueError(f"Unknown technique {technique!r}; allowed are {', '.join(TECHNIQUES)}.")
    if not is_dataclass(options):
        raise TypeError(f"The options of {technique}/{name} must be a dataclass, got {options!r}.")

    def register(function):
        if (technique, name) in _METHODS:
            raise ValueError(f"The method {name!r} of {technique!r} is registered already.")
        _METHODS[technique, name] = Method(
            technique=technique,
            name=name,
            function=function,
            options=options,
            needs=frozenset(needs),
            trains=trains,
            targets=frozenset(targets),
            paper=paper,
            supports=tuple(supports),
            extra=extra,
        )
        return function

    return register


def get_method(technique: str, name: str) -> Method:
    """The method registered under `technique` and `name`; a `RecipeError` names the nearest one otherwise."""
    if (technique, name) in _METHODS:
        return _METHODS[technique, name]
    known = [method.name for method in methods(technique)]
    raise RecipeError(f"{technique}.method: got {name!r}{nearest(name, known)}; allowed are {', '.join(known)}.")


def methods(technique: str | None = None) -> list[Method]:
    """All registered methods, of one technique or of all, in the order of registration."""
    return [method for method in _METHODS.values() if technique in (None, method.technique)]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as " (did you mean 'macs'?)", empty where nothing is near."""
    match = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
