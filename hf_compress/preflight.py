"""What can be known of a recipe before its data and models are loaded: its trainings, and where its teachers are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .errors import CompressionError
from .models import find_teacher
from .recipe import Recipe, Step
from .training import build_arguments, check_training


# fields that change the whole process, and so are for the training itself to set
OF_THE_PROCESS = ("tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode")


def check_trainings(recipe: Recipe) -> None:
    """Refuse a training block that a training of the recipe could not be made of.

    Raises:
        `RecipeError`: names the block by its path.
    """
    check_training(recipe.training)
    for index, step in enumerate(recipe.steps):
        path = f"steps.{index}.{step.technique}.training" if step.training else "training"
        check_training(step.training, path)
        if step.trains:
            fields = {**recipe.training, **step.training}
            tried = {name: value for name, value in fields.items() if name not in OF_THE_PROCESS}
            build_arguments(tried, "unused", recipe.seed, path)


def teachers(recipe: Recipe) -> Iterator[tuple[str, Step]]:
    """The steps that learn from another model than the dense one, each after the path of its teacher."""
    for index, step in enumerate(recipe.steps):
        if step.teacher not in (None, "baseline"):
            block = step.technique if step.technique == "distill" else f"{step.technique}.distill"
            yield f"steps.{index}.{block}.teacher", step


def find_teacher_of(step: Step, path: str, output_dir: Path) -> None:
    """Refuse the teacher of `step`, found at `path` of the recipe, if it is nowhere; the Hub is not asked, and one in
    `output_dir` may still be made.

    Raises:
        `CompressionError`: as [`find_teacher`], with the path.
    """
    if Path(step.teacher).expanduser().absolute().is_relative_to(output_dir.absolute()):
        return
    try:
        find_teacher(step.teacher)
    except CompressionError as error:
        raise type(error)(f"{path}: {error}") from None
