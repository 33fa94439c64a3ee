"""The tables of the page, as plain text with the numbers to sort by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .canvas import duration
from .runs import Row
from .tables import MISSING, human_bytes, human_count
from .tradeoffs import Board, Entry, Point, boards, by_task, dense_name, short_names


class Cell(NamedTuple):
    """A cell: its text, what stands smaller behind it, its class, and the number to sort by ("" if there is none)."""

    text: str
    small: str = ""
    kind: str = ""
    value: float | str | None = None


class Column(NamedTuple):
    title: str
    number: bool


class Line(NamedTuple):
    cells: list[Cell]
    best: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table of the page."""

    columns: list[Column]
    rows: list[Line]


def chief_boards(found: Sequence[Entry]) -> list[tuple[str, Board]]:
    """What the recipes of each task are judged by, with its boards: latency, or size where no latency is known."""
    chosen = []
    for group in by_task(found).values():
        cost = "latency" if boards(group, "latency") else "size"
        chosen += [(cost, board) for board in boards(group, cost)]
    return chosen


def frontier_sheet(board: Board, found: Sequence[Entry], words: Mapping[str, str]) -> Sheet:
    """The frontier, by rising cost; the dense model too where nothing beats it."""
    numbered, names = {entry.number: entry for entry in found}, short_names(entry.name for entry in found)
    lines = []
    for point in board.frontier():
        entry = numbered.get(point.number)
        if entry is not None:
            name, row = names[entry.name], entry.last
        else:
            name, row = f"{words['dense']}: {point.name}", _dense_row(point, board, found)
        figures = _figures(row, SHORT) if row else [_missing() for _ in SHORT]
        lines.append(Line([_number(point.number), Cell(name, kind="name"), *figures, _steps(row)]))
    titles = [(words["no"], True), (words["recipe"], False)]
    titles += [({**words, "metric": board.metric}[name], True) for name in SHORT]
    return Sheet([Column(*title) for title in (*titles, (words["steps"], False))], lines)


def _dense_row(point: Point, board: Board, found: Sequence[Entry]) -> Row | None:
    return next(
        (
            entry.rows[0]
            for entry in found
            if entry.dense and entry.last.task == board.task and dense_name(entry.records[0].results) == point.name
        ),
        None,
    )


def recipes_sheet(found: Sequence[Entry], best: set[int], words: Mapping[str, str]) -> Sheet:
    """The result of every recipe."""
    tasks, names = len(by_task(found)) > 1, short_names(entry.name for entry in found)
    lines = []
    for entry in found:
        row, on = entry.last, entry.number in best
        named = [_number(entry.number, "●" if on else ""), Cell(names[entry.name], kind="name")]
        behind = [Cell(row.served or MISSING), _steps(row), *[Cell(row.task)] * tasks]
        lines.append(Line([*named, _seeds(row), *_figures(row, ALL), *behind], on))
    columns = _columns(found, "recipe", ALL, words)
    return Sheet([*columns, Column(words["steps"], False), *[Column(words["task"], False)] * tasks], lines)


def stages_sheet(found: Sequence[Entry], words: Mapping[str, str]) -> Sheet:
    """Every stage of every recipe."""
    names, figures = short_names(entry.name for entry in found), (*ALL, "seconds")
    lines = []
    for entry in found:
        for row in entry.rows:
            named = [_number(entry.number), Cell(f"{names[entry.name]}, {row.stage}", kind="name"), _seeds(row)]
            lines.append(Line([*named, *_figures(row, figures), Cell(row.served or MISSING)]))
    return Sheet(_columns(found, "stage", figures, words), lines)


def _columns(found: Sequence[Entry], what: str, names: Sequence[str], words: Mapping[str, str]) -> list[Column]:
    metrics = dict.fromkeys(entry.last.metric for entry in found)
    titles = {**words, "metric": " / ".join(metrics)}
    named = [Column(words["no"], True), Column(words[what], False), Column(words["seeds"], True)]
    return [*named, *(Column(titles[name], True) for name in names), Column(words["served"], False)]


def _number(number: int | None, mark: str = "") -> Cell:
    return _missing() if number is None else Cell(f"{mark} {number}".strip(), kind="n", value=number)


def _steps(row: Row | None) -> Cell:
    return Cell(row.techniques if row else MISSING, kind="steps")


def _missing() -> Cell:
    return Cell(MISSING, kind="n", value="")


def _seeds(row: Row) -> Cell:
    return Cell(str(len(set(row.seeds))), kind="n", value=len(set(row.seeds)))


SHORT = ("metric", "delta", "latency", "size", "macs", "seconds_to_here")
ALL = (
    *("metric", "delta", "params", "macs", "size", "latency", "p50"),
    *("speedup_torch", "speedup_same_runtime", "speedup_bf16", "seconds_to_here"),
)


def _figures(row: Row, names: Sequence[str]) -> list[Cell]:
    return [CELLS[name](row) for name in names]


def _plain(name: str, form: Callable[[float], str], spread: bool = True) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        figure = row.figures.get(name)
        if figure is None or not math.isfinite(figure.mean):
            return _missing()
        small = f"± {form(figure.spread)}" if spread and figure.spread else ""
        return Cell(form(figure.mean), small, "n", _round(figure.mean))

    return cell


def _delta(row: Row) -> Cell:
    """Without the spread, which is that of the metric; the dense model is not compared with itself."""
    return _missing() if row.stage.endswith("_baseline") else _plain("delta", "{:+.4f}".format, spread=False)(row)


def _share(name: str, ratio: str, form: Callable[[float], str]) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        figure, share = row.figures.get(name), row.figures.get(ratio)
        if figure is None:
            return _missing()
        small = "" if share is None else f"{100 * share.mean:.0f} %"
        return Cell(form(figure.mean), small, "n", _round(figure.mean))

    return cell


def _latency(row: Row) -> Cell:
    speedup = row.figures.get("speedup_torch")
    if speedup is None or not speedup.mean:
        return _missing()
    return Cell(f"{100 / speedup.mean:.3g} %", kind="n", value=_round(1 / speedup.mean))


def _milliseconds(row: Row) -> Cell:
    p50, p90 = row.figures.get("p50"), row.figures.get("p90")
    if p50 is None:
        return _missing()
    second = MISSING if p90 is None else f"{1000 * p90.mean:.3g}"
    return Cell(f"{1000 * p50.mean:.3g} / {second} ms", kind="n", value=_round(p50.mean))


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def _count(value: float) -> str:
    return human_count(value) if value >= 1000 else f"{value:.4g}"


def _size(value: float) -> str:
    return human_bytes(value) if value >= 1000 else f"{value:.4g} B"


CELLS: dict[str, Callable[[Row], Cell]] = {
    "metric": _plain("metric", "{:.4f}".format),
    "delta": _delta,
    "params": _share("params", "params_ratio", _count),
    "macs": _share("macs", "macs_ratio", _count),
    "size": _share("size_bytes", "size_ratio", _size),
    "latency": _latency,
    "p50": _milliseconds,
    **{name: _plain(name, "{:.2f}×".format) for name in ("speedup_torch", "speedup_same_runtime", "speedup_bf16")},
    "seconds": _plain("seconds", duration),
    "seconds_to_here": _plain("seconds_to_here", duration),
}
