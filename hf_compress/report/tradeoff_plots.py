"""Metric against latency, size or MACs: recipes, the dense models, and the frontier."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from .canvas import INK, PAPER, SOFT, legend_below, panels, plain
from .labels import place
from .tradeoffs import Board, Point


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHORT = 26  # characters of a label of which three stand side by side
MOST_LABELS = 20  # points with a number; of more, only those of the frontier
COST_LABELS = {
    "latency": "latency / dense model in PyTorch fp32",
    "size": "size on disk, MB",
    "macs": "MACs, millions",
}
LABEL_SIZE = 8.5  # points


def draw_tradeoff(board: Board, cost: str, look: dict[str, tuple[str, str]], names: dict[str, str]) -> Figure:
    """A point a recipe, with its spread over seeds, a star a dense model, and the frontier as a step line.

    Args:
        board (`Board`): what to draw.
        cost (`str`): a key of `COST_LABELS`.
        look (`dict[str, tuple[str, str]]`): colour and marker by techniques.
        names (`dict[str, str]`): recipes as they are to be called.
    """
    best = board.frontier()
    numbered = _numbered(board.points, best)
    chains = list(dict.fromkeys(point.techniques for point in board.points))
    columns = 3 if all(len(chain) <= SHORT for chain in chains) else 2  # as many as there is room for
    meanings = len(chains) + len(board.dense[:3]) + len(board.marks) + 1
    legend_rows = (len(numbered) + 1) // 2 + -(-meanings // columns)
    figure, grid = panels(size=(7.0, 4.0 + 0.19 * legend_rows))
    axes = grid[0, 0]
    everything = [*board.points, *board.dense]
    bottom = _bottom([point.metric.mean for point in everything])
    below = [point for point in board.points if bottom is not None and point.metric.mean < bottom]
    for chain in chains:
        inside = [point for point in board.points if point.techniques == chain and point not in below]
        _scatter(axes, inside, *look[chain], label=plain(chain, 40))
    _draw_dense(axes, board)
    _scale(axes, [point.cost.mean for point in everything], bottom)
    for point in below:
        hollow = {"color": look[point.techniques][0], "markerfacecolor": "none", "clip_on": False}
        axes.plot(point.cost.mean, bottom, "v", markersize=8, **hollow)
    _step(axes, best)
    axes.set_xlabel(COST_LABELS[cost] + f", {board.served}" * (cost == "latency" and bool(board.served)))
    axes.set_ylabel(plain(board.metric))
    word = "MACs" if cost == "macs" else cost
    axes.set_title(f"{plain(board.title)}: {plain(board.metric)} against {word}", pad=10)
    without = len(board.points) - len(numbered)
    note = _below_note(below) + f"Points without a number: {without} more recipes." * bool(without)
    _legends(figure, axes, numbered, look, names, note, columns)
    _number(figure, axes, numbered, everything, bottom)
    return figure


def _numbered(points: list[Point], best: list[Point]) -> list[Point]:
    """The points to write numbers at: all, or what the picture has room for, evenly along the frontier."""
    if len(points) <= MOST_LABELS:
        return points
    found = [point for point in best if point.number is not None]
    step = max(1.0, (len(found) - 1) / (MOST_LABELS - 1))
    chosen = [found[round(index * step)] for index in range(min(len(found), MOST_LABELS))]
    return sorted(chosen, key=lambda point: point.number)


def _scatter(axes: Axes, points: list[Point], color: str, marker: str, label: str) -> None:
    x, y = [point.cost.mean for point in points], [point.metric.mean for point in points]
    spreads = [[getattr(point, name).spread or 0 for point in points] for name in ("metric", "cost")]
    if any(map(any, spreads)):
        axes.errorbar(x, y, *spreads, fmt="none", ecolor=color, elinewidth=1, capsize=2, alpha=0.7, zorder=2)
    size = 46 if len(points) <= MOST_LABELS else 24
    axes.scatter(x, y, s=size, color=color, marker=marker, linewidths=0.8, edgecolors=PAPER, zorder=3, label=label)


def _draw_dense(axes: Axes, board: Board) -> None:
    for index, point in enumerate(board.dense):
        label = f"dense {plain(point.name, 24)}" if len(board.dense) > 1 else "dense"
        spreads = [[point.metric.spread or 0], [point.cost.spread or 0]]
        if any(map(any, spreads)):
            axes.errorbar([point.cost.mean], [point.metric.mean], *spreads, fmt="none", ecolor=INK, elinewidth=1)
        label = label if index < 3 else "_" + label
        axes.plot(point.cost.mean, point.metric.mean, "*", color=INK, markersize=12, linestyle="none", label=label)
    for (name, value), dashes in zip(board.marks.items(), ((5, 3), (1.5, 2)), strict=False):
        axes.axvline(value, color=SOFT, linewidth=1.2, dashes=dashes, label=name, zorder=1)


def _bottom(values: list[float]) -> float | None:
    """Where the metric's axis starts, if some recipes are so far below the others that these would be squeezed."""
    if len(values) < 6:
        return None
    first, _, third = statistics.quantiles(values, n=4)
    inside = [value for value in values if value >= first - 3 * (third - first)]
    return min(inside) - 0.06 * (max(inside) - min(inside)) if 0 < len(inside) < len(values) else None


def _scale(axes: Axes, costs: list[float], bottom: float | None) -> None:
    from matplotlib.ticker import LogLocator

    if min(costs) > 0 and max(costs) / min(costs) > 30:
        axes.set_xscale("log", subs=())
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")  # powers of ten would be set as formulas
    else:
        axes.set_xlim(0, 1.06 * max(costs) or 1)
    if bottom is not None:
        axes.set_ylim(bottom=bottom)


def _step(axes: Axes, best: list[Point]) -> None:
    right = axes.get_xlim()[1]
    x, y = [point.cost.mean for point in best], [point.metric.mean for point in best]
    axes.step([*x, right], [*y, y[-1]], where="post", color=INK, linewidth=1.2, alpha=0.8, zorder=2, label="frontier")
    axes.set_xlim(right=right)


def _below_note(below: list[Point]) -> str:
    if not below:
        return ""
    listed = ", ".join(f"{point.number} at {point.metric.mean:.3g}" for point in below[:6])
    return f"▽ below the range: {listed}{f' and {len(below) - 6} more' * (len(below) > 6)}. "


def _legends(
    figure: Figure, axes: Axes, numbered: list[Point], look: dict, names: dict[str, str], note: str, columns: int
) -> None:
    """Above the picture what the looks mean, below it what the numbers mean."""
    from matplotlib.lines import Line2D

    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=columns)
    handles = [
        Line2D([], [], linestyle="none", markersize=5, color=color, marker=marker)
        for color, marker in (look[point.techniques] for point in numbered)
    ]
    legend_below(figure, handles, [f"{point.number}  {names[point.name]}" for point in numbered], note)


def _number(figure: Figure, axes: Axes, numbered: list[Point], everything: list[Point], bottom: float | None) -> None:
    """Write the numbers where they cover nothing; the layout must be final."""
    figure.draw_without_rendering()

    def pixels(point: Point) -> tuple[float, float]:
        y = point.metric.mean if bottom is None else max(bottom, point.metric.mean)
        return tuple(axes.transData.transform((point.cost.mean, y)))

    scale = figure.dpi / 72
    texts = [str(point.number) for point in numbered]
    sizes = [(0.66 * LABEL_SIZE * len(text) * scale, 1.05 * LABEL_SIZE * scale) for text in texts]
    anchors = [pixels(point) for point in numbered]
    box = axes.get_window_extent()
    bounds = (box.x0, box.y0, box.x1, box.y1)
    middles = place(anchors, sizes, [pixels(point) for point in everything], bounds, radius=4.5 * scale)
    for text, anchor, middle in zip(texts, anchors, middles, strict=True):
        shift = ((middle[0] - anchor[0]) / scale, (middle[1] - anchor[1]) / scale)
        far = abs(shift[0]) + abs(shift[1]) > 2.4 * LABEL_SIZE
        axes.annotate(
            text,
            axes.transData.inverted().transform(anchor),
            xytext=shift,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=LABEL_SIZE,
            zorder=4,
            arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.6, "shrinkB": 3} if far else None,
        )
