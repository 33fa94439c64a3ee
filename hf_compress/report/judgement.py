"""What the techniques did and what that cost: the tables that a judgement rests on."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ..journal import HUMAN_KINDS
from .effort import Effort, machine_seconds
from .frontier import frontier
from .markdown import inline, table
from .reproduce import public_name
from .runs import Row, RunRecord, task_name
from .tables import MISSING, OPERATIONS, baseline_stage, human_count, main_metric
from .tradeoffs import dense_teachers
from .words import Words


@dataclass
class Effect:
    """What a technique changed in one model on one task, against the stage before it, over all different stages.

    Attributes:
        technique (`str`), task (`str`), model (`str`): as they are called in the document.
        metric (`str`): its full name.
        changes (`list[float]`): of the metric.
        ratios (`dict[str, list[float]]`): of "params", "macs" and "size_bytes".
    """

    technique: str
    task: str
    model: str
    metric: str
    stages: int = 0
    changes: list[float] = field(default_factory=list)
    ratios: dict[str, list[float]] = field(default_factory=dict)


def effects(records: Sequence[RunRecord], words: Words) -> list[Effect]:
    """The effects of all techniques, in the order in which the runs come to them."""
    found: dict[tuple[str, str, str], Effect] = {}
    for results, before, stage in _steps(records):
        key = (stage["technique"], task_name(results, words), model_name(results))
        metric = main_metric(results)
        effect = found.setdefault(key, Effect(*key, metric))
        effect.stages += 1
        if metric in before["metrics"] and metric in stage["metrics"]:
            effect.changes.append(stage["metrics"][metric] - before["metrics"][metric])
        for key in ("params", "macs", "size_bytes"):
            if before[key] > 0:
                effect.ratios.setdefault(key, []).append(stage[key] / before[key])
    return list(found.values())


def _steps(records: Sequence[RunRecord]) -> Iterator[tuple[dict, dict, dict]]:
    """Results, the stage before and the stage of every step after the first stage; shared ones once. A teacher that is
    the first stage is what its student is compared with, and not what the student was made of."""
    seen = set()
    for record in records:
        stages = record.results["stages"][bool(dense_teachers(record.results)) :]
        for before, stage in zip(stages, stages[1:], strict=False):
            key = stage.get("key") or (record.folder, stage["name"])
            if key not in seen:
                seen.add(key)
                yield record.results, before, stage


def effect_table(found: Sequence[Effect], words: Words) -> str:
    rows = [
        [
            words.name("technique", effect.technique),
            effect.task,
            effect.model,
            effect.metric,
            effect.stages,
            _range(effect.changes, "{:+.4f}".format),
            *(_range(effect.ratios.get(key, []), "{:.0%}".format) for key in ("params", "macs", "size_bytes")),
        ]
        for effect in found
    ]
    return table(words.columns("steps"), rows)


def effect_line(effect: Effect, words: Words) -> str:
    change = _range(effect.changes, "{:+.4f}".format)
    names = {name: inline(getattr(effect, name)) for name in ("task", "model", "metric")}
    return words("evaluation.effect", **names, change=change)


def model_name(results: dict) -> str:
    """The model that the recipe starts from, without a way to it on this machine."""
    return public_name(results["recipe"].get("model", {}).get("name_or_path", "?"))


def _range(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Mean, lowest and highest."""
    if not values:
        return MISSING
    mean, low, high = form(statistics.fmean(values)), form(min(values)), form(max(values))
    return mean if low == high else f"{mean} ({low} … {high})"


def time_table(spent: Sequence[Effort], words: Words) -> str:
    """Machine seconds by operation beside minutes of people by kind; what nothing was spent on has no column."""
    operations = [name for name in (*OPERATIONS, "other") if any(effort.machine.get(name) for effort in spent)]
    kinds = [name for name in HUMAN_KINDS if any(effort.human.get(name) for effort in spent)]
    technique, stages, machine, people = words.columns("time")
    header = [technique, stages, *(words.name("operation", name) for name in operations), machine]
    header += [*(words.name("kind", name) for name in kinds), people]

    def row(name: str, members: Sequence[Effort]) -> list[object]:
        def seconds(operation: str) -> str:
            return f"{sum(effort.machine.get(operation, 0.0) for effort in members):.1f}"

        return [
            name,
            sum(effort.stages for effort in members),
            *map(seconds, operations),
            f"{sum(effort.machine_seconds for effort in members):.1f}",
            *(f"{sum(effort.human.get(kind, 0.0) for effort in members):g}" for kind in kinds),
            f"{sum(effort.human_minutes for effort in members):g}",
        ]

    rows = [row(words.name("technique", effort.technique), [effort]) for effort in spent]
    return table(header, [*rows, row(words("time.total"), spent)])


def sharing(records: Sequence[RunRecord], spent: Sequence[Effort], words: Words) -> str:
    """What sharing stages saved, and how to note time if nobody did."""
    together, alone = machine_seconds(records)
    saved = alone - together
    if saved > 0.05:
        times = {"together": together, "alone": alone, "saved": saved}
        times = {name: words.duration(seconds) for name, seconds in times.items()}
        text = words("time.sharing", **times, share=saved / alone)
    else:
        text = words("time.unshared", together=words.duration(together))
    return text if any(effort.human for effort in spent) else f"{text}\n\n{words('time.nobody')}"


def groups(rows: Sequence[Row], words: Words) -> dict[tuple[str, float, float], list[Row]]:
    """The rows that compare with each other: those on the same data and of one dense architecture."""
    found: dict[tuple[str, float, float], list[Row]] = {}
    for row in rows:
        results = row.members[0][0].results
        dense = baseline_stage(results)
        if dense is not None:
            found.setdefault((task_name(results, words), dense["params"], dense["macs"]), []).append(row)
    return found


def mean(row: Row, name: str) -> float | None:
    figure = row.figures.get(name)
    return None if figure is None else figure.mean


def relative_latency(row: Row) -> float | None:
    speedup = mean(row, "speedup_torch")
    return 1 / speedup if speedup else None


COSTS: dict[str, Callable[[Row], float | None]] = {
    "latency": relative_latency,
    "size": lambda row: mean(row, "size_ratio"),
    "macs": lambda row: mean(row, "macs_ratio"),
}


def frontiers(rows: Sequence[Row], spent: Sequence[Effort], words: Words) -> list[tuple[str, str]]:
    """The frontier of every group of comparable stages, for each cost: its title and its table."""
    found = groups(rows, words)
    people = {effort.technique: effort.human_minutes for effort in spent}
    parts = []
    for key, members in found.items():
        group = _group(key, words)
        for name, cost in COSTS.items():
            points = [(row, cost(row), mean(row, "metric")) for row in members]
            known = [(row, x, y) for row, x, y in points if x is not None and y is not None]
            # recipes that share their dense model, or a stage, have it once
            points = list({(x, y): (row, x, y) for row, x, y in reversed(known)}.values())[::-1]
            if len(points) > 1:
                best = [points[index] for index in frontier([(x, y) for _, x, y in points])]
                title = words(f"frontier.{name}") + (f"{words('colon')}{group}" if len(found) > 1 else "")
                parts.append((title, _frontier_table(best, name, people, words)))
    return parts


def _group(key: tuple[str, float, float], words: Words) -> str:
    task, params, macs = key
    return words("frontier.group", task=inline(task), params=human_count(params), macs=human_count(macs))


def _frontier_table(
    points: Sequence[tuple[Row, float, float]], cost: str, people: dict[str, float], words: Words
) -> str:
    def line(row: Row, x: float) -> list[object]:
        used = {stage["technique"] for stage in row.members[0][0].results["stages"][: row.members[0][1] + 1]}
        return [
            row.run,
            row.stage,
            row.techniques,
            f"{x:.1%}" + (f" ({row.served})" if cost == "latency" else ""),
            row.figures["metric"].show("{:.4f}".format),
            words.duration(mean(row, "seconds_to_here") or 0.0),
            f"{sum(people.get(technique, 0.0) for technique in used):g}",
        ]

    return table(words.columns("frontier"), [line(row, x) for row, x, _ in points])


def in_short(rows: Sequence[Row], words: Words) -> list[tuple[str, list[str]]]:
    """The best, the smallest and the fastest result of every group that has compressed ones, under its name; a group
    that is alone needs none."""
    parts, found = [], groups(rows, words)
    for group, members in found.items():
        lines = []
        final = [row for row in members if row.last and not row.stage.endswith("_baseline") and row.figures["metric"]]
        for key, cost, form in (
            ("metric", lambda row: -mean(row, "metric"), lambda row: row.figures["metric"].show("{:.4f}".format)),
            ("size", COSTS["size"], lambda row: f"{COSTS['size'](row):.0%}"),
            ("speed", relative_latency, lambda row: f"{relative_latency(row):.0%}"),
        ):
            known = [row for row in final if cost(row) is not None]
            if known:
                lines.append(_short_line(key, min(known, key=cost), form, words))
        if lines:
            parts.append((_group(group, words) if len(found) > 1 else "", lines))
    return parts


def _short_line(key: str, row: Row, form: Callable[[Row], str], words: Words) -> str:
    delta = mean(row, "delta")
    return words(
        f"short.{key}",
        metric=inline(row.metric),
        value=form(row),
        delta=MISSING if delta is None else f"{delta:+.4f}",
        run=inline(row.run),
        steps=inline(row.techniques),
    )
