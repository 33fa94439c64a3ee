"""About how long a recipe takes and how much memory: its steps are rehearsed, and what was timed is multiplied."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..measurement import configure_threads, timing_lock
from ..measurement.machine import usable_cores
from ..plan import history, plan
from ..recipe import Recipe
from ..store import stage_key
from .checks import finished_stages
from .rehearsal import Rehearsal, Timing


OPERATIONS = ("train", "surgery", "calibrate", "evaluate", "measure")
LOCK_PATIENCE = 20.0  # seconds to wait for another process's timings


@dataclass(frozen=True)
class StageEstimate(Timing):
    """The timing of a stage of a recipe.

    Attributes:
        recipe (`str`), seed (`int`), stage (`str`): which stage.
        done (`bool`): whether it lies in the output folder already.
    """

    recipe: str
    seed: int
    stage: str
    done: bool

    @property
    def seconds(self) -> float:
        return sum(getattr(self, operation) for operation in OPERATIONS)

    def to_dict(self) -> dict:
        return {**asdict(self), "seconds": self.seconds}


@dataclass
class Estimate:
    """The stages of some recipes, those that they share once, and what the figures rest on."""

    stages: list[StageEstimate] = field(default_factory=list)
    basis: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of all stages that are not done yet."""
        return sum(stage.seconds for stage in self.stages if not stage.done)

    @property
    def peak_bytes(self) -> int:
        return max((stage.peak_bytes for stage in self.stages if not stage.done), default=0)

    @property
    def disk_bytes(self) -> int:
        return sum(stage.disk_bytes for stage in self.stages if not stage.done)


def estimate(recipes: Sequence[Recipe], store: Path | None = None) -> Estimate:
    """Rehearse the recipes' steps on their models and say what their stages would take, those that they share once.

    Args:
        recipes (`Sequence[Recipe]`): resolved. Recipes that differ in nothing but the seed are rehearsed once.
        store (`Path`, *optional*): the shared stages of the study that they belong to.

    Raises:
        `CompressionError`: if a model or a teacher is not here; `TargetError` or `UnsupportedModelError`: if a step
            would be refused when its turn comes.
    """
    found, seen, known, basis = [], set(), {}, []
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    with _quiet(), timing_lock(timeout=LOCK_PATIENCE) as undisturbed:
        for recipe in recipes:
            timings = _timings(recipe, known, basis)
            done, stages = finished_stages(recipe, store), plan(recipe)
            for index, (stage, timing) in enumerate(zip(stages, timings, strict=True)):
                key = stage_key(history(recipe, stages, index))
                if key not in seen:
                    which = {"recipe": recipe.name, "seed": recipe.seed, "stage": stage.name}
                    found.append(StageEstimate(**asdict(timing), **which, done=stage.name in done))
                seen.add(key)
    basis = list(dict.fromkeys(basis))
    if not undisturbed:
        basis.append("another process timed its models meanwhile")
    if load > usable_cores() / 2:
        basis.append(f"the machine was busy (a load of {load:.1f} on {usable_cores()} cores), and is taken to stay so")
    return Estimate(found, basis)


def _timings(recipe: Recipe, known: dict[str, Timing], basis: list[str]) -> list[Timing]:
    """Of each stage of a recipe; `known` are those of other recipes, by what they are made from."""
    stages = plan(recipe)
    unseeded = replace(recipe, seed=0)
    keys = [stage_key(history(unseeded, stages, index)) for index in range(len(stages))]
    last = max((index for index, key in enumerate(keys) if key not in known), default=-1)
    if last >= 0:
        configure_threads(recipe.threads)
        rehearsal = Rehearsal(recipe)
        for stage, key in list(zip(stages, keys, strict=True))[: last + 1]:
            timing = rehearsal.stage(stage, timed=key not in known)
            known.setdefault(key, timing)
        basis += rehearsal.basis
    return [known[key] for key in keys]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what loading, surgery and training tell of themselves; this is not the run."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
