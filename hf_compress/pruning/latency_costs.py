"""What units cost in the time of the runtime that serves the model: a table of measured seconds by width.

Kernels work on blocks of channels, so that time is a staircase in the width, with stairs that depend on the runtime,
the precision and the machine; MACs say little of it. Layers that look alike stand in for each other: a few models, in
which each of them has another width, give the whole table, layer by layer from the runtime's own counters.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from ..measurement import cpu_name, environment, evaluating, example_inputs, instruction_sets
from ..measurement.machine import configured_threads
from ..measurement.serving import Serving
from ..registry import StepContext
from ..storage import read_json, write_json
from ..tasks.cache import cache_directory
from .importance import look_alikes
from .surgery import shrink
from .units import UnitGroup, full_selection


logger = logging.getLogger(__name__)

NOT_COMPUTED = ("quantization_config", "_name_or_path", "transformers_version")  # of a config: no kernel asks for it
WIDTHS = 8  # that are measured of a group, about, evenly spaced
FORMAT_VERSION = 2


@dataclass
class LatencyCosts:
    """Seconds of a batch for any widths, as the sum of what the layers take.

    Attributes:
        now (`float`): of the model with all units.
        tables (`dict[str, dict[int, float]]`): by group and width, the seconds of the modules that its units live in.
    """

    now: float
    tables: dict[str, dict[int, float]]
    _steps: dict[str, tuple[list[int], list[float]]] = field(init=False, repr=False)

    def __post_init__(self):
        self._steps = {}
        for name, table in self.tables.items():
            widths = sorted(table)
            # a narrower layer never counts as slower: it can be served as a wider one with zeros
            self._steps[name] = (widths, np.maximum.accumulate([table[width] for width in widths]).tolist())

    def total(self, kept: Mapping[str, int]) -> float:
        """Seconds when `kept` units of each group stay; a width between two that were measured counts as the wider."""
        return self.now + sum(self._seconds(name, kept[name]) - self._steps[name][1][-1] for name in self.tables)

    def change(self, kept: Mapping[str, int], name: str, width: int) -> float:
        """The seconds gained when the group `name` has another width than in `kept`."""
        return self._seconds(name, width) - self._seconds(name, kept[name])

    def after(self, model: nn.Module, groups: Sequence[UnitGroup], kept: Mapping[str, int]) -> LatencyCosts:
        """The costs once the model has come down to the widths `kept`, with `groups` left."""
        tables = {}
        for group in groups:
            widest = kept[group.name]
            below = {width: s for width, s in self.tables[group.name].items() if width < widest}
            tables[group.name] = {**below, widest: self._seconds(group.name, widest)}
        return LatencyCosts(self.total(kept), tables)

    def _seconds(self, name: str, width: int) -> float:
        if width == 0 and 0 not in self.tables[name]:
            return 0.0
        widths, seconds = self._steps[name]
        return seconds[int(np.searchsorted(widths, width))]

    def widths(self, group: UnitGroup) -> list[int]:
        """The widths worth choosing: those that were measured, and none where the block leaves then."""
        return sorted({*self._steps[group.name][0], *([0] if group.removable else [])})


def measure_latency_costs(
    model: nn.Module, groups: Sequence[UnitGroup], serving: Serving, context: StepContext
) -> LatencyCosts:
    """Measure the table, or take it from the cache of this machine.

    Args:
        model ([`~transformers.PreTrainedModel`]): not changed.
        groups (`Sequence[UnitGroup]`): whose units live in one block each; see [`inner_groups`].
        serving ([`~measurement.serving.Serving`]): runtime, precision and batch.
    """
    path = _cache_path(model, groups, serving)
    if path.exists():
        kept = read_json(path)
        return LatencyCosts(kept["now"], {n: {int(w): s for w, s in t.items()} for n, t in kept["tables"].items()})
    regions = {group.name: _region(group) for group in groups}
    kinds = _kinds(model, groups, serving)
    rounds = _rounds(groups, kinds)
    now = serving.module_seconds(model)
    tables = {group.name: {group.size: _seconds(now, regions[group.name])} for group in groups}
    for kept in context.progress(rounds, "latencies"):
        small = copy.deepcopy(model)
        selection = full_selection(groups)
        for group in groups:
            selection[group.name][kept.get(group.name, group.size) :] = False
        shrink(small, groups, selection)
        seconds = serving.module_seconds(small)
        for name, width in kept.items():
            tables[name][width] = _seconds(seconds, regions[name])
    tables = _shared(kinds, tables)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format_version": FORMAT_VERSION, "now": sum(now.values()), "tables": tables})
    except OSError as error:
        logger.warning("%s cannot be written (%s); latencies are measured again next time.", path, error)
    return LatencyCosts(sum(now.values()), tables)


def inner_groups(groups: Sequence[UnitGroup], blocks: Sequence[str]) -> tuple[list[UnitGroup], dict[str, str]]:
    """The groups whose units live in a single block, and of the others the reason why they are kept."""
    inner, kept = [], {}
    for group in groups:
        homes = {next((b for b in blocks if part.module.startswith(f"{b}.")), None) for part in group.slices}
        if len(homes) == 1 and None not in homes:
            inner.append(group)
        else:
            kept[group.name] = "its units live in several blocks, whose times cannot be told apart"
    return inner, kept


def _kinds(model: nn.Module, groups: Sequence[UnitGroup], serving: Serving) -> list[list[UnitGroup]]:
    """The groups that look alike, in surroundings that do too: modules of the same shapes that read the same sizes."""
    reads: dict[nn.Module, tuple] = {}

    def watch(module: nn.Module, args: tuple) -> None:
        reads[module] = tuple(args[0].shape) if args and hasattr(args[0], "shape") else ()

    handles = [module.register_forward_pre_hook(watch) for module in model.modules()]
    try:
        with evaluating(model):
            model(**example_inputs(model, 1, serving.length))
    finally:
        for handle in handles:
            handle.remove()

    def surroundings(group: UnitGroup) -> tuple:
        modules = [module for name in _region(group) for module in model.get_submodule(name).modules()]
        return tuple(
            (type(module), reads.get(module), *(tuple(p.shape) for p in module.parameters(recurse=False)))
            for module in modules
        )

    found: list[list[UnitGroup]] = []
    for kind in look_alikes(model, groups):
        alike: dict[tuple, list[UnitGroup]] = {}
        for group in kind:
            alike.setdefault(surroundings(group), []).append(group)
        found += alike.values()
    return found


def _rounds(groups: Sequence[UnitGroup], kinds: Sequence[Sequence[UnitGroup]]) -> list[dict[str, int]]:
    """Widths of all groups in each of the models to measure, so that every width of every kind of group is met."""
    turns: dict[int, set[str]] = {}
    taken: Counter = Counter()
    for group in groups:  # of those that live in the same modules, one at a time
        region = tuple(_region(group))
        turns.setdefault(taken[region], set()).add(group.name)
        taken[region] += 1
    parts = ([[group for group in kind if group.name in turn] for kind in kinds] for turn in turns.values())
    return [kept for part in parts for kept in _turn([kind for kind in part if kind])]


def _turn(kinds: Sequence[Sequence[UnitGroup]]) -> list[dict[str, int]]:
    count = max(-(-(len(_grid(names[0])) - 1) // len(names)) for names in kinds)
    rounds: list[dict[str, int]] = [{} for _ in range(count)]
    for names in kinds:
        grid = _grid(names[0])[:-1]  # the full width is measured anyway
        for number, kept in enumerate(rounds):
            for position, group in enumerate(names):
                kept[group.name] = grid[(number * len(names) + position) % len(grid)] if grid else group.size
    return rounds


def _grid(group: UnitGroup) -> list[int]:
    """Widths of a group that are measured: evenly spaced, with its size, and none if the layer can do without."""
    step = max(1, group.size // WIDTHS)
    return sorted({group.size, *range(step, group.size, step), *([0] if group.minimum == 0 else [])})


def _region(group: UnitGroup) -> list[str]:
    """Names of the modules around those that the group's units live in; what they hold counts for the group."""
    return sorted({part.module.rpartition(".")[0] for part in group.slices})


def _seconds(by_module: Mapping[str, float], region: Sequence[str]) -> float:
    return sum(s for name, s in by_module.items() if any(f"{name}.".startswith(f"{parent}.") for parent in region))


def _shared(kinds: Sequence[Sequence[UnitGroup]], tables: Mapping[str, dict[int, float]]) -> dict:
    """What was measured of one group holds for all that look like it; of several measurements the median."""
    found = {}
    for names in kinds:
        widths = sorted({width for group in names for width in tables[group.name]})
        table = {w: float(np.median([tables[g.name][w] for g in names if w in tables[g.name]])) for w in widths}
        found.update({group.name: table for group in names})
    return found


def _quantization(serving: Serving) -> dict | None:
    """The options that decide which operations are int8; how their ranges are found costs no time later."""
    if serving.precision != "int8" or serving.quantization is None:
        return None
    return {name: value for name, value in serving.quantization.items() if name != "calibration_samples"}


def _cache_path(model: nn.Module, groups: Sequence[UnitGroup], serving: Serving) -> Path:
    shapes = [(name, list(parameter.shape)) for name, parameter in model.named_parameters()]
    facts = {
        "format_version": FORMAT_VERSION,
        "cpu": [cpu_name(), *instruction_sets()],
        "serving": [serving.runtime, serving.precision, _quantization(serving)],
        "version": environment()["versions"].get(serving.runtime),
        "threads": serving.threads or configured_threads(),
        "inputs": {n: list(v.shape) for n, v in example_inputs(model, serving.batch, serving.length).items()},
        "shapes": shapes,
        "config": {name: value for name, value in model.config.to_diff_dict().items() if name not in NOT_COMPUTED},
        "groups": [(group.name, group.size) for group in groups],
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:20]
    return cache_directory() / "latencies" / f"{key}.json"
