"""Recipes over their seeds, and the trade-offs among them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .frontier import frontier
from .runs import Figure, Row, RunRecord, recipes, rows
from .tables import baseline_stage, main_metric, served_latency


@dataclass(frozen=True)
class Entry:
    """A recipe with all its runs; `number` stands for it in pictures and tables.

    Attributes:
        rows (`list[Row]`): a row a stage, over the seeds; the last is the recipe's result.
        records (`list[RunRecord]`): a run a seed.
    """

    number: int
    rows: list[Row]
    records: list[RunRecord]

    @property
    def last(self) -> Row:
        return self.rows[-1]

    @property
    def name(self) -> str:
        return self.last.run

    @property
    def techniques(self) -> str:
        return self.last.techniques

    @property
    def dense(self) -> tuple | None:
        """What tells one dense model from another: its parameters and MACs."""
        stage = baseline_stage(self.records[0].results)
        return stage and (stage["params"], stage["macs"])

    @property
    def compresses(self) -> bool:
        """Whether its result is another model than the dense one."""
        return not self.last.stage.endswith("_baseline")

    def figure(self, of: Callable[[dict, dict], float | None]) -> Figure | None:
        """Mean and spread over the seeds of what `of(results, last stage)` gives."""
        return known(Figure.of(of(record.results, record.results["stages"][-1]) for record in self.records))


@dataclass(frozen=True)
class Point:
    """A recipe, or a dense model (of number `None`), in a trade-off."""

    number: int | None
    name: str
    techniques: str
    cost: Figure
    metric: Figure


@dataclass(frozen=True)
class Board:
    """A trade-off among models that may be compared.

    Attributes:
        task (`str`), metric (`str`): what all of them were judged on.
        title (`str`): the task, and the dense model where boards differ in that.
        points (`list[Point]`): recipes, in their order.
        dense (`list[Point]`): the dense models they started from.
        served (`str`): runtime, precision and batch of the latencies.
        marks (`dict[str, float]`): costs of the dense model as others would serve it.
    """

    task: str
    metric: str
    title: str
    points: list[Point]
    dense: list[Point]
    served: str
    marks: dict[str, float]

    def frontier(self) -> list[Point]:
        """The points, recipes and dense models, that no other beats in both cost and metric; by rising cost."""
        points = [*self.points, *self.dense]
        return [points[index] for index in frontier([(point.cost.mean, point.metric.mean) for point in points])]


def entries(records: Sequence[RunRecord]) -> list[Entry]:
    """The recipes in the order of their first runs, numbered from 1."""
    stages: dict[str, list[Row]] = {}
    for row in rows(records):
        stages.setdefault(row.run, []).append(row)
    return [Entry(number, stages[name], found) for number, (name, found) in enumerate(recipes(records).items(), 1)]


def known(figure: Figure | None) -> Figure | None:
    """`figure`, if it is a finite number."""
    return figure if figure is not None and math.isfinite(figure.mean) else None


def relative_latency(results: dict, stage: dict) -> float | None:
    """Latency as a fraction of the dense model's in PyTorch fp32 timed beside it.

    Absolute times of different comparisons do not compare on a machine that does other things too.
    """
    served = served_latency(stage)
    return 1 / served.speedup_torch if served and served.speedup_torch else None


# techniques that leave the architecture as it is; see `plan.teacher_is_baseline`
TEACHER_IS_DENSE = ("finetune", "distill", "quantize")
COSTS: dict[str, Callable[[dict, dict], float | None]] = {
    "latency": relative_latency,
    "size": lambda results, stage: stage["size_bytes"] / 1e6,
    "macs": lambda results, stage: stage["macs"] / 1e6,
}


def main_value(results: dict, stage: dict) -> float | None:
    """The metric by which the run is judged."""
    return stage["metrics"].get(main_metric(results))


def boards(found: Sequence[Entry], cost: str) -> list[Board]:
    """The trade-offs of the main metric and `cost`, one a task; of latency, which is relative, one a dense model."""
    groups: dict[tuple, list[Entry]] = {}
    for entry in found:
        groups.setdefault((entry.last.task, entry.dense if cost == "latency" else None), []).append(entry)
    made = [_board(task, group, COSTS[cost], cost) for (task, _), group in groups.items()]
    made = [board for board in made if board.points]
    tasks = [board.task for board in made]
    return [
        replace(board, title=f"{board.task}, {board.dense[0].name}")
        if tasks.count(board.task) > 1 and board.dense
        else board
        for board in made
    ]


def _board(task: str, group: list[Entry], of: Callable, cost: str) -> Board:
    points = []
    for entry in group:
        x, y = entry.figure(of), entry.figure(main_value)
        if entry.compresses and x and y:
            points.append(Point(entry.number, entry.name, entry.techniques, x, y))
    timed = [entry for entry in group if entry.last.served]
    return Board(
        task,
        group[0].last.metric,
        task,
        points,
        list(_dense_points(group, of)),
        timed[0].last.served.rpartition(", ")[2] if timed else "",
        _marks(group) if cost == "latency" else {},
    )


def _dense_points(group: list[Entry], of: Callable) -> Iterator[Point]:
    """A point for each different dense model, over the different times it was made."""
    models: dict[tuple, dict[Any, tuple[dict, dict]]] = {}
    for entry in group:
        for record in entry.records:
            stage = baseline_stage(record.results)
            if stage is not None:
                made = models.setdefault((stage["params"], stage["macs"]), {})
                made[stage.get("key") or record.folder] = (record.results, stage)
    for made in models.values():
        x, y = (known(Figure.of(value(*pair) for pair in made.values())) for value in (of, main_value))
        if x and y:
            yield Point(None, dense_name(next(iter(made.values()))[0]), "dense", x, y)


def _marks(group: list[Entry]) -> dict[str, float]:
    """Relative latency of the dense model in OpenVINO, in f32 and bf16, as timed beside the recipes."""
    found: dict[str, list[float]] = {}
    for entry in group:
        for record in entry.records:
            stage = record.results["stages"][-1]
            served = served_latency(stage)
            if served is None or not entry.compresses or not served.speedup_torch or served.runtime != "openvino":
                continue
            for precision, speedup in (("f32", served.speedup_same_runtime), ("bf16", served.speedup_bf16)):
                if speedup:
                    found.setdefault(f"dense, OpenVINO {precision}", []).append(speedup / served.speedup_torch)
    return {name: statistics.median(values) for name, values in found.items()}


def short_model_name(results: dict) -> str:
    """The last part of the name of the model that a recipe starts from."""
    model = results["recipe"].get("model")
    return _short(model.get("name_or_path") if isinstance(model, dict) else None)


def dense_name(results: dict) -> str:
    """The same of the model that a recipe's stages are compared with: of one that only distills, the teacher."""
    teachers = dense_teachers(results)
    return _short(teachers[0]) if teachers else short_model_name(results)


def dense_teachers(results: dict) -> list:
    """The teachers of a recipe that only distills, of which the first is its first stage; none of other recipes."""
    steps = [item for step in results["recipe"].get("steps", ()) for item in step.items()]
    if any(technique not in TEACHER_IS_DENSE for technique, _ in steps):
        return []
    return [body.get("teacher") for technique, body in steps if technique == "distill" and isinstance(body, dict)]


def _short(name: Any) -> str:
    return str(name or "model").rstrip("/").rpartition("/")[2]


def common_start(names: Iterable[str]) -> str:
    """The words that all of several different names start with, such as the name of their study."""
    low, high = min(names := set(names), default=""), max(names, default="")
    if len(names) < 2:
        return ""
    same = next((index for index, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low))
    return low[: max(low.rfind(mark, 0, same) for mark in "-_/ ") + 1]


def short_names(names: Iterable[str]) -> dict[str, str]:
    """The names without their common start."""
    start = common_start(names := list(names))
    return {name: name[len(start) :] or name for name in names}


def merged(found: Iterable[tuple[Entry, Any]]) -> list[tuple[list[Entry], Any]]:
    """Equal values once, with all recipes that have them: those that share a stage have the same layers and epochs."""
    groups: dict[str, tuple[list[Entry], Any]] = {}
    for entry, value in found:
        groups.setdefault(repr(value), ([], value))[0].append(entry)
    return list(groups.values())


def by_task(found: Iterable[Entry]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in found:
        groups.setdefault(entry.last.task, []).append(entry)
    return groups
