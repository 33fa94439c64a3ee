"""Many runs as one table: read whatever run folders there are, group them over seeds, say mean and spread."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CompressionError
from ..results import load_results
from .markdown import table as markdown_table
from .tables import (
    MISSING,
    OPERATIONS,
    baseline_stage,
    human_bytes,
    human_count,
    main_metric,
    served_latency,
)
from .unfinished import unfinished, walk
from .words import Words


@dataclass(frozen=True)
class RunRecord:
    """A finished run: its folder and the content of its `results.json`."""

    folder: Path
    results: dict


@dataclass(frozen=True)
class Figure:
    """Mean and spread (the standard deviation of the sample) of one number over seeds; no spread of one seed."""

    mean: float
    spread: float | None = None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Figure | None:
        values = [value for value in values if value is not None and math.isfinite(value)]
        if not values:
            return None
        mean = statistics.fmean(values)
        if len(values) == 1:
            return cls(mean)
        # statistics.stdev is exact to the last digit, and thirty times slower
        return cls(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)))

    def show(self, form: Callable[[float], str]) -> str:
        return form(self.mean) if self.spread is None else f"{form(self.mean)} ± {form(self.spread)}"


@dataclass
class Row:
    """One stage of one recipe, over all seeds it was run with.

    Attributes:
        task (`str`), run (`str`), stage (`str`): where it stands; the task as [`task_name`] has it.
        techniques (`str`): the steps up to here, such as "prune → distill".
        seeds (`list[int]`): in order.
        last (`bool`): whether it is the recipe's result, and not a stage on the way.
        figures (`dict[str, Figure | None]`): by the names of `FIGURES`, and `seconds/<operation>`.
        served (`str`): runtime, precision and batch of the latency.
        members (`list[tuple[RunRecord, int]]`): the runs, each with the index of the stage.
    """

    task: str
    run: str
    stage: str
    techniques: str
    seeds: list[int]
    last: bool
    metric: str
    served: str
    figures: dict[str, Figure | None] = field(default_factory=dict)
    members: list[tuple[RunRecord, int]] = field(default_factory=list, repr=False)


FIGURES = (
    "metric",
    "delta",
    "params",
    "params_ratio",
    "macs",
    "macs_ratio",
    "size_bytes",
    "size_ratio",
    "p50",
    "p90",
    "speedup_torch",
    "speedup_same_runtime",
    "speedup_bf16",
    "seconds",
    "seconds_to_here",
)

COLUMNS = (
    "run",
    "stage",
    "steps",
    "seeds",
    "metric",
    "Δ",
    "params",
    "MACs",
    "size",
    "latency p50 / p90",
    "vs PyTorch fp32",
    "vs same runtime",
    "vs its bf16",
    "seconds",
    "to here",
)


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """The run folders in and under `paths`, sorted: whatever holds a `results.json` and is no model folder."""
    return [folder for folder, names in walk(paths) if "results.json" in names and folder.name != "model"]


def read_runs(paths: Iterable[str | Path]) -> tuple[list[RunRecord], dict[str, str]]:
    """Read all runs under `paths`.

    Returns:
        `tuple[list[RunRecord], dict[str, str]]`: what could be read, and for every folder that could not, why: results
        that are broken, runs that failed, are not finished or, by a `study.json`, were never begun.
    """
    paths = list(paths)
    records, problems = [], {}
    for folder in find_runs(paths):
        try:
            records.append(RunRecord(folder, _read(folder)))
        except CompressionError as error:
            problems[str(folder)] = str(error)
    return records, problems | unfinished(paths)


def _read(folder: Path) -> dict:
    path = folder / "results.json"
    if not path.is_file():  # a folder, a pipe that nobody writes into, a link to itself
        raise CompressionError(f"{path} is no file.")
    results = load_results(path)
    if not results["stages"]:
        raise CompressionError(f"{folder}: results.json has no stage.")
    return results


def recipes(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """The runs of each recipe, with whatever seed, by its name; of different recipes of one name the later are named
    "name #2" and so on, for a run with overrides keeps the name of its recipe."""
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        groups.setdefault((str(record.results.get("name", "unnamed")), _identity(record.results)), []).append(record)
    named: dict[str, list[RunRecord]] = {}
    for (name, _), members in groups.items():
        copies = (f"{name} #{number}" for number in itertools.count(2))
        named[name if name not in named else next(copy for copy in copies if copy not in named)] = members
    return named


def _identity(results: dict) -> str:
    """What two runs have to have in common for a mean of them to mean anything."""
    recipe = results["recipe"]
    task = {key: value for key, value in recipe.get("task", {}).items() if key != "data_dir"}
    parts = (task_name(results), task, *(recipe.get(key) for key in ("model", "training", "measure", "steps")))
    return json.dumps(parts, sort_keys=True)


def task_name(results: dict, words: Words | None = None) -> str:
    """The task, and on what part of its data: figures on a sample do not compare with those on all of them. In English
    by default."""
    name, spec, words = results["task"]["name"], results["recipe"].get("task", {}), words or Words("en")
    if spec.get("data_dir") == "sample":
        name = words("task.sample", task=name)
    return words("task.part", task=name, n=spec["max_eval_samples"]) if spec.get("max_eval_samples") else name


def rows(records: Sequence[RunRecord]) -> list[Row]:
    """A row a stage and recipe, over its seeds, in the order of the records."""
    table = []
    for name, members in recipes(records).items():
        stages: dict[tuple[int, str], list[tuple[RunRecord, int]]] = {}
        for record in members:
            for index, stage in enumerate(record.results["stages"]):
                stages.setdefault((index, stage["name"]), []).append((record, index))
        table += [_row(name, index, stage, found) for (index, stage), found in stages.items()]
    return table


def _row(run: str, index: int, stage_name: str, members: list[tuple[RunRecord, int]]) -> Row:
    found = [_figures(record.results, index) for record, _ in members]
    first = members[0][0].results
    stages = first["stages"]
    served = served_latency(stages[index])
    names = dict.fromkeys(name for figures in found for name in figures)
    return Row(
        task=task_name(first),
        run=run,
        stage=stage_name,
        techniques=" → ".join(s["technique"] for s in stages[: index + 1] if s["technique"] != "none") or "dense",
        seeds=sorted(record.results.get("seed", 0) for record, _ in members),
        last=index == len(stages) - 1,
        metric=main_metric(first),
        served="" if served is None else f"{served.runtime} {served.precision}, batch {served.batch}",
        figures={name: Figure.of(figures.get(name) for figures in found) for name in names},
        members=members,
    )


def _figures(results: dict, index: int) -> dict[str, float | None]:
    stage, dense = results["stages"][index], baseline_stage(results)
    metric = main_metric(results)
    served = served_latency(stage)
    value = stage["metrics"].get(metric)
    reference = dense["metrics"].get(metric) if dense else None
    seconds = [entry.get("seconds", {}).get("total", 0.0) for entry in results["stages"][: index + 1]]
    figures = {
        "metric": value,
        "delta": None if None in (value, reference) else value - reference,
        **{key: stage[key] for key in ("params", "macs", "size_bytes")},
        **{
            f"{key.removesuffix('_bytes')}_ratio": stage[key] / dense[key] if dense and dense.get(key) else None
            for key in ("params", "macs", "size_bytes")
        },
        **{
            key: getattr(served, key, None)
            for key in ("p50", "p90", "speedup_torch", "speedup_same_runtime", "speedup_bf16")
        },
        "seconds": seconds[-1],
        "seconds_to_here": sum(seconds),
    }
    return figures | {f"seconds/{name}": stage.get("seconds", {}).get(name, 0.0) for name in OPERATIONS}


def comparison_table(table: Sequence[Row], header: Sequence[str] = COLUMNS) -> str:
    """The rows as Markdown; mean ± standard deviation where there are several seeds.

    Args:
        table (`Sequence[Row]`): from [`rows`].
        header (`Sequence[str]`, *optional*): the columns of `COLUMNS` in another language; "metric" gives way to the
            name of the metric where all rows have the same one.
    """
    header = list(header)
    if len({row.metric for row in table}) == 1:
        header[COLUMNS.index("metric")] = table[0].metric
    return markdown_table(header, [_cells(row) for row in table])


def _cells(row: Row) -> list[str]:
    def show(name: str, form: Callable[[float], str]) -> str:
        figure = row.figures.get(name)
        return MISSING if figure is None else figure.show(form)

    def sized(name: str, ratio: str, form: Callable[[float], str]) -> str:
        figure, share = row.figures.get(name), row.figures.get(ratio)
        same = figure is not None and not figure.spread  # sizes that every seed has are said without a spread of 0
        return (form(figure.mean) if same else show(name, form)) + (
            "" if share is None else f" ({100 * share.mean:.0f} %)"
        )

    latency = MISSING
    if row.figures.get("p50"):
        latency = f"{show('p50', _milliseconds)} / {show('p90', _milliseconds)} ms ({row.served})"
    return [
        row.run,
        row.stage,
        row.techniques,
        str(len(row.seeds)),
        show("metric", "{:.4f}".format),
        show("delta", "{:+.4f}".format).replace("± +", "± "),
        sized("params", "params_ratio", human_count),
        sized("macs", "macs_ratio", human_count),
        sized("size_bytes", "size_ratio", human_bytes),
        latency,
        *(show(name, "{:.2f}x".format) for name in ("speedup_torch", "speedup_same_runtime", "speedup_bf16")),
        show("seconds", "{:.0f}".format),
        show("seconds_to_here", "{:.0f}".format),
    ]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def comparison_csv(table: Sequence[Row]) -> str:
    """All figures of the rows as CSV, `<figure>` and `<figure>_std`; empty where there is none."""
    names = [*FIGURES, *(f"seconds/{name}" for name in OPERATIONS)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fixed = ("task", "run", "stage", "techniques", "served")
    writer.writerow([*fixed, "seeds", "last", *(part for name in names for part in (name, f"{name}_std"))])
    for row in table:
        cells = [getattr(row, name) for name in fixed] + [" ".join(map(str, row.seeds)), int(row.last)]
        for name in names:
            figure = row.figures.get(name)
            cells += ["", ""] if figure is None else [figure.mean, "" if figure.spread is None else figure.spread]
        writer.writerow(cells)
    return text.getvalue()
