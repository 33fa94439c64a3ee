"""Plots of one run, made from its `results.json` alone, as PNG and SVG."""

from __future__ import annotations

from pathlib import Path

from .canvas import RULE, SOFT, legend_below, panels, plain, save, short_layer, style
from .tables import OPERATIONS, baseline_stage, main_metric, served_latency


def plot_all(results: dict, folder: str | Path) -> list[Path]:
    """Draw every plot that the results have data for.

    Returns:
        `list[Path]`: the PNG of each, in a fixed order; its SVG lies beside it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with style():
        for name, draw in (
            ("accuracy_latency", _draw_latency),
            ("accuracy_size", _draw_size),
            ("layers", _draw_layers),
            ("seconds", _draw_seconds),
            ("epochs", _draw_epochs),
        ):
            figure = draw(results)
            if figure is not None:
                drawn.append(save(figure, folder, name)[0])
    return drawn


def _draw_latency(results: dict):
    """Latency as a fraction of the dense model's, timed beside it: absolute times of different comparisons do not
    compare on a machine that does other things too."""
    points, batch = [], None
    for stage in results["stages"]:
        served = served_latency(stage)
        value = stage["metrics"].get(main_metric(results))
        if served and served.speedup_torch and value is not None:
            batch = served.batch
            points.append((1 / served.speedup_torch, value, f"{stage['name']} ({served.runtime} {served.precision})"))
    return _scatter(results, points, f"latency / dense model in PyTorch fp32, batch {batch}")


def _draw_size(results: dict):
    points = [
        (stage["size_bytes"] / 1e6, stage["metrics"][main_metric(results)], stage["name"])
        for stage in results["stages"]
        if main_metric(results) in stage["metrics"]
    ]
    return _scatter(results, points, "size on disk in MB")


def _scatter(results: dict, points: list[tuple[float, float, str]], label: str):
    if not points:
        return None
    figure, axes = _one_panel((7, 4.2 + 0.1 * len(points)))
    for index, (x, y, name) in enumerate(points):
        axes.scatter(x, y, s=60, color=f"C{index}", label=plain(name), zorder=3)
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color=RULE, linewidth=1, zorder=1)
    axes.set_xlim(left=0)
    axes.set_xlabel(label)
    axes.set_ylabel(plain(main_metric(results)))
    axes.set_title(plain(results["name"]))
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def _one_panel(size: tuple[float, float]):
    figure, grid = panels(size=size)
    return figure, grid[0, 0]


def _draw_layers(results: dict):
    """Kept fraction of every layer that a step made narrower: width, heads, neurons or rank."""
    stages = []
    for stage in results["stages"]:
        fractions = {}
        for name, spec in stage.get("layers", {}).items():
            kept = spec.get("kept", spec.get("rank")) if isinstance(spec, dict) else None
            if kept is not None and spec.get("of"):
                fractions[name] = kept / spec["of"]
        if fractions:
            stages.append((stage["name"], fractions))
    if not stages:
        return None
    figure, grid = panels(len(stages), size=(8, 2.6 * len(stages)))
    for (name, fractions), panel in zip(stages, grid[:, 0], strict=True):
        panel.bar(range(len(fractions)), fractions.values(), color="C0")
        panel.set_ylim(0, 1.02)
        panel.set_ylabel("kept")
        panel.set_title(plain(name))
        labels = [plain(short_layer(layer)) for layer in fractions]
        panel.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6 if len(labels) > 24 else 8)
    return figure


def _draw_seconds(results: dict):
    stages = [stage for stage in results["stages"] if stage.get("seconds")]
    if not stages:
        return None
    figure, axes = _one_panel((7, 0.6 * len(stages) + 2.0))
    left = [0.0] * len(stages)
    for color, kind in enumerate(OPERATIONS):
        widths = [stage["seconds"].get(kind, 0.0) for stage in stages]
        if not any(widths):
            continue
        axes.barh(range(len(stages)), widths, left=left, label=kind, color=f"C{color}")
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(stages)), [plain(stage["name"]) for stage in stages])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    legend_below(figure, *axes.get_legend_handles_labels())
    axes.set_title(f"{plain(results['name'])}: where the time went")
    return figure


def _draw_epochs(results: dict):
    metric = main_metric(results)
    key = f"holdout_{metric}"
    figure = axes = None
    start = 0.0
    for index, stage in enumerate(results["stages"]):
        epochs = [entry for entry in stage.get("epochs", []) if entry.get(key) is not None]
        if not epochs:
            continue
        if figure is None:
            figure, axes = _one_panel((7, 4.4))
        positions = [start + entry["epoch"] for entry in epochs]
        axes.plot(positions, [entry[key] for entry in epochs], "o-", color=f"C{index}", label=plain(stage["name"]))
        for event in stage.get("events", []):
            axes.axvline(start + event.get("epoch", 0), color=SOFT, linestyle=":", linewidth=1)
        start = positions[-1]
    if figure is None:
        return None
    dense = baseline_stage(results)
    if dense and metric in dense["metrics"]:
        axes.axhline(
            dense["metrics"][metric], color=SOFT, linestyle="--", linewidth=1, label="dense, evaluation split"
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{plain(metric)} on the holdout")
    axes.set_title(plain(results["name"]))
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure
