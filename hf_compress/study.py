"""A study: many recipes over one task, that share what they have in common.

    name: cifar10-resnet20
    base:                      # a recipe without name and seed, or the path of one
      task: {name: cifar10}
      model: {name_or_path: resnet20_cifar10}
      steps: []
    seeds: [0, 1, 2]
    variants:
      prune:   {add: [{prune: {method: magnitude, target: {macs: 0.5}}}]}
      curve:   {add: [{prune: {method: magnitude, target: {macs: 0.5}}}], grid: {steps.0.target.macs: [0.7, 0.5, 0.3]}}
      depth:   {add: [{prune: {method: depth, target: {macs: 0.5}}}], seeds: [0]}
      student: {steps: [{distill: {teacher: resnet56_cifar10}}], set: {model.from_config: true}}
      all:     {add: [...], orders: [[prune, factorize, distill, quantize], [prune, distill, factorize, quantize]]}

A variant's steps are the base's, or `steps` in their place, with those of `add` after them. `orders` are permutations
of `add`, or of `steps` where nothing is added; `set` are overrides and `grid` lists of overrides, all in the spelling
of the command line. `seeds` of a variant stand instead of the study's.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import CompressionError, RecipeError
from .fields import from_mapping
from .recipe import Recipe
from .recipe_text import apply_overrides, choose_size, read_yaml, set_value


NAMEABLE = "A-Za-z0-9._-"  # what a name, also of a folder, is made of


@dataclass
class Variant:
    """One way to compress, or a family of them.

    Args:
        steps (`list[dict]`, *optional*): instead of the base's steps.
        add (`list[dict]`, *optional*): after them.
        set (`dict[str, Any]`, *optional*): overrides, such as `{training.num_train_epochs: 2}`.
        grid (`dict[str, list]`, *optional*): overrides with several values each; every combination is a variant, named
            by keys and values, with `-` for what no name can hold.
        orders (`list[list[str]]`, *optional*): orders, by technique, of `add`, or of `steps` where nothing is added;
            each is a variant.
        seeds (`list[int]`, *optional*): instead of the study's, for a variant that is worth fewer runs.
    """

    steps: list[dict[str, Any]] | None = None
    add: list[dict[str, Any]] = field(default_factory=list)
    set: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    orders: list[list[str]] = field(default_factory=list)
    seeds: list[int] | None = None


@dataclass(frozen=True)
class StudyRun:
    """One run of a study: a variant with a seed."""

    variant: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.variant}/seed{self.seed}"


@dataclass
class Study:
    """A study, expanded.

    Attributes:
        name (`str`): also of its folder, `outputs/<name>` unless `output_dir` says otherwise.
        output_dir (`Path`): holds `runs/<variant>/seed<seed>`, the shared `stages`, and `study.json`.
        runs (`list[StudyRun]`): variant by variant, with all its seeds.
    """

    name: str
    output_dir: Path
    runs: list[StudyRun]

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(run.variant for run in self.runs))


@dataclass
class _RawStudy:
    name: str
    base: Any
    variants: dict[str, Any]
    seeds: list[int] = field(default_factory=lambda: [0])
    output_dir: str | None = None


def is_study(path: str | Path) -> bool:
    """Whether the YAML file at `path` is a study and not a recipe."""
    value = read_yaml(path)
    return isinstance(value, dict) and "variants" in value


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read and expand a study; every recipe in it is checked.

    Args:
        path (`str` or `Path`): a YAML file.
        overrides (`Sequence[str]`, *optional*): `seeds=[0]`, `output_dir=…`, or `base.…=…`, for the size of a base
            that has several `base.size=…`.

    Raises:
        `RecipeError`: names the key by its path, what is allowed and the nearest valid name.
    """
    value = read_yaml(path)
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: a study is a mapping with name, base and variants.")
    if isinstance(value.get("base"), str):
        base = Path(path).parent / Path(value["base"]).expanduser()
        value["base"] = read_yaml(base)
    size = [override for override in overrides if override.startswith("base.size=")]
    choose_size(value.get("base"), [override.removeprefix("base.") for override in size])
    apply_overrides(value, [override for override in overrides if override not in size])
    raw = from_mapping(_RawStudy, value, "study")
    if not isinstance(raw.base, dict):
        raise RecipeError("study.base: give a recipe without name and seed, or the path of one.")
    if not raw.variants:
        raise RecipeError("study.variants: got none; give at least one, such as prune: {add: [...]}.")
    _check_seeds(raw.seeds, "study.seeds")
    output_dir = Path(raw.output_dir or f"outputs/{raw.name}").expanduser()
    base = {key: item for key, item in raw.base.items() if key not in ("name", "seed", "output_dir", "hub")}
    runs: list[StudyRun] = []
    for name, body in raw.variants.items():
        if not re.fullmatch(f"[A-Za-z0-9][{NAMEABLE}]*", str(name)):
            raise RecipeError(f"variants.{name}: a name is of letters, digits, '.', '_' and '-'.")
        variant = from_mapping(Variant, {} if body is None else body, f"variants.{name}")
        seeds = raw.seeds if variant.seeds is None else _check_seeds(variant.seeds, f"variants.{name}.seeds")
        for full_name, recipe in _expand(str(name), variant, base):
            if any(run.variant == full_name for run in runs):
                raise RecipeError(f"variants.{full_name}: this name stands for two variants; rename one.")
            runs += [_run(raw.name, full_name, recipe, seed, output_dir) for seed in seeds]
    return Study(raw.name, output_dir, runs)


def _check_seeds(seeds: list[int], path: str) -> list[int]:
    if not seeds or len(set(seeds)) < len(seeds):
        raise RecipeError(f"{path}: got {seeds}; give at least one, each once.")
    return seeds


def _run(study: str, variant: str, recipe: dict, seed: int, output_dir: Path) -> StudyRun:
    plain = {
        **copy.deepcopy(recipe),
        "name": f"{study}-{variant}",
        "seed": seed,
        "output_dir": str(output_dir / "runs" / variant / f"seed{seed}"),
    }
    try:
        return StudyRun(variant, seed, Recipe.from_dict(plain))
    except CompressionError as error:
        raise RecipeError(f"variants.{variant}: {error}") from None


def _expand(name: str, variant: Variant, base: dict) -> Iterator[tuple[str, dict]]:
    """The recipes that a variant stands for, each with its full name."""
    first = list(base.get("steps") or []) if variant.steps is None else variant.steps
    first, ordered = (first, variant.add) if variant.add else ([], first)
    orders = [_ordered(ordered, order, name) for order in variant.orders] or [ordered]
    grid = [[(key, value) for value in values] for key, values in variant.grid.items()]
    names = {key: _value_names(values) for key, values in variant.grid.items()}
    for order, point in itertools.product(orders, itertools.product(*grid)):
        recipe = copy.deepcopy({**base, "steps": [*first, *order]})
        for key, value in (*variant.set.items(), *point):
            set_value(recipe, key, value)
        parts = [name]
        if variant.orders:
            parts.append("-".join(next(iter(step)) for step in order))
        parts += [_nameable(key.rsplit(".", 1)[-1]) + names[key][str(value)] for key, value in point]
        yield "-".join(parts), recipe


def _value_names(values: Sequence) -> dict[str, str]:
    """What stands for each value in a name, by the value's text: `a/b` is `a-b`, or `a-b-2` where another one is."""
    texts = sorted(map(str, values), key=lambda text: text != _nameable(text))  # those that are names already stay
    names: dict[str, str] = {}
    for text in dict.fromkeys(texts):
        name, number = _nameable(text), 2
        while name in names.values():
            name, number = f"{_nameable(text)}-{number}", number + 1
        names[text] = name
    return names


def _nameable(text: str) -> str:
    return text if re.fullmatch(f"[{NAMEABLE}]*", text) else re.sub(f"[^{NAMEABLE}]+", "-", text).strip("-")


def _ordered(steps: Sequence[Mapping], order: Sequence[str], name: str) -> list:
    """`steps` in the order of the techniques named; each must be named as often as it is there."""
    left = list(steps)
    ordered = []
    for technique in order:
        found = next((step for step in left if technique in step), None)
        if found is None:
            break
        left.remove(found)
        ordered.append(found)
    if left or len(ordered) < len(order):
        there = ", ".join(next(iter(step)) for step in steps)
        raise RecipeError(
            f"variants.{name}.orders: got {list(order)}; each order must name exactly the steps {there}."
        )
    return ordered
