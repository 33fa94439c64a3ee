"""What a YAML file says before it is a recipe: reading it, choosing one of its sizes, overriding values in it.

A recipe may come in sizes, each a block of overrides, so that one file serves a short and a long experiment:

    name: course-cifar10-prune
    size: lab                      # the one taken unless the command line says size=full
    sizes:
      lab:  {model.name_or_path: hf_compress/resnet20_cifar10, task.max_train_samples: 10000}
      full: {model.name_or_path: resnet56_cifar10}

The chosen size becomes part of the name, here `course-cifar10-prune-lab`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import RecipeError
from .registry import TECHNIQUES, nearest


MERGE = "tag:yaml.org,2002:merge"  # of the key <<


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds: plain values only, no key twice; every alias is a copy of its own.

    Raises:
        `RecipeError`: if the file is missing, cannot be read, or is not YAML.
    """
    try:
        return _load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}).") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: is not valid YAML: {error}") from None


def apply_overrides(value: Any, overrides: Sequence[str]) -> None:
    """Set what texts such as `steps.1.target.macs=0.5` say in the mapping `value`, in place."""
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise RecipeError(f"override {override!r}: write it as key=value, such as steps.1.target.macs=0.5.")
        try:
            new = _load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"override {override!r}: the value is not valid YAML: {error}") from None
        set_value(value, key, new)


def choose_size(value: Any, overrides: Sequence[str] = ()) -> list[str]:
    """Put the chosen size of the recipe `value` into it, in place; a recipe without sizes stays as it is.

    Args:
        value (`Any`): what the file holds.
        overrides (`Sequence[str]`, *optional*): of the command line; `size=…` among them chooses.

    Returns:
        `list[str]`: the overrides that are left to apply, which outrank the size's.

    Raises:
        `RecipeError`: if there is no such size, or the sizes are no blocks of overrides.
    """
    if not isinstance(value, dict) or "sizes" not in value:
        return list(overrides)
    sizes = value.pop("sizes")
    if not isinstance(sizes, dict) or not sizes or not all(isinstance(block, dict) for block in sizes.values()):
        raise RecipeError(f"recipe.sizes: got {sizes!r}; give a mapping such as {{lab: {{training.max_steps: 10}}}}.")
    apply_overrides(value, [override for override in overrides if override.startswith("size=")])
    size = value.pop("size", None)
    if size not in sizes:
        raise RecipeError(
            f"recipe.size: got {size!r}{nearest(size, sizes)}; allowed are {', '.join(map(str, sizes))}."
        )
    for key, new in sizes[size].items():
        set_value(value, key, new)
    value["name"] = f"{value.get('name')}-{size}"
    return [override for override in overrides if not override.startswith("size=")]


def set_value(value: Any, key: str, new: Any) -> None:
    """Set what stands at a path such as `steps.1.target.macs` in the mapping `value`, in place."""
    # error messages name steps.1.prune.target, so that spelling is accepted beside steps.1.target
    *parents, last = re.sub(rf"^(steps\.\d+)\.({'|'.join(TECHNIQUES)})\.", r"\1.", key).split(".")
    place = value
    for depth, part in enumerate(parents):
        path = ".".join(parents[: depth + 1])
        if isinstance(place, list):
            place = _step_body(place, part, path)
        elif isinstance(place, dict):
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        else:
            raise RecipeError(f"override {key}: {path} is no mapping.")
    if not isinstance(place, dict):
        raise RecipeError(f"override {key}: {'.'.join(parents) or 'the whole'} is no mapping.")
    place[last] = new


def _step_body(steps: list, index: str, path: str) -> dict:
    if not index.isdigit() or int(index) >= len(steps):
        raise RecipeError(f"override {path}: there are the steps 0 to {len(steps) - 1}.")
    step = steps[int(index)]
    if not isinstance(step, dict) or len(step) != 1:
        raise RecipeError(f"override {path}: {step!r} is not a valid step.")
    ((technique, body),) = step.items()
    if body is None:
        body = step[technique] = {}
    return body


def _load(text: str) -> Any:
    try:
        return _apart(yaml.load(text, _StrictLoader))
    except RecursionError:
        raise yaml.YAMLError("it holds itself, or is nested too deeply") from None
    except ValueError as error:  # such as a month 13
        raise yaml.YAMLError(str(error)) from None


def _apart(value: Any) -> Any:
    """A copy in which nothing stands in two places, so that an override changes the one that it names."""
    if isinstance(value, dict):
        return {key: _apart(item) for key, item in value.items()}
    return [_apart(item) for item in value] if isinstance(value, list) else value


class _StrictLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` that refuses repeated keys and reads `2e-5` as the number it is in YAML 1.2.

    A key may repeat one that `<<` merges, and outranks it; of several merged mappings the first one does.
    """

    def flatten_mapping(self, node):
        own, merged, sources = {}, {}, []
        for key_node, value_node in node.value:
            if key_node.tag == MERGE:
                sources += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            key = self.construct_object(key_node)
            if not isinstance(key, Hashable):
                raise _error(f"a key is a {key_node.id}; give a text or a number", key_node)
            if key in own:
                raise _error(f"the key {key!r} stands here twice", key_node)
            own[key] = key_node, value_node
        node.value = list(own.values())  # before the sources are read, which may hold this mapping itself
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                raise _error(f"<< is given a {source.id}; give it a mapping, or a list of mappings", source)
            self.flatten_mapping(source)
            for pair in source.value:
                merged.setdefault(self.construct_object(pair[0]), pair)
        node.value = list({**merged, **own}.values())


def _error(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
