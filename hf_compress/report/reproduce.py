"""The recipes and studies of finished runs, to run again on any machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import CompressionError
from ..storage import read_json
from .effort import studies_above
from .runs import RunRecord, recipes
from .unfinished import study_rows


DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # hundreds of recipes take seconds without libyaml
BASE_KEYS = ("threads", "task", "model", "training", "measure")  # of a recipe, beside its steps, name and seed


@dataclass(frozen=True)
class Reproduction:
    """A YAML file and the commands that run it.

    Attributes:
        name (`str`): of the recipe or the study.
        text (`str`): what the file holds.
        commands (`tuple[str, ...]`): one for a study, one a seed for a recipe.
        is_study (`bool`): whether it is a study.
    """

    name: str
    text: str
    commands: tuple[str, ...]
    is_study: bool


def public_recipe(recipe: dict) -> dict:
    """The recipe without what holds on one machine only: its folder, where it was pushed to, and paths."""
    public = {key: value for key, value in recipe.items() if key not in ("output_dir", "hub")}
    if "task" in public:
        data_dir = public["task"].get("data_dir")
        public["task"] = {**public["task"], "data_dir": data_dir if data_dir == "sample" else None}
    return _without_paths(public)


def public_name(name: str) -> str:
    """A model's name, or the end of its path: `/home/me/outputs/small/model` -> `path/to/small/model`."""
    if not re.match(r"[/~\\]|[A-Za-z]:[\\/]", name):
        return name
    parts = [part for part in re.split(r"[\\/]", name) if part not in ("", "~")]
    return "/".join(["path/to", *parts[-2 if parts[-1:] == ["model"] else -1 :]])


def reproductions(records: Sequence[RunRecord]) -> list[Reproduction]:
    """A study for the runs of each study, and a recipe for each other one, over its seeds."""
    studies: dict[Path, dict[str, list[RunRecord]]] = {}
    single = []
    for record in records:
        found = next(iter(studies_above(record.folder)), None)
        place = record.folder.absolute()
        if found is not None and place.parent.parent == found / "runs":
            studies.setdefault(found, {}).setdefault(place.parent.name, []).append(record)
        else:
            single.append(record)
    return [
        *(_study(folder, variants) for folder, variants in studies.items()),
        *(_recipe(name, members) for name, members in recipes(single).items()),
    ]


def _recipe(name: str, members: Sequence[RunRecord]) -> Reproduction:
    seeds = list(dict.fromkeys(record.results.get("seed", 0) for record in members))
    file = f"{file_name(name)}.yaml"
    commands = [f"hf-compress run {file}"]
    commands += [f"hf-compress run {file} seed={s} output_dir=outputs/{file_name(name)}-seed{s}" for s in seeds[1:]]
    return Reproduction(name, _dump(public_recipe(members[0].results["recipe"])), tuple(commands), False)


def _seeds(folder: Path, variants: dict[str, list[RunRecord]]) -> dict[str, list[int]]:
    """By variant, the seeds that the study gave it, runs that failed among them."""
    found = {name: {record.results.get("seed", 0) for record in members} for name, members in variants.items()}
    for run in study_rows(folder):
        if run.get("variant") in found and isinstance(run.get("seed"), int):
            found[run["variant"]].add(run["seed"])
    return {name: sorted(seeds) for name, seeds in found.items()}


def _study(folder: Path, variants: dict[str, list[RunRecord]]) -> Reproduction:
    """The study as its runs resolved it; the file it was read from does not lie in its folder."""
    plain = {name: public_recipe(members[0].results["recipe"]) for name, members in variants.items()}
    first = next(iter(plain.values()))
    base = {key: first[key] for key in BASE_KEYS if key in first}
    seeds_of = _seeds(folder, variants)
    seeds = sorted({seed for own in seeds_of.values() for seed in own})
    name = _writable(_study_name(folder))
    lines = [_dump({"name": name, "base": {**base, "steps": []}, "seeds": seeds}), "variants:\n"]
    for variant, recipe in plain.items():
        # a line a step, for there may be hundreds of variants
        lines += [
            f"  {_flow([_writable(variant)])[1:-1]}:\n",
            "    steps:\n" if recipe.get("steps") else "    steps: []\n",
        ]
        lines += [f"    - {_flow(step)}\n" for step in recipe.get("steps", [])]
        other = {key: recipe.get(key) for key in BASE_KEYS if recipe.get(key) != first.get(key)}
        lines += [f"    set: {_flow(other)}\n"] if other else []
        lines += [f"    seeds: {_flow(seeds_of[variant])}\n"] if seeds_of[variant] != seeds else []
    return Reproduction(name, "".join(lines), (f"hf-compress study {file_name(name)}.yaml",), True)


def _study_name(folder: Path) -> str:
    try:
        value = read_json(folder / "study.json")
    except CompressionError:
        value = None
    name = value.get("name") if isinstance(value, dict) else None
    return name if isinstance(name, str) and name else folder.name


def file_name(name: str) -> str:
    """`name` as that of a file on any system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:100] or "unnamed"


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {_writable(key): _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return _writable(public_name(value)) if isinstance(value, str) else value


def _writable(text: str) -> str:
    """`text` without halves of surrogate pairs, which YAML does not have."""
    return text.encode("utf-8", "backslashreplace").decode()


def _dump(value: dict) -> str:
    return yaml.dump(value, Dumper=DUMPER, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def _flow(value: Any) -> str:
    """`value` in one line."""
    text = yaml.dump(value, Dumper=DUMPER, sort_keys=False, allow_unicode=True, default_flow_style=True, width=2**30)
    return text.rstrip("\n")
