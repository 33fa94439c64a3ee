"""What all pictures share: style, colours, text that cannot be taken for markup, and files as PNG and SVG.

The figures are made without `pyplot`, which would keep them and a backend for the whole process.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# a page may put other colours in their place; nothing else is drawn in these
INK, SOFT, RULE, PAPER = "#1f2630", "#66707c", "#dde1e6", "#fffffe"
COLORS = ("#3b78c2", "#d9772b", "#3a9a6b", "#b5527f", "#8a6bbf", "#b08a1e", "#3d9db0", "#c0504d", "#7b8794")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h")
STYLE = {
    "figure.dpi": 130,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": "none",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.family": ["sans-serif"],
    "font.size": 10,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "svg.fonttype": "none",  # text stays text: small files, and letters that DejaVu does not have
    "svg.hashsalt": "hf_compress",  # the same results give the same file
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the house style inside the block."""
    import matplotlib

    settings = {**STYLE, "font.sans-serif": _fonts(), "axes.prop_cycle": matplotlib.cycler(color=COLORS)}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box in the PNG; the SVG has the letter
        yield


@cache
def _fonts() -> list[str]:
    """DejaVu and, where there is one, a font with Chinese characters; the browser falls back to its own."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    wanted = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC")
    return ["DejaVu Sans", *[name for name in (*wanted, "Microsoft YaHei") if name in installed][:1]]


def panels(rows: int = 1, columns: int = 1, size: tuple[float, float] = (7.0, 4.4), **options) -> tuple[Figure, Any]:
    """A figure and its axes, an array of `rows` by `columns`; `size` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `figure` as `name`.png and `name`.svg."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out; each file would do it again
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    figure.savefig(paths[0], metadata={"Software": None})
    figure.savefig(paths[1], metadata={"Date": None})
    return paths


def plain(text: Any, most: int = 44) -> str:
    """`text` on one line, of at most `most` characters, without what XML cannot hold."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    if text.startswith("_"):
        text = "\u200b" + text  # or legends leave it out
    return text if len(text) <= most else f"{text[: most * 2 // 3]}…{text[len(text) - most // 3 + 1 :]}"


def looks(kinds: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each different kind, in order; from the ninth on they share the last."""
    last = len(COLORS) - 1
    return {
        kind: (COLORS[min(index, last)], MARKERS[min(index, last)]) for index, kind in enumerate(dict.fromkeys(kinds))
    }


def legend_below(figure: Figure, handles: Sequence = (), texts: Sequence[str] = (), note: str = "") -> None:
    """What the names mean, below the picture in two columns, under a `note` of what it leaves out."""
    if handles or note:
        lines = textwrap.fill(note, 104) or None
        legend = figure.legend(handles, texts, title=lines, loc="outside lower left", ncols=2, alignment="left")
        legend.get_title().set(color=SOFT, fontsize=8.5)


def duration(seconds: float) -> str:
    """`4530` -> `"1 h 16 min"`, `524` -> `"8.7 min"`, `1500` -> `"25 min"`, `9.25` -> `"9.25 s"`."""
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    if seconds < 3570:
        return f"{seconds / 60:.{1 if seconds < 595 else 0}f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours < 100 else f"{hours:,} h"


def short_layer(name: str) -> str:
    """`bert.encoder.layer.3.output.dense` -> `3.output.dense`, `timm_model.layer2.0.conv1` -> `layer2.0.conv1`.

    From the last number on, and from the stage before it; else the end.
    """
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts[:-1]) if part.isdigit()]
    start = numbers[-1] if numbers else -3
    return ".".join(parts[start - (start > 0 and parts[start - 1][-1:].isdigit()) :])
