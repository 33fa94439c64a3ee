"""Bars and maps over recipes: where the time went, how latencies spread, what was kept of every layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .canvas import COLORS, INK, SOFT, duration, legend_below, panels, plain, short_layer
from .series import Spread, kept_by_layer, latency_spread, seconds_by_operation
from .tables import OPERATIONS
from .tradeoffs import Entry, boards, merged


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BARS = 40
MOST_SPREADS = 24
MOST_MAP_ROWS = 24
MOST_MAPS = 3  # of different networks
MOST_LAYER_LABELS = 40
TEXT_CELLS = 260  # a map with more has no figures in it


def draw_seconds(found: list[Entry], names: dict[str, str]) -> Figure | None:
    """Seconds by operation, a bar a recipe, as if it had been run alone."""
    bars = [(entry, seconds_by_operation(entry)) for entry in found]
    bars = [(entry, seconds) for entry, seconds in bars if seconds]
    if not bars:
        return None
    longest = sorted(bars, key=lambda bar: -sum(bar[1].values()))[:MOST_BARS]
    shown = [bar for bar in bars if bar in longest]
    figure, grid = panels(size=(7.0, 0.24 * len(shown) + 1.5))
    axes = grid[0, 0]
    left = [0.0] * len(shown)
    for color, kind in zip((*COLORS[:6], COLORS[-1]), (*OPERATIONS, "other"), strict=True):
        widths = [seconds.get(kind, 0.0) for _, seconds in shown]
        if any(widths):
            axes.barh(range(len(shown)), widths, left=left, label=kind, color=color, height=0.7)
            left = [start + width for start, width in zip(left, widths, strict=True)]
    for index, total in enumerate(left):
        axes.annotate(duration(total), (total, index), (4, 0), textcoords="offset points", va="center", fontsize=8)
    _name_rows(axes, [_called(entry, names) for entry, _ in shown])
    axes.set_xlim(0, 1.14 * max(left))
    axes.set_xlabel("seconds, the mean over seeds")
    axes.set_title("Where the machine's time went", pad=10)
    figure.legend(loc="outside upper left", ncols=7, columnspacing=1.2, handlelength=1)
    without = len(bars) - len(shown)
    legend_below(figure, note=f"Left out: the {without} recipes that took least." * bool(without))
    return figure


def draw_latency(found: list[Entry], names: dict[str, str], look: dict[str, tuple[str, str]]) -> Figure | None:
    """How the times of a batch spread around their median, and beside it those of the dense model."""
    timed = [(entry, *latency_spread(entry)) for entry in found if entry.compresses]
    timed = [(entry, own, dense) for entry, own, dense in timed if own is not None]
    if not timed:
        return None
    fastest = sorted(timed, key=lambda item: item[1].relative)[:MOST_SPREADS]
    shown = [item for item in timed if item in fastest]
    figure, grid = panels(size=(7.0, 0.3 * len(shown) + 1.7))
    axes = grid[0, 0]
    reach = [
        _draw_spreads(axes, row, own, dense, look[entry.techniques][0])
        for row, (entry, own, dense) in enumerate(shown)
    ]
    low, high = min(low for low, _ in reach), min(3, max(high for _, high in reach))
    _name_rows(axes, [_called(entry, names) for entry, _, _ in shown])
    axes.set_xlim(low - 0.05 * (high - low), high + 0.3 * (high - low))
    for row, (_, own, _) in enumerate(shown):
        text = f"{1000 * own.seconds:.3g} ms, {100 * own.relative:.0f} %"
        axes.text(0.995, row, text, transform=axes.get_yaxis_transform(), va="center", ha="right", fontsize=8)
    axes.set_xlabel(f"time of a batch / its median ({_batches(shown)})")
    axes.set_title("How latencies spread", pad=10)
    old, without = sum(own.quantiles is None for _, own, _ in shown), len(timed) - len(shown)
    note = (
        "Box: 25th to 75th percentile; line: 5th to 95th; grey: the dense model in PyTorch fp32, timed beside it. "
        "Right: the median, and that as a share of the dense model's."
        + f" Faint: of {old} only the median and the 90th percentile are known." * bool(old)
        + f" Left out: the {without} slowest recipes." * bool(without)
    )
    legend_below(figure, note=note)
    return figure


def _draw_spreads(axes: Axes, row: int, own: Spread, dense: Spread | None, color: str) -> tuple[float, float]:
    """The spreads of a recipe and of the dense model; returns from where to where they reach."""
    lows, highs = [], []
    for spread, paint, place, thick in ((dense, SOFT, row + 0.27, 0.1), (own, color, row - 0.08, 0.36)):
        if spread is None:
            continue
        q = spread.quantiles
        low, first, third, high = (q[1], q[5], q[15], q[19]) if q else (1.0, 1.0, spread.p90, spread.p90)
        axes.plot([low, high], [place, place], color=paint, linewidth=1.2, zorder=2)
        axes.barh(place, third - first, left=first, height=thick, color=paint, alpha=0.85 if q else 0.4, zorder=3)
        axes.plot([1, 1], [place - thick / 2, place + thick / 2], color=INK, linewidth=1.6, zorder=4)
        lows.append(low)
        highs.append(high)
    return min(lows), max(highs)


def _batches(shown: list[tuple]) -> str:
    found = dict.fromkeys(entry.last.served.rpartition(", ")[2] for entry, *_ in shown)
    return " or ".join(filter(None, found))


def draw_layers(found: list[Entry], names: dict[str, str]) -> Figure | None:
    """Kept width or rank of every layer, a row a recipe; one map for each different network."""
    best = {point.number for board in boards(found, "macs") for point in board.frontier()}
    maps: dict[tuple | None, list] = {}
    for entry in sorted(found, key=lambda entry: entry.number not in best):
        for _, kind, layers in kept_by_layer(entry):
            maps.setdefault(entry.dense, []).append((entry, (kind, layers)))
    rows = [merged(items) for items in maps.values()][:MOST_MAPS]
    if not rows:
        return None
    shown = [sorted(items[:MOST_MAP_ROWS], key=lambda item: item[0][0].number) for items in rows]
    heights = [0.27 * len(items) + 1.5 for items in shown]
    figure, grid = panels(len(shown), size=(8.6, sum(heights) + 0.5), gridspec_kw={"height_ratios": heights})
    for items, axes in zip(shown, grid[:, 0], strict=True):
        picture = _draw_map(axes, items, names)
    grid[0, 0].set_title("What was kept of every layer", pad=10)
    bar = figure.colorbar(picture, ax=grid[:, 0], location="right", fraction=0.03, aspect=18, pad=0.02)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25 %", "50 %", "75 %", "100 %"])
    bar.outline.set_visible(False)
    without = sum(map(len, rows)) - sum(map(len, shown))
    networks = len(maps) - len(rows)
    note = f"Left out: {without} rows, those off the frontier of MACs first. " * bool(without)
    legend_below(figure, note=note + f"Left out: {networks} more networks." * bool(networks))
    return figure


def _draw_map(axes: Axes, items: list, names: dict[str, str]):
    from matplotlib.colors import LinearSegmentedColormap

    longest = sorted((kept for _, (_, kept) in items), key=len, reverse=True)  # has the order of the network
    layers = list(dict.fromkeys(layer for kept in longest for layer in kept))
    values = [[kept.get(layer, math.nan) for layer in layers] for _, (_, kept) in items]
    colors = LinearSegmentedColormap.from_list("kept", ("#f1d9a7", "#8fb8c9", "#24557f"))
    picture = axes.imshow(values, vmin=0, vmax=1, cmap=colors, aspect="auto", interpolation="nearest")
    _name_rows(axes, [f"{_numbers(group, names)}, {kind}" for group, (kind, _) in items], inverted=False)
    every = math.ceil(len(layers) / MOST_LAYER_LABELS)
    labels = [plain(short_layer(layer), 30) for layer in layers[::every]]
    axes.set_xticks(range(0, len(layers), every), labels, rotation=90, fontsize=7)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if len(layers) * len(items) <= TEXT_CELLS and len(layers) <= 32:
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if not math.isnan(value):
                    color = "#ffffff" if value > 0.6 else "#101418"  # on cells that no scheme changes
                    axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=6.5, color=color)
    return picture


def _called(entry: Entry, names: dict[str, str]) -> str:
    return f"{names[entry.name]}  {entry.number}"


def _numbers(group: list[Entry], names: dict[str, str]) -> str:
    others = [str(entry.number) for entry in group]
    listed = ", ".join(others[:4]) + f" and {len(others) - 4} more" * (len(others) > 4)
    return f"{listed}  {plain(names[group[0].name], 26)}"


def _name_rows(axes: Axes, texts: list[str], inverted: bool = True) -> None:
    axes.set_yticks(range(len(texts)), texts, fontsize=8)
    axes.tick_params(axis="y", length=0)
    if inverted:
        axes.set_ylim(len(texts) - 0.4, -0.6)
        axes.grid(False, axis="y")
