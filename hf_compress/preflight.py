"""What can be known of a recipe before its data and models are loaded: what depends on the machine, its trainings,
where its teachers are, and whether the weights that it starts from are those that its stages were made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from .errors import CompressionError
from .measurement import default_threads
from .models import find_model, find_teacher
from .models.checkpoint import weight_files
from .recipe import Recipe, Step
from .storage import read_json
from .training import build_arguments, check_training, choose_bf16


# fields that change the whole process, and so are for the training itself to set
OF_THE_PROCESS = ("tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode")


def resolved(recipe: Recipe) -> Recipe:
    """`recipe` with what depends on the machine settled: threads, and bf16 or not, which is part of what it means."""
    training = choose_bf16(recipe.training)

    def settled(step: Step) -> Step:
        bf16 = choose_bf16({**recipe.training, **step.training})["bf16"]
        if bf16 == training["bf16"] or "bf16" in step.training:
            return step
        return replace(step, training={"bf16": bf16, **step.training})

    threads = recipe.threads or default_threads()
    return replace(recipe, threads=threads, training=training, steps=[settled(step) for step in recipe.steps])


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


def check_sources(recipe: Recipe, made: Iterable[Path]) -> None:
    """Refuse to go on from stages that were made of other weights than a local model or teacher has now.

    Args:
        recipe ([`Recipe`]): what is to be done.
        made (`Iterable[Path]`): folders of stages that are there already, this run's and those it shares.

    Raises:
        `CompressionError`: names the model and the stage.
    """
    named = {recipe.model.name_or_path, *(step.teacher for _, step in teachers(recipe))}
    sources = [(folder, read_json(folder / "report.json").get("sources", {})) for folder in made]
    now = weights_of(named & {name for _, of in sources for name in of})
    for folder, of in sources:
        for name in now.keys() & of.keys():
            if now[name] != of[name]:
                raise CompressionError(
                    f"{name}: its weights have changed since {folder} was made of it. Give another output_dir, so "
                    "that nothing mixes the two, or put the former ones back."
                )


def weights_of(names: Iterable[str]) -> dict[str, str]:
    """By name, the digest of the weights of the models that lie in local folders."""
    found = {}
    for name in names:
        with suppress(CompressionError):  # which whoever loads it will say
            where, _ = find_model(name)
            if isinstance(where, Path):
                digest = hashlib.sha256()
                for file in weight_files(where):
                    with open(file, "rb") as content:
                        digest.update(hashlib.file_digest(content, "sha256").digest())
                found[name] = digest.hexdigest()[:16]
    return found
