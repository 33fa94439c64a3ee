"""Plots made from `results.json` alone, as PNG."""

from __future__ import annotations

from pathlib import Path

from .tables import OPERATIONS, baseline_stage, main_metric, served_latency


STYLE = {
    "figure.dpi": 110,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 10,
}


def plot_all(results: dict, folder: str | Path) -> list[Path]:
    """Draw every plot that the results have data for.

    Returns:
        `list[Path]`: the files written, in a fixed order.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with pyplot.rc_context(STYLE):
        for name, draw in (
            ("accuracy_latency", _draw_latency),
            ("accuracy_size", _draw_size),
            ("layers", _draw_layers),
            ("seconds", _draw_seconds),
            ("epochs", _draw_epochs),
        ):
            figure = draw(pyplot, results)
            if figure is None:
                continue
            figure.savefig(folder / f"{name}.png", bbox_inches="tight")
            pyplot.close(figure)
            drawn.append(folder / f"{name}.png")
    return drawn


def _draw_latency(pyplot, results: dict):
    """Latency as a fraction of the dense model's, timed beside it: absolute times of different comparisons do not
    compare on a machine that does other things too."""
    points, batch = [], None
    for stage in results["stages"]:
        served = served_latency(stage)
        value = stage["metrics"].get(main_metric(results))
        if served and served.speedup_torch and value is not None:
            batch = served.batch
            points.append((1 / served.speedup_torch, value, f"{stage['name']} ({served.runtime} {served.precision})"))
    return _scatter(pyplot, results, points, f"latency / dense model in PyTorch fp32, batch {batch}")


def _draw_size(pyplot, results: dict):
    points = [
        (stage["size_bytes"] / 1e6, stage["metrics"][main_metric(results)], stage["name"])
        for stage in results["stages"]
        if main_metric(results) in stage["metrics"]
    ]
    return _scatter(pyplot, results, points, "size on disk in MB")


def _scatter(pyplot, results: dict, points: list[tuple[float, float, str]], label: str):
    if not points:
        return None
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for index, (x, y, name) in enumerate(points):
        axes.scatter(x, y, s=60, color=f"C{index}", label=name, zorder=3)
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color="0.7", linewidth=1, zorder=1)
    axes.set_xlim(left=0)
    axes.set_xlabel(label)
    axes.set_ylabel(main_metric(results))
    axes.set_title(results["name"], fontsize=11)
    axes.legend(fontsize=8, loc="best")
    return figure


def _draw_layers(pyplot, results: dict):
    """Kept fraction of every layer that a step made narrower: width, heads, neurons or rank."""
    panels = []
    for stage in results["stages"]:
        fractions = {}
        for name, spec in stage.get("layers", {}).items():
            kept = spec.get("kept", spec.get("rank")) if isinstance(spec, dict) else None
            if kept is not None and spec.get("of"):
                fractions[name] = kept / spec["of"]
        if fractions:
            panels.append((stage["name"], fractions))
    if not panels:
        return None
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(8, 2.6 * len(panels)), squeeze=False)
    for (name, fractions), panel in zip(panels, axes[:, 0], strict=True):
        panel.bar(range(len(fractions)), fractions.values(), color="C0")
        panel.set_ylim(0, 1.02)
        panel.set_ylabel("kept")
        panel.set_title(name, fontsize=10)
        labels = [_shorten(layer) for layer in fractions]
        panel.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6 if len(labels) > 24 else 8)
    figure.tight_layout()
    return figure


def _draw_seconds(pyplot, results: dict):
    stages = [stage for stage in results["stages"] if stage.get("seconds")]
    if not stages:
        return None
    figure, axes = pyplot.subplots(figsize=(7, 0.6 * len(stages) + 1.4))
    left = [0.0] * len(stages)
    for color, kind in enumerate(OPERATIONS):
        widths = [stage["seconds"].get(kind, 0.0) for stage in stages]
        if not any(widths):
            continue
        axes.barh(range(len(stages)), widths, left=left, label=kind, color=f"C{color}")
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(stages)), [stage["name"] for stage in stages])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.legend(fontsize=8, ncols=3, loc="best")
    axes.set_title(f"{results['name']}: where the time went", fontsize=11)
    return figure


def _draw_epochs(pyplot, results: dict):
    metric = main_metric(results)
    key = f"holdout_{metric}"
    figure = axes = None
    start = 0.0
    for index, stage in enumerate(results["stages"]):
        epochs = [entry for entry in stage.get("epochs", []) if entry.get(key) is not None]
        if not epochs:
            continue
        if figure is None:
            figure, axes = pyplot.subplots(figsize=(7, 4))
        positions = [start + entry["epoch"] for entry in epochs]
        axes.plot(positions, [entry[key] for entry in epochs], "o-", color=f"C{index}", label=stage["name"])
        for event in stage.get("events", []):
            axes.axvline(start + event.get("epoch", 0), color="0.6", linestyle=":", linewidth=1)
        start = positions[-1]
    if figure is None:
        return None
    dense = baseline_stage(results)
    if dense and metric in dense["metrics"]:
        axes.axhline(
            dense["metrics"][metric], color="0.5", linestyle="--", linewidth=1, label="dense, evaluation split"
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{metric} on the holdout")
    axes.set_title(results["name"], fontsize=11)
    axes.legend(fontsize=8)
    return figure


def _shorten(layer: str) -> str:
    """`bert.encoder.layer.3.intermediate.dense` -> `3.intermediate.dense`."""
    parts = layer.split(".")
    return ".".join(parts[-3:]) if len(parts) > 3 else layer
