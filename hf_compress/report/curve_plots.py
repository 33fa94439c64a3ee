"""Curves: metric by how much is kept, and by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .canvas import COLORS, INK, MARKERS, SOFT, legend_below, panels, plain, short_layer
from .runs import Figure as Value
from .series import Training, curves, layer_sensitivity, trainings
from .tables import baseline_stage
from .tradeoffs import Entry, known, main_value, merged


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CURVES = 9
MOST_FAINT = 200
MOST_PANELS = 6
MOST_NAMED_GROUPS = 5


def draw_sensitivity(found: list[Entry]) -> Figure | None:
    """Metric against the kept fraction of parameters and of MACs, a curve a technique."""
    sides = [(curves(found, f"{name}_ratio"), label) for name, label in (("params", "parameters"), ("macs", "MACs"))]
    sides = [(drawn, label) for drawn, label in sides if any(len(points) > 2 for points in drawn.values())]
    if not sides:
        return None
    figure, grid = panels(1, len(sides), size=(3.9 * len(sides) + 0.6, 3.9), sharey=True)
    for (drawn, label), axes in zip(sides, grid[0], strict=True):
        for index, ((_, method), points) in enumerate(list(drawn.items())[:MOST_CURVES]):
            x, y = [place for place, _ in points], [value.mean for _, value in points]
            spread = [value.spread or 0 for _, value in points]
            look = {"color": COLORS[index], "marker": MARKERS[index], "markersize": 5 if len(points) <= 25 else 2}
            axes.errorbar(x, y, spread, label=plain(method, 60), linewidth=1.4, elinewidth=0.8, **look)
        axes.set_xlabel(f"kept {label} / dense")
        axes.set_xlim(0, 1.04)
    grid[0, 0].set_ylabel(plain(found[0].last.metric))
    grid[0, 0].set_title(f"{plain(found[0].last.task)}: what is left of {plain(found[0].last.metric)}", pad=10)
    without = max(len(drawn) for drawn, _ in sides) - MOST_CURVES
    note = f"Left out: {without} more curves." * (without > 0)
    legend_below(figure, *grid[0, 0].get_legend_handles_labels(), note)
    return figure


def draw_layer_sensitivity(found: list[Entry], names: dict[str, str]) -> Figure | None:
    """What a step measured before it decided: a curve a group of units, the most sensitive named."""
    measured = merged((entry, (key, groups)) for entry in found for key, groups in layer_sensitivity(entry).items())
    if not measured:
        return None
    shown = measured[:MOST_PANELS]
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure, grid = panels(rows, columns, size=(3.9 * columns + 1, 3.3 * rows + 0.4))
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for (entries, ((stage, quantity), groups)), axes in zip(shown, grid.flat, strict=False):
        _draw_groups(axes, groups, quantity)
        numbers = ", ".join(str(entry.number) for entry in entries[:4]) + " …" * (len(entries) > 4)
        axes.set_title(f"{numbers}  {plain(names[entries[0].name], 26)}: {plain(stage, 20)}", fontsize=9.5)
    without = len(measured) - len(shown)
    legend_below(figure, note=f"Left out: {without} more stages." * bool(without))
    return figure


def _draw_groups(axes: Axes, groups: dict[str, list[tuple[float, float]]], quantity: str) -> None:
    def harm(name: str) -> float:
        values = [value for _, value in groups[name]]
        return min(values) if quantity == "metric" else -max(values)

    worst = sorted(groups, key=harm)[:MOST_NAMED_GROUPS]
    for name in (*worst, *(group for group in groups if group not in worst)):
        points = groups[name]
        color = COLORS[worst.index(name)] if name in worst else SOFT
        look = {"linewidth": 1.5, "marker": "o", "zorder": 3} if name in worst else {"linewidth": 0.8, "alpha": 0.5}
        if len(points) == 1:  # a block that was tried without
            look["marker"] = "o"
        label = plain(short_layer(name), 30) if name in worst else None
        axes.plot(*zip(*points, strict=True), color=color, markersize=3, label=label, **look)
    axes.set_xlabel("kept fraction of the group")
    axes.set_ylabel(f"{quantity} (divergence of the predictions)" if quantity == "loss" else quantity)
    axes.legend(fontsize=7, title="most sensitive", title_fontsize=7.5)


def draw_epochs(found: list[Entry], names: dict[str, str]) -> Figure | None:
    """The holdout metric by epoch, over the seeds; ▼ where the model was pruned."""
    from matplotlib.ticker import MaxNLocator

    trained = merged((entry, curve) for entry in found if (curve := trainings(entry)))
    if not trained:
        return None
    best = sorted(trained, key=lambda item: -item[1][-1].epochs[-1][1].mean)[:MOST_CURVES]
    named = [item for item in trained if item in best]
    figure, grid = panels(size=(7.0, 4.0 + 0.19 * ((len(named) + 3) // 2)))
    axes = grid[0, 0]
    for _, curve in [item for item in trained if item not in best][:MOST_FAINT]:
        _draw_training(axes, curve, SOFT, faint=True)
    for index, (group, curve) in enumerate(named):
        numbers = ", ".join(str(entry.number) for entry in group[:6]) + " …" * (len(group) > 6)
        _draw_training(axes, curve, COLORS[index], label=f"{numbers}  {plain(names[group[0].name], 32)}")
    pairs = [(record.results, baseline_stage(record.results)) for entry in found for record in entry.records]
    dense = [known(Value.of([main_value(results, stage)])) for results, stage in pairs if stage]
    if dense := {value.mean for value in dense if value}:
        label = "dense, evaluation split" + f" ({len(dense)} models, the best)" * (len(dense) > 1)
        axes.axhline(max(dense), color=INK, linestyle="--", linewidth=1, label=label)
    axes.set_xlabel("epoch, counted over the stages")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(plain(f"{found[0].last.metric} on the holdout"))
    axes.set_title(f"{plain(found[0].last.task)}: training", pad=10)
    faint = len(trained) - len(named)
    pruned = any(stage.events for _, curve in trained for stage in curve)
    note = "▼ pruned. " * pruned + f"Grey, without a name: {faint} more, which end lower." * bool(faint)
    legend_below(figure, *axes.get_legend_handles_labels(), note)
    return figure


def _draw_training(axes: Axes, curve: list[Training], color: str, label: str | None = None, faint: bool = False):
    before: tuple[float, float] | None = None
    for stage in curve:
        x, y = [epoch for epoch, _ in stage.epochs], [value.mean for _, value in stage.epochs]
        if before and not faint:  # another stage goes on from here
            axes.plot([before[0], x[0]], [before[1], y[0]], color=color, linewidth=0.9, linestyle=":")
        marker = {"marker": "o", "markersize": 3.5} if len(x) <= 30 and not faint else {}
        width = {"linewidth": 0.7, "alpha": 0.25} if faint else {"linewidth": 1.5}
        axes.plot(x, y, color=color, label=None if before else label, **marker, **width)
        spread = [value.spread or 0 for _, value in stage.epochs]
        if any(spread) and not faint:
            low = [value - wide for value, wide in zip(y, spread, strict=True)]
            high = [value + wide for value, wide in zip(y, spread, strict=True)]
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        if stage.events and not faint:
            heights = [_height(event, x, y) for event in stage.events]
            axes.plot(stage.events, heights, "v", color=color, markersize=6.5, markeredgecolor=INK, zorder=4)
        before = (x[-1], y[-1])


def _height(place: float, x: list[float], y: list[float]) -> float:
    """The curve's height at `place`, level beyond its ends."""
    for index in range(1, len(x)):
        if x[index - 1] <= place <= x[index]:
            share = (place - x[index - 1]) / (x[index] - x[index - 1])
            return y[index - 1] + share * (y[index] - y[index - 1])
    return y[0] if place < x[0] else y[-1]
