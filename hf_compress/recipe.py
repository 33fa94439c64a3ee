"""A recipe: task + model + ordered steps, read from YAML strictly and checked before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .errors import RecipeError
from .fields import from_mapping
from .recipe_text import apply_overrides, choose_size, read_yaml
from .registry import TECHNIQUES, Target, check_trains, get_method, methods, nearest
from .tasks import SAMPLE, TaskSpec


DEFAULT_METHODS = {"finetune": "full", "distill": "logits", "factorize": "svd", "quantize": "openvino"}
METHOD_KEYS = {"quantize": "backend"}
# what may stand beside a method's own options
COMMON_KEYS = {
    "finetune": ("training", "distill"),
    "prune": ("target", "training", "distill"),
    "factorize": ("target",),
    "distill": ("training",),
    "quantize": (),
}


@dataclass
class ModelSpec:
    """What the run starts from.

    Args:
        name_or_path (`str`): a local folder, a name under `HF_COMPRESS_DATA`, a timm entry or a Hub id.
        revision (`str`, *optional*): of the Hub repository.
        from_config (`bool`, *optional*, defaults to `False`): random weights.
        config (`dict`, *optional*): fields of the model's configuration to set before it is built, such as
            `{num_hidden_layers: 3}` for a student of the first three layers.
    """

    name_or_path: str
    revision: str | None = None
    from_config: bool = False
    config: dict[str, Any] = field(default_factory=dict)


# What each runtime computes in; the first is what it takes by default.
PRECISIONS = {"torch": ("fp32", "bf16"), "openvino": ("f32", "bf16", "int8")}


@dataclass
class MeasureSpec:
    """What latency is measured at, and what a latency target means; of MACs it is the length.

    Args:
        runtime (`str`, *optional*, defaults to `"openvino"`): the runtime that will serve the model.
        precision (`str`, *optional*): of `PRECISIONS`; `None` takes int8 for a recipe that quantizes to it, and the
            runtime's first otherwise.
        batch (`int`, *optional*): examples at once; `None` takes 128 images or 1 sentence.
        length (`int`, *optional*): tokens of an example; `None` takes the task's `max_length`. Not for images.
        seconds (`float`, *optional*, defaults to 10): about how long one comparison may take.
    """

    runtime: Literal["openvino", "torch"] = "openvino"
    precision: Literal["fp32", "f32", "bf16", "int8"] | None = None
    batch: int | None = None
    length: int | None = None
    seconds: float = 10.0

    def __post_init__(self):
        allowed = PRECISIONS[self.runtime]
        if self.precision is not None and self.precision not in allowed:
            raise RecipeError(
                f"measure.precision: got {self.precision!r} for {self.runtime}; allowed are {', '.join(allowed)}."
            )
        for name in ("batch", "length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"measure.{name}: got {value}; give a whole number of at least 1.")
        if not self.seconds > 0:
            raise RecipeError(f"measure.seconds: got {self.seconds}; give a time above 0.")


@dataclass
class HubSpec:
    push: bool = False
    repo_id: str | None = None
    private: bool = False


@dataclass
class Step:
    """One technique with its options. `options` and `distill` are instances of the methods' options dataclasses."""

    technique: str
    method: str
    options: Any
    target: Target | None = None
    training: dict[str, Any] = field(default_factory=dict)
    distill: Any = None

    @property
    def trains(self) -> bool:
        return self.distill is not None or get_method(self.technique, self.method).trains

    @property
    def teacher(self) -> str | None:
        """The name of the model that it learns from, "baseline" for the dense one."""
        return getattr(self.options if self.technique == "distill" else self.distill, "teacher", None)

    def to_dict(self) -> dict:
        body: dict[str, Any] = {METHOD_KEYS.get(self.technique, "method"): self.method, **asdict(self.options)}
        if self.target:
            body["target"] = self.target.to_dict()
        if self.training:
            body["training"] = self.training
        if self.distill is not None:
            body["distill"] = asdict(self.distill)
        return {self.technique: body}


@dataclass
class Recipe:
    name: str
    task: TaskSpec
    model: ModelSpec
    steps: list[Step]
    seed: int = 0
    output_dir: str | None = None
    threads: int | None = None
    training: dict[str, Any] = field(default_factory=dict)
    measure: MeasureSpec = field(default_factory=MeasureSpec)
    hub: HubSpec = field(default_factory=HubSpec)

    def __post_init__(self):
        if self.output_dir is None:
            self.output_dir = f"outputs/{self.name}"

    def to_dict(self) -> dict:
        """The resolved recipe, JSON-plain; `Recipe.from_dict` reads it back."""
        return {
            "name": self.name,
            "seed": self.seed,
            "output_dir": self.output_dir,
            "threads": self.threads,
            "task": asdict(self.task),
            "model": asdict(self.model),
            "training": self.training,
            "measure": asdict(self.measure),
            "steps": [step.to_dict() for step in self.steps],
            "hub": asdict(self.hub),
        }

    @property
    def length(self) -> int | None:
        """Tokens of the examples whose MACs are counted and whose latency is measured; `None` for images."""
        return (self.measure.length or self.task.max_length) if self.task.modality == "text" else None

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_dict(cls, value: Any) -> Recipe:
        """Read and check a recipe.

        Raises:
            `RecipeError`: names the key by its path, what is allowed and the nearest valid name.
        """
        if value is None or value == {}:
            raise RecipeError("The recipe is empty; it needs at least name, task, model and steps.")
        if not isinstance(value, dict):
            raise RecipeError(f"The recipe is a {type(value).__name__}; give a mapping with name, task, model, steps.")
        raw = from_mapping(_RawRecipe, value, "recipe")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", raw.name):
            raise RecipeError(f"recipe.name: got {raw.name!r}; use letters, digits, '.', '_' and '-'.")
        if raw.threads is not None and raw.threads < 1:
            raise RecipeError(f"recipe.threads: got {raw.threads}; give a whole number of at least 1, or null.")
        steps = [_read_step(step, f"steps.{index}") for index, step in enumerate(raw.steps)]
        check_order(steps)
        arguments = {name: getattr(raw, name) for name in cls.__dataclass_fields__ if name != "steps"}
        recipe = cls(**arguments, steps=steps)
        if recipe.measure.length is not None and recipe.length is None:
            raise RecipeError(
                f"measure.length: got {recipe.measure.length}, and the images of {recipe.task.name} have no length in "
                "tokens; leave it out, or give null."
            )
        if recipe.hub.push and not _is_repo_id(recipe.hub.repo_id):
            raise RecipeError(
                f"hub.repo_id: got {recipe.hub.repo_id!r}; to push, give user/name, "
                "of letters, digits, '.', '_' and '-'."
            )
        return recipe

    def identity(self) -> str:
        """Hash of what determines the result: task, model, training, steps, seed and the length that MACs are counted
        at; no paths, no Hub settings. If a target speaks of latency, what it is measured at is part of it.

        The sample of the package is other data, not another place of the same.
        """
        plain = self.to_dict()
        if plain["task"]["data_dir"] != SAMPLE:
            plain["task"].pop("data_dir")
        kept = {key: plain[key] for key in ("task", "model", "training", "steps", "seed")}
        kept |= {"precision": plain["measure"]["precision"], "length": self.length}
        if any(step.target is not None and step.target.kind == "latency" for step in self.steps):
            served = {key: value for key, value in plain["measure"].items() if key not in ("length", "seconds")}
            kept["served"] = {**served, "threads": plain["threads"]}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class _RawRecipe:
    name: str
    task: TaskSpec
    model: ModelSpec
    steps: list
    seed: int = 0
    output_dir: str | None = None
    threads: int | None = None
    training: dict[str, Any] = field(default_factory=dict)
    measure: MeasureSpec = field(default_factory=MeasureSpec)
    hub: HubSpec = field(default_factory=HubSpec)


def load_recipe(source: str | Path | dict | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file or a mapping and apply overrides such as `steps.1.target.macs=0.5`.

    Raises:
        `RecipeError`: if the file is missing, empty, not YAML, or not a valid recipe, or the mapping holds more than
            plain values and paths.
    """
    if isinstance(source, Recipe):
        source = source.to_dict()
    if isinstance(source, dict):
        try:
            value = json.loads(json.dumps(source, default=os.fspath))  # a copy, and proof that it is plain
        except (TypeError, ValueError) as error:
            raise RecipeError(
                f"The recipe holds more than texts, numbers, lists, mappings and paths: {error}."
            ) from None
    else:
        value = read_yaml(source)
    overrides = choose_size(value, overrides)
    apply_overrides(value, overrides)
    return Recipe.from_dict(value)


def _read_step(value: Any, path: str) -> Step:
    if not isinstance(value, dict) or len(value) != 1:
        raise RecipeError(
            f"{path}: got {value!r}; a step is a mapping with one key, one of {', '.join(TECHNIQUES)}, "
            "such as {prune: {method: magnitude, target: {macs: 0.5}}}."
        )
    ((technique, body),) = value.items()
    if technique not in TECHNIQUES:
        raise RecipeError(
            f"{path}.{technique}: unknown technique{nearest(technique, TECHNIQUES)}; allowed are "
            f"{', '.join(TECHNIQUES)}."
        )
    path = f"{path}.{technique}"
    if body is None:
        body = {}
    if not isinstance(body, dict):
        raise RecipeError(f"{path}: got {body!r}; give a mapping of options.")
    body = dict(body)
    method_key = METHOD_KEYS.get(technique, "method")
    name = body.pop(method_key, DEFAULT_METHODS.get(technique))
    if name is None:
        known = ", ".join(method.name for method in methods(technique))
        raise RecipeError(f"{path}.{method_key}: this key is required and missing; allowed are {known}.")
    try:
        method = get_method(technique, name)
    except RecipeError as error:
        raise RecipeError(f"{path}.{str(error).split('.', 1)[1]}") from None
    common = {key: body.pop(key) for key in COMMON_KEYS[technique] if key in body}
    for key in ("target", "training", "distill"):
        if key in body:
            raise RecipeError(f"{path}.{key}: a {technique} step takes no {key}.")
    options = _read_options(method, body, path, common)
    step = Step(technique, name, options)
    if common.get("target") is not None:
        step.target = _read_target(common["target"], method, path)
    if common.get("training") is not None:
        if not isinstance(common["training"], dict):
            raise RecipeError(f"{path}.training: got {common['training']!r}; give a mapping of TrainingArguments.")
        step.training = common["training"]
    if common.get("distill") is not None:
        step.distill = from_mapping(get_method("distill", "logits").options, common["distill"], f"{path}.distill")
    check_trains(method, step.training, step.distill, f"{path}.")
    if hasattr(options, "check_target"):
        try:
            options.check_target(step.target)
        except ValueError as error:
            raise RecipeError(f"{path}.{error}") from None
    return step


def _read_options(method, body: dict, path: str, common: dict):
    known = [*method.options.__dataclass_fields__, *COMMON_KEYS[method.technique]]
    for key in body:
        if key not in method.options.__dataclass_fields__:
            raise RecipeError(
                f"{path}.{key}: unknown key{nearest(key, known)}; allowed are {', '.join(known) or 'none'}."
            )
    return from_mapping(method.options, body, path)


def _read_target(value: Any, method, path: str) -> Target:
    try:
        target = Target.from_dict(value)
    except RecipeError as error:
        raise RecipeError(f"{path}.{error}") from None
    if target.kind not in method.targets:
        raise RecipeError(
            f"{path}.target.{target.kind}: the method {method.name} takes "
            f"{'a target of ' + ' or '.join(sorted(method.targets)) if method.targets else 'no target'}."
        )
    return target


def check_order(steps: Sequence[Step]) -> None:
    """Refuse orders of steps that cannot work, with the reason.

    Raises:
        `RecipeError`: names the step by its path.
    """
    if not steps:
        raise RecipeError(f"recipe.steps: the list is empty; give at least one of {', '.join(TECHNIQUES)}.")
    compressed, factorized = False, False
    for index, step in enumerate(steps):
        path = f"steps.{index}.{step.technique}"
        if index and steps[index - 1].technique == "quantize":
            raise RecipeError(
                f"{path}: nothing can follow the quantize step, whose result is an exported model that no longer "
                "trains; move quantize to the end."
            )
        if factorized and step.technique in ("prune", "factorize"):
            raise RecipeError(
                f"{path}: the layers are low-rank pairs by then, whose inner widths are the ranks; "
                f"put {step.technique} before factorize"
                + (", or give one factorize step the final target." if step.technique == "factorize" else ".")
            )
        if step.teacher == "baseline" and not compressed and step.technique in ("distill", "finetune"):
            raise RecipeError(
                f"{path}{'' if step.technique == 'distill' else '.distill'}.teacher: 'baseline' is the dense model "
                "just before the first compressing step, and here the student still is that model; name a teacher, "
                "or put a prune or factorize step before."
            )
        compressed |= step.technique in ("prune", "factorize")
        factorized |= step.technique == "factorize"


def _is_repo_id(name: str | None) -> bool:
    """Whether the Hub allows `name`: `user/name`, or the name of a repository of one's own."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name is not None
