"""What a run came to: the measurements of its stages put together as `results.json` has them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .errors import RecipeError
from .plan import PlannedStage, history
from .recipe import Recipe, load_recipe
from .results import new_results
from .stages import stage_seconds, timed_how
from .storage import read_json
from .store import stage_key
from .tasks import Task


def assemble(
    recipe: Recipe, stages: Sequence[PlannedStage], folders: Sequence[Path], run_dir: Path, facts: dict
) -> dict:
    """The results of a run whose stages lie, measured, in `folders`; `facts` are its task's, see [`task_facts`]."""
    results = new_results(recipe.to_dict(), read_json(run_dir / "environment.json"), facts)
    results["origin"] = origin(recipe.model.name_or_path)
    for index, (stage, folder) in enumerate(zip(stages, folders, strict=True)):
        record = read_json(folder / "measurement.json")
        record.pop("cost")
        record["warnings"] += _timed_otherwise(record.pop("timed", {}), timed_how(recipe))
        record["seconds"] = stage_seconds(folder, stage.name)
        record["key"] = stage_key(history(recipe, stages, index))
        results["stages"].append(record)
    return results


def origin(name: str) -> str:
    """The model that `name` goes back to, through the runs that made it one from another."""
    seen = set()
    with suppress(RecipeError):  # a file of that name which is somebody else's
        while name not in seen and _is_result(folder := Path(name).expanduser()):
            seen.add(name)
            name = load_recipe(folder.parent / "recipe.yaml").model.name_or_path
    return name


def _is_result(folder: Path) -> bool:
    """Whether `folder` is the `model` of a finished run."""
    files = (folder / "config.json", folder.parent / "recipe.yaml", folder.parent / "results.json")
    return folder.name == "model" and all(file.is_file() for file in files)


def _timed_otherwise(then: dict, now: dict) -> list[str]:
    """What to say of a stage whose latencies were measured in another way than the recipe, or the machine, now has."""
    differences = [f"{key}: {then[key]}, not {now[key]}" for key in now if key in then and then[key] != now[key]]
    if not differences:
        return []
    return [f"timed in an earlier run ({'; '.join(differences)}); give another output_dir to measure anew"]


def task_facts(task: Task) -> dict:
    """What tables and cards say of the task, JSON-plain."""
    return {
        "name": task.name,
        "modality": task.modality,
        "main_metric": task.main_metric,
        "hub_dataset": task.hub_dataset,
        "hub_config": task.hub_config,
        "eval_split": task.eval_splits[0],
    }
