"""What the other pictures of a comparison show, as plain numbers: time, layers, curves, training, latency."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..results import latency_row
from .runs import Figure
from .tables import OPERATIONS, served_latency
from .tradeoffs import Entry, known, main_value


COMPRESSING = ("prune", "factorize", "quantize")  # the techniques that make a model smaller
QUANTILES = 21  # of the timed samples, from the shortest to the longest


def seconds_by_operation(entry: Entry) -> dict[str, float]:
    """Seconds of all stages by operation, the mean over seeds; "other" is what no operation accounts for."""
    found = dict.fromkeys((*OPERATIONS, "other"), 0.0)
    for record in entry.records:
        for stage in record.results["stages"]:
            seconds = stage.get("seconds", {})
            for name in OPERATIONS:
                found[name] += seconds.get(name, 0.0)
            found["other"] += max(0.0, seconds.get("total", 0.0) - sum(seconds.get(name, 0.0) for name in OPERATIONS))
    return {name: value / len(entry.records) for name, value in found.items() if 0 < value < math.inf}


def kept_by_layer(entry: Entry) -> list[tuple[str, str, dict[str, float]]]:
    """Stage, "width" or "rank", and the kept fraction of every layer, the mean over seeds."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for record in entry.records:
        for stage in record.results["stages"]:
            for layer, spec in _mapping(stage.get("layers")).items():
                for kind in ("kept", "rank"):
                    kept, of = (_number(_mapping(spec).get(name)) for name in (kind, "of"))
                    if kept is not None and of:
                        kinds = found.setdefault((stage["name"], "width" if kind == "kept" else "rank"), {})
                        kinds.setdefault(layer, []).append(kept / of)
    return [
        (stage, kind, {layer: statistics.fmean(values) for layer, values in layers.items()})
        for (stage, kind), layers in found.items()
    ]


def curves(found: Sequence[Entry], ratio: str) -> dict[tuple[str, str], list[tuple[float, Figure]]]:
    """Kept fraction and metric by task and technique, of recipes with one compressing technique.

    Recipes that differ in nothing but the target make one curve, which starts at the dense model.

    Args:
        found (`Sequence[Entry]`): recipes.
        ratio (`str`): "params_ratio" or "macs_ratio".
    """
    drawn: dict[tuple, list[Entry]] = {}
    for entry in found:
        stages = entry.records[0].results["stages"]
        techniques = [stage["technique"] for stage in stages if stage["technique"] in COMPRESSING]
        if len(techniques) == 1 and techniques[0] != "quantize":
            drawn.setdefault((entry.last.task, entry.dense, _method(stages), _but_target(entry)), []).append(entry)
    alike: dict[tuple[str, str], list[set[str]]] = {}
    for task, _, method, recipe in drawn:
        alike.setdefault((task, method), []).append(_facts(recipe))
    result: dict[tuple[str, str], list[tuple[float, Figure]]] = {}
    for (task, _, method, recipe), members in drawn.items():
        places = [(known(member.last.figures.get(ratio)), member.figure(main_value)) for member in members]
        curve = [(place.mean, metric) for place, metric in places if place and metric]
        own = sorted(_facts(recipe) - set.intersection(*alike[task, method]))
        name = f"{method} ({', '.join(own)})" if own else method
        while (task, name) in result:  # another dense model
            name += "′"
        if curve:
            dense = known(members[0].rows[0].figures.get("metric")) if members[0].dense else None
            result[task, name] = sorted(curve + ([(1.0, dense)] if dense else []), key=lambda point: point[0])
    return result


def _method(stages: list[dict]) -> str:
    names = [
        stage["technique"] + f" {stage['method']}" * (stage["technique"] in COMPRESSING)
        for stage in stages
        if stage["technique"] != "none"
    ]
    return " → ".join(names)


def _facts(recipe: str) -> set[str]:
    """What [`_but_target`] tells, an option at a time: "repair: false"."""

    def leaves(value: Any, name: str) -> Iterator[str]:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(item, dict | list):
                yield from leaves(item, str(key))
            else:
                yield f"{key if isinstance(value, dict) else name}: {json.dumps(item)}"

    return set(leaves(json.loads(recipe), ""))


def _but_target(entry: Entry) -> str:
    """The recipe without what a grid over targets changes."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key != "target"}
        return [strip(item) for item in value] if isinstance(value, list) else value

    recipe = entry.records[0].results["recipe"]
    left = {key: recipe.get(key) for key in ("task", "model", "training", "steps")}
    return json.dumps(strip(left), sort_keys=True, default=str)


def layer_sensitivity(entry: Entry) -> dict[tuple[str, str], dict[str, list[tuple[float, float]]]]:
    """What a step measured before it decided: by stage and quantity, a curve over the kept fraction for each group."""
    found: dict[tuple[str, str], dict[str, dict[float, list[float]]]] = {}
    for record in entry.records:
        for stage in record.results["stages"]:
            for group, measured in _mapping(stage.get("sensitivity")).items():
                for item in measured if isinstance(measured, list) else []:
                    kept = _number(_mapping(item).get("kept"))
                    name = next(
                        (key for key in ("metric", "loss") if _number(_mapping(item).get(key)) is not None), None
                    )
                    if kept is not None and name:
                        by_group = found.setdefault((stage["name"], name), {})
                        by_group.setdefault(str(group), {}).setdefault(kept, []).append(item[name])
    return {
        key: {
            group: sorted((kept, statistics.fmean(values)) for kept, values in measured.items())
            for group, measured in by_group.items()
        }
        for key, by_group in found.items()
    }


@dataclass(frozen=True)
class Training:
    """The holdout metric of a stage by epoch, counted over all stages, and the epochs at which it was pruned."""

    stage: str
    epochs: list[tuple[float, Figure]]
    events: list[float]


def trainings(entry: Entry) -> list[Training]:
    """The stages of a recipe that were trained, one after the other."""
    key = f"holdout_{entry.last.metric}"
    found, start = [], 0.0
    for index, row in enumerate(entry.rows):
        stages = [record.results["stages"] for record in entry.records]
        members = [stage[index] for stage in stages if index < len(stage)]
        by_epoch: dict[float, list[float]] = {}
        for stage in members:
            for item in stage.get("epochs") or []:
                epoch, value = (_number(_mapping(item).get(name)) for name in ("epoch", key))
                if epoch is not None and value is not None:
                    by_epoch.setdefault(epoch, []).append(value)
        if not by_epoch:
            continue
        places = (_number(_mapping(event).get("epoch")) for stage in members for event in stage.get("events") or [])
        events = sorted({start + place for place in places if place is not None})
        points = [(start + epoch, Figure.of(values)) for epoch, values in sorted(by_epoch.items())]
        found.append(Training(row.stage, points, events))
        start = points[-1][0]
    return found


@dataclass(frozen=True)
class Spread:
    """How the times of one latency row spread, as fractions of their median.

    Attributes:
        seconds (`float`), relative (`float`): the median of a batch, and that as a fraction of the dense model's in
            PyTorch fp32 timed beside it.
        p90 (`float`), quantiles (`list[float]`, *optional*): fractions; no quantiles in older results.
    """

    seconds: float
    relative: float
    p90: float
    quantiles: list[float] | None


def latency_spread(entry: Entry) -> tuple[Spread | None, Spread | None]:
    """The recipe's result as it would be served, and the dense model in PyTorch fp32 beside it; mean over seeds."""
    own, dense = [], []
    for record in entry.records:
        stage = record.results["stages"][-1]
        served = served_latency(stage)
        if served is None or not served.speedup_torch:
            continue
        reference = latency_row(stage, "torch", "fp32", served.batch, "baseline")
        row = latency_row(stage, served.runtime, served.precision, served.batch)
        for found, kept in ((row, own), (reference, dense)):
            if found and reference and all(_number(each["p50"]) for each in (found, reference)):
                kept.append(_spread(found, reference["p50"]))
    return _mean_spread(own), _mean_spread(dense)


def _spread(row: dict, dense: float) -> Spread:
    quantiles, median = row.get("quantiles"), row["p50"]
    whole = isinstance(quantiles, list) and len(quantiles) == QUANTILES and None not in map(_number, quantiles)
    fractions = [value / median for value in quantiles] if whole else None
    return Spread(median, median / dense, (_number(row["p90"]) or median) / median, fractions)


def _mean_spread(found: list[Spread]) -> Spread | None:
    if not found:
        return None
    whole = [spread.quantiles for spread in found if spread.quantiles]
    means = [statistics.fmean(values) for values in zip(*whole, strict=True)] if len(whole) == len(found) else None
    figures = [statistics.fmean(getattr(spread, name) for spread in found) for name in ("seconds", "relative", "p90")]
    return Spread(*figures, means)


def _mapping(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None
