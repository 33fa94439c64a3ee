"""The stages that the steps of a recipe make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .recipe import Recipe, Step


DENSE = ("finetune", "distill")  # techniques that leave the model as it is built


@dataclass(frozen=True)
class PlannedStage:
    """`step` is `None` for a model taken as it is; `source` is "model" (the recipe's), "teacher" or "previous"."""

    name: str
    step: Step | None
    source: str


def plan(recipe: Recipe) -> list[PlannedStage]:
    """The stages of a recipe, in order; exactly one is named `NN_baseline`."""
    techniques = [step.technique for step in recipe.steps]
    names = stage_names(techniques)
    stages: list[PlannedStage] = []
    if len(names) > len(techniques):
        stages.append(PlannedStage(names[0], None, "teacher" if teacher_is_baseline(techniques) else "model"))
    for index, (step, name) in enumerate(zip(recipe.steps, names[len(stages) :], strict=True)):
        from_recipe = index == 0 and (not stages or stages[0].source == "teacher")
        stages.append(PlannedStage(name, step, "model" if from_recipe else "previous"))
    return stages


def stage_names(techniques: Sequence[str]) -> list[str]:
    """The names of the stages of steps of these techniques: of each step one, and before them the model as it came,
    unless the steps train it first."""
    dense = [technique in DENSE for technique in techniques]
    leading = dense.index(False) if False in dense else len(dense)
    if teacher_is_baseline(techniques) or leading == 0:
        names = ["baseline", *techniques]
    else:
        names = [*techniques[: leading - 1], "baseline", *techniques[leading:]]
    return [f"{index:02d}_{name}" for index, name in enumerate(names)]


def teacher_is_baseline(techniques: Sequence[str]) -> bool:
    """Whether the steps only distill, so that what they are compared with is the teacher."""
    return "distill" in techniques and all(technique in (*DENSE, "quantize") for technique in techniques)


def history(recipe: Recipe, stages: Sequence[PlannedStage], index: int) -> dict:
    """What a stage of a (resolved) recipe is made from, and what it is measured at, JSON-plain: stages with the same
    history are the same."""
    plain = recipe.to_dict()
    before = stages[: index + 1]
    return {
        **{key: plain[key] for key in ("task", "model", "training", "measure", "seed", "threads")},
        "names": [stage.name for stage in before],
        "sources": [teacher_of(stages) if stage.source == "teacher" else stage.source for stage in before],
        "steps": [None if stage.step is None else stage.step.to_dict() for stage in before],
    }


def teacher_of(stages: Sequence[PlannedStage]) -> str:
    """The teacher of a recipe that only distills into another student."""
    return next(s.step.options.teacher for s in stages if s.step and s.step.technique == "distill")


def may_follow(recipe: Recipe, other: Recipe, output_dir: Path) -> bool:
    """Whether nothing in `output_dir` is lost if `recipe` goes on where `other` ended: its stages are all stages of
    this one too, and none is half-made. So it is after a step was refused and the recipe corrected."""
    if (output_dir / "results.json").exists():
        return False
    ours, theirs, folder = plan(recipe), plan(other), output_dir / "stages"
    finished = [index for index, stage in enumerate(theirs) if (folder / stage.name).is_dir()]
    return not any(path.is_dir() for path in (folder / ".work").glob("*/*")) and all(
        index < len(ours) and history(other, theirs, index) == history(recipe, ours, index) for index in finished
    )
