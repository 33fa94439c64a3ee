"""What units cost in the time of the runtime that serves the model: a table of measured seconds by width.

Kernels work on blocks of channels, so that time is a staircase in the width, with stairs that depend on the runtime,
the precision and the machine; MACs say little of it. Layers that look alike stand in for each other: a few models, in
which each of them has another width, give the whole table, layer by layer from the runtime's own counters.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock
from torch import nn

from ..errors import CompressionError
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
FORMAT_VERSION = 3


class _Stairs:
    """Seconds by width; a width between two that were measured counts as the wider."""

    def __init__(self, table: Mapping[int, float]):
        self.widths = sorted(table)
        # a narrower layer never counts as slower: it can be served as a wider one with zeros
        self.seconds = np.maximum.accumulate([table[width] for width in self.widths]).tolist()
        self.full = self.seconds[-1]

    def at(self, width: int) -> float:
        if width == 0 and self.widths[0] != 0:
            return 0.0
        return self.seconds[int(np.searchsorted(self.widths, width))]

    def upto(self, widest: int) -> dict[int, float]:
        below = {width: self.at(width) for width in self.widths if width < widest}
        return {**below, widest: self.at(widest)}


@dataclass
class LatencyCosts:
    """Seconds of a batch for any widths, as the sum of what the layers take.

    Attributes:
        now (`float`): of the model with all units.
        tables (`dict[str, dict[int, float]]`): by group and width, the seconds of the modules around those that its
            units live in, without those of `between`.
        between (`list[dict[str, dict[int, float]]]`): of each module that units of several groups live in, such as the
            middle convolution of a bottleneck, by group and width its seconds with the others at full width. Its time
            goes with the product of the widths.
    """

    now: float
    tables: dict[str, dict[int, float]]
    between: list[dict[str, dict[int, float]]] = field(default_factory=list)

    def __post_init__(self):
        self._alone = {name: _Stairs(table) for name, table in self.tables.items()}
        self._products = [{name: _Stairs(table) for name, table in part.items()} for part in self.between]

    def total(self, kept: Mapping[str, int]) -> float:
        """Seconds when `kept` units of each group stay; a width between two that were measured counts as the wider."""
        alone = sum(stairs.at(kept[name]) - stairs.full for name, stairs in self._alone.items())
        return self.now + alone + sum(_product(part, kept) - _full(part) for part in self._products)

    def change(self, kept: Mapping[str, int], name: str, width: int) -> float:
        """The seconds gained when the group `name` has another width than in `kept`."""
        alone = self._alone[name].at(width) - self._alone[name].at(kept[name])
        parts = [part for part in self._products if name in part]
        return alone + sum(_product(part, {**kept, name: width}) - _product(part, kept) for part in parts)

    def after(self, model: nn.Module, groups: Sequence[UnitGroup], kept: Mapping[str, int]) -> LatencyCosts:
        """The costs once the model has come down to the widths `kept`, with `groups` left."""
        left = {group.name for group in groups}
        tables = {name: self._alone[name].upto(kept[name]) for name in self.tables if name in left}
        between = []
        for part in self._products:
            now = _product(part, kept)
            scaled = {}
            for name in (name for name in part if name in left):
                reached = part[name].upto(kept[name])
                share = now / reached[kept[name]] if reached[kept[name]] else 0.0  # what the others have left of it
                scaled[name] = {width: seconds * share for width, seconds in reached.items()}
            between.append(scaled)
        return LatencyCosts(self.total(kept), tables, [part for part in between if part])

    def widths(self, group: UnitGroup) -> list[int]:
        """The widths worth choosing: those that were measured, and none where the block leaves then."""
        return sorted({*self._alone[group.name].widths, *([0] if group.removable else [])})


def _full(part: Mapping[str, _Stairs]) -> float:
    """What the module takes with all units; each group's table says it, and they are a median each."""
    return float(np.mean([stairs.full for stairs in part.values()]))


def _product(part: Mapping[str, _Stairs], kept: Mapping[str, int]) -> float:
    shares = (stairs.at(kept[name]) / stairs.full if stairs.full else 1.0 for name, stairs in part.items())
    return _full(part) * math.prod(shares)


def measure_latency_costs(
    model: nn.Module, groups: Sequence[UnitGroup], serving: Serving, context: StepContext
) -> LatencyCosts:
    """Measure the table, or take it from the cache of this machine.

    What is measured is kept at once, so that a measurement that was interrupted goes on.

    Args:
        model ([`~transformers.PreTrainedModel`]): not changed.
        groups (`Sequence[UnitGroup]`): whose units live in one block each; see [`inner_groups`].
        serving ([`~measurement.serving.Serving`]): runtime, precision and batch.
    """
    between = _between(groups)
    kinds = _kinds(model, groups, between, serving)
    rounds = [{group.name: group.size for group in groups}, *_rounds(groups, kinds)]

    def seconds_of(kept: Mapping[str, int]) -> dict[str, float]:
        small = copy.deepcopy(model)
        selection = full_selection(groups)
        for group in groups:
            selection[group.name][kept.get(group.name, group.size) :] = False
        shrink(small, groups, selection)
        return serving.module_seconds(small)

    found = _measured(rounds, seconds_of, _cache_path(model, rounds, serving), context)
    tables: dict[str, dict[int, list[float]]] = {group.name: {} for group in groups}
    for kept, seconds in zip(rounds, found, strict=True):
        for group in groups:
            if group.name in kept:
                common = [_seconds(seconds, [module]) for module, names in between.items() if group.name in names]
                alone = _seconds(seconds, _region(group)) - sum(common)
                tables[group.name][kept[group.name]] = [alone, *common]
    return _costs_of(sum(found[0].values()), _shared(kinds, tables), list(between.values()))


def _measured(
    rounds: Sequence[Mapping[str, int]],
    seconds_of: Callable[[Mapping[str, int]], dict[str, float]],
    path: Path,
    context: StepContext,
) -> list[dict[str, float]]:
    """The seconds by module in each of the `rounds`; those that the file at `path` lacks are measured and written."""
    with _locked(path) as writable:
        found = _read(path)
        missing = rounds[len(found) :]
        for kept in context.progress(missing, "latencies") if missing else ():
            found.append(seconds_of(kept))
            if writable:
                try:
                    write_json(path, found)
                except OSError as error:
                    writable = False
                    _warn(path, error)
    return found


def _read(path: Path) -> list[dict[str, float]]:
    try:
        found = read_json(path) if path.exists() else []
    except CompressionError as error:
        logger.warning("%s; it is measured again.", error)
        return []
    return found if isinstance(found, list) else []


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Keep the file at `path` from other processes, which wait; `False` where there is no writing."""
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        _warn(path, error)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _warn(path: Path, error: OSError) -> None:
    logger.warning("%s cannot be written (%s); latencies are measured again next time.", path, error)


def _costs_of(
    now: float, tables: Mapping[str, Mapping[int, Sequence[float]]], between: Sequence[Sequence[str]]
) -> LatencyCosts:
    """Of each group and width the seconds of its own modules, and then of those in each of `between` that it is in."""
    parts: dict[str, list[dict[int, float]]] = {
        name: [dict(zip(table, column, strict=True)) for column in zip(*table.values(), strict=True)]
        for name, table in tables.items()
    }
    alone = {name: columns.pop(0) for name, columns in parts.items()}
    return LatencyCosts(now, alone, [{name: parts[name].pop(0) for name in names} for names in between])


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


def _between(groups: Sequence[UnitGroup]) -> dict[str, list[str]]:
    """The modules in which units of several groups live, with the names of those groups."""
    homes: dict[str, dict[str, None]] = {}
    for group in groups:
        for part in group.slices:
            homes.setdefault(part.module, {})[group.name] = None
    return {module: list(names) for module, names in homes.items() if len(names) > 1}


def _kinds(
    model: nn.Module, groups: Sequence[UnitGroup], between: Mapping[str, Sequence[str]], serving: Serving
) -> list[list[UnitGroup]]:
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
        others = sum(group.name in names for names in between.values())
        modules = [module for name in _region(group) for module in model.get_submodule(name).modules()]
        return others, *(
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
    turns: list[list[UnitGroup]] = []
    for group in groups:  # of those that live in the same modules, one at a time
        turn = next((turn for turn in turns if not any(_meet(group, other) for other in turn)), None)
        if turn is None:
            turns.append(turn := [])
        turn.append(group)
    names = [{group.name for group in turn} for turn in turns]
    parts = ([[group for group in kind if group.name in turn] for kind in kinds] for turn in names)
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


def _meet(group: UnitGroup, other: UnitGroup) -> bool:
    """Whether a module counts for both groups."""
    pairs = itertools.product(_region(group), _region(other))
    return any(f"{one}.".startswith(f"{two}.") or f"{two}.".startswith(f"{one}.") for one, two in pairs)


def _seconds(by_module: Mapping[str, float], region: Sequence[str]) -> float:
    return sum(s for name, s in by_module.items() if any(f"{name}.".startswith(f"{parent}.") for parent in region))


def _shared(
    kinds: Sequence[Sequence[UnitGroup]], tables: Mapping[str, dict[int, list[float]]]
) -> dict[str, dict[int, list[float]]]:
    """What was measured of one group holds for all that look like it; of several measurements the median."""
    found = {}
    for names in kinds:
        widths = sorted({width for group in names for width in tables[group.name]})
        measured = {w: [tables[g.name][w] for g in names if w in tables[g.name]] for w in widths}
        table = {width: np.median(seconds, axis=0).tolist() for width, seconds in measured.items()}
        found.update({group.name: table for group in names})
    return found


def _quantization(serving: Serving) -> dict | None:
    """The options that decide which operations are int8; how their ranges are found costs no time later."""
    if serving.precision != "int8" or serving.quantization is None:
        return None
    return {name: value for name, value in serving.quantization.items() if name != "calibration_samples"}


def _cache_path(model: nn.Module, rounds: Sequence[Mapping[str, int]], serving: Serving) -> Path:
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
        "rounds": rounds,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:20]
    return cache_directory() / "latencies" / f"{key}.json"
