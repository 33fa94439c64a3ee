"""The pictures of a comparison of many runs, as PNG and SVG."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .canvas import looks, plain, save, style
from .comparison_panels import draw_latency, draw_layers, draw_seconds
from .curve_plots import draw_epochs, draw_layer_sensitivity, draw_sensitivity
from .runs import RunRecord
from .tradeoff_plots import COST_LABELS, draw_tradeoff
from .tradeoffs import Entry, boards, by_task, entries, short_names


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# in the order of the page; a file is named so, with the task behind it where there are several
PLOTS = (
    "pareto_latency",
    "pareto_size",
    "pareto_macs",
    "seconds",
    "latency",
    "sensitivity",
    "sensitivity_layers",
    "layers",
    "epochs",
)
MOST_FIGURES = 12  # of one kind


def plot_comparison(records: Sequence[RunRecord], folder: str | Path) -> list[Path]:
    """Draw every picture that the runs have data for.

    Args:
        records (`Sequence[RunRecord]`): of any tasks; runs of one recipe with several seeds become one point.
        folder (`str` or `Path`): made if it does not exist.

    Returns:
        `list[Path]`: the PNG and the SVG of each, in the order of `PLOTS`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with style():
        return [path for name, figure in _figures(entries(records)) for path in save(figure, folder, name)]


def plot_files(folder: str | Path, kind: str = "svg") -> list[tuple[str, Path]]:
    """The pictures in `folder`, each with the name of its plot, in the order of `PLOTS`."""
    files = sorted(Path(folder).glob(f"*.{kind}"), key=lambda path: path.stem)
    return [(name, path) for name in PLOTS for path in files if re.fullmatch(f"{name}(-.*)?", path.stem)]


def _figures(found: list[Entry]) -> Iterator[tuple[str, Figure]]:
    look = looks(entry.techniques for entry in found if entry.compresses)
    names = {name: plain(short) for name, short in short_names(entry.name for entry in found).items()}
    groups = by_task(found)
    for cost in COST_LABELS:
        drawn = ((board.title, draw_tradeoff(board, cost, look, names)) for board in boards(found, cost))
        yield from _named(f"pareto_{cost}", drawn)
    yield from _named("seconds", [("", draw_seconds(found, names))])
    yield from _named("latency", [("", draw_latency(found, names, look))])
    yield from _named("sensitivity", ((task, draw_sensitivity(group)) for task, group in groups.items()))
    yield from _named("sensitivity_layers", [("", draw_layer_sensitivity(found, names))])
    yield from _named("layers", ((task, draw_layers(group, names)) for task, group in groups.items()))
    yield from _named("epochs", ((task, draw_epochs(group, names)) for task, group in groups.items()))


def _named(name: str, drawn: Iterable[tuple[str, Figure | None]]) -> Iterator[tuple[str, Figure]]:
    """File names for figures of one kind: the first has the plain name, the others that of their task too."""
    taken: set[str] = set()
    for task, figure in drawn:
        if figure is None or len(taken) == MOST_FIGURES:
            continue
        slug = re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")[:40] or "task"
        full = f"{name}-{slug}" if taken else name
        if full in taken:
            full += f"-{len(taken) + 1}"
        taken.add(full)
        yield full, figure
