"""One page of a comparison: a file without network, other files, or anything that a name in the results could run."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..storage import whole_folder, write_text
from .canvas import INK, PAPER, RULE, SOFT, duration
from .comparison_plots import plot_comparison, plot_files
from .effort import Effort, efforts, machine_seconds
from .page_facts import counted, settings, steps_of, warnings_of
from .page_tables import chief_boards, frontier_sheet, recipes_sheet, stages_sheet
from .page_words import PAGE_WORDS
from .process import folder_label
from .runs import RunRecord
from .tables import MISSING, OPERATIONS
from .tradeoffs import Entry, common_start, entries


HERE = Path(__file__).parent
PAGE = "report.html"
# in the pictures, colours that the reader's scheme decides; the darker scheme's stand second
SCHEME = {
    "ink": (INK, "#e4e8ed"),
    "soft": (SOFT, "#9aa5b1"),
    "rule": (RULE, "#333c46"),
    "paper": (PAPER, "#1a1f26"),
}


def write_comparison_pictures(
    records: Sequence[RunRecord], problems: Mapping[str, str], output: str | Path, lang: str = "en"
) -> list[Path]:
    """Draw the pictures of a comparison into `output/plots` and write the page `output/report.html`.

    Args:
        records (`Sequence[RunRecord]`), problems (`Mapping[str, str]`): from [`read_runs`].
        output (`str` or `Path`): made if it does not exist.
        lang (`str`, *optional*, defaults to `"en"`): a key of `PAGE_WORDS`.

    Returns:
        `list[Path]`: the page, then the PNG and the SVG of each picture.
    """
    output = Path(output)
    with whole_folder(output / "plots") as aside:
        drawn = [output / "plots" / path.name for path in plot_comparison(records, aside)]
    write_text(output / PAGE, report_page(records, problems, output / "plots", lang))
    return [output / PAGE, *drawn]


def report_page(
    records: Sequence[RunRecord], problems: Mapping[str, str], plots_folder: str | Path, lang: str = "en"
) -> str:
    """The page as HTML, whole in itself; it reads without JavaScript, which only sorts and filters its tables.

    Args:
        records (`Sequence[RunRecord]`), problems (`Mapping[str, str]`): from [`read_runs`].
        plots_folder (`str` or `Path`): with the SVG files of [`plot_comparison`]; may be empty.
        lang (`str`, *optional*, defaults to `"en"`): a key of `PAGE_WORDS`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    words = PAGE_WORDS[lang]
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, autoescape=True)
    return environment.get_template("page.html.jinja").render(
        w=words,
        policy=f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),  # noqa: S704  these two are the package's own files
        script=Markup(script),  # noqa: S704
        problems=[_problem(folder, reason) for folder, reason in problems.items()],
        **_content(records, problems, Path(plots_folder), words),
    )


def _problem(folder: str, reason: str) -> tuple[str, str]:
    """A run's name and what is wrong with it, without the way to its folder."""
    label = folder_label(Path(folder))
    return label, reason.removeprefix(f"{folder}: ").replace(folder, label)


def _content(records: Sequence[RunRecord], problems: Mapping, plots_folder: Path, words: dict[str, str]) -> dict:
    found = entries(records)
    chief = chief_boards(found)
    best = {point.number for _, board in chief for point in board.frontier() if point.number is not None}
    spent = efforts(records)
    tasks = ", ".join(dict.fromkeys(entry.last.task for entry in found)) or MISSING
    pictures = [_picture(name, path, words) for name, path in plot_files(plots_folder)]
    sections = {"problems": problems, "frontier": chief, "all": True, "pictures": pictures}
    sections |= dict.fromkeys(("time", "warnings", "settings"), True)
    return {
        "tasks": tasks,
        "headline": words["headline"].format(
            recipes=counted(words, "recipe", len(found)), runs=counted(words, "run", len(records)), tasks=tasks
        ),
        "tiles": _tiles(records, found, chief, best, spent, words),
        "contents": [(name, words[name]) for name, there in sections.items() if there],
        "frontiers": [
            {
                "task": board.title,
                "note": words[f"frontier_{cost}"],
                "table": frontier_sheet(board, found, words),
            }
            for cost, board in chief
        ],
        "prefix": common_start(entry.name for entry in found),
        "recipes": recipes_sheet(found, best, words),
        "stages": stages_sheet(found, words),
        "pictures": pictures,
        "operations": (*OPERATIONS, "other"),
        "efforts": [_effort(effort, max(1e-9, *(each.machine_seconds for each in spent)), words) for effort in spent],
        "notes": [_note(event, words) for effort in spent for event in effort.notes],
        "warnings": warnings_of(found, words),
        "settings": settings(records, words),
        "steps": steps_of(found),
    }


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _tiles(records, found: list[Entry], chief: list, best: set[int], spent: list[Effort], words) -> list[dict]:
    together, alone = machine_seconds(records)
    minutes = sum(effort.human_minutes for effort in spent)
    kinds = {kind: minutes for effort in spent for kind, minutes in effort.human.items()}
    techniques = dict.fromkeys(effort.technique for effort in spent if effort.technique not in ("", "baseline"))
    tiles = [(words["techniques"], str(len(techniques)), ", ".join(techniques) or MISSING)]
    tiles.append((words["on_frontier"], str(len(best)), words["of_recipes"].format(n=len(found))))
    if len(chief) == 1:
        board = chief[0][1]
        point = max(board.points, key=lambda point: point.metric.mean)
        dense = f", {words['dense']} {board.dense[0].metric.mean:.4f}" if len(board.dense) == 1 else ""
        label = words["best"].format(metric=board.metric)
        tiles.append((label, f"{point.metric.mean:.4f}", f"{words['no']} {point.number}{dense}"))
    machine_note = words["alone"].format(time=duration(alone)) if alone > together * 1.01 else ""
    tiles.append((words["machine_time"], duration(together), machine_note))
    human = duration(60 * minutes) if minutes else MISSING
    tiles.append((words["human_time"], human, ", ".join(kinds) or words["none_noted"]))
    return [{"label": label, "figure": figure, "note": note} for label, figure, note in tiles]


def _effort(effort: Effort, longest: float, words: Mapping[str, str]) -> dict[str, Any]:
    parts, texts, x = [], [], 0.0
    for name in (*OPERATIONS, "other"):
        seconds = effort.machine.get(name, 0.0)
        if seconds > 0:
            width = 100 * seconds / longest
            parts.append({"name": name, "x": f"{x:.3f}", "width": f"{width:.3f}"})
            texts.append(f"{words[name]} {duration(seconds)}")
            x += width
    technique = words["baseline"] if effort.technique == "baseline" else effort.technique or words["unassigned"]
    return {
        "technique": technique,
        "stages": effort.stages,
        "machine": duration(effort.machine_seconds) if effort.machine_seconds else MISSING,
        "parts": parts,
        "text": ", ".join(texts) or MISSING,
        "human": duration(60 * effort.human_minutes) if effort.human_minutes else MISSING,
        "kinds": ", ".join(f"{kind} {duration(60 * minutes)}" for kind, minutes in effort.human.items()) or MISSING,
    }


def _note(event: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, str]:
    kind = " · ".join(str(part) for part in (event.get("technique"), event.get("kind")) if part)
    return {
        "when": str(event.get("time") or "")[:16].replace("T", " "),
        "time": duration(60 * event["minutes"]),
        "kind": kind or words["other"],
        "text": str(event.get("note") or ""),
    }


def _picture(name: str, path: Path, words: Mapping[str, str]) -> dict[str, Any]:
    svg = themed(path.read_text(encoding="utf-8"))
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    width, height = (round(float(side)) for side in size.groups()) if size else (504, 360)
    caption = words[f"{name}_plot"] if f"{name}_plot" in words else words[name]
    source = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    return {"source": source, "width": width, "height": height, "caption": caption}


def themed(svg: str) -> str:
    """The picture with its neutral colours as variables that follow the reader's scheme.

    As an image, an SVG runs no script and loads nothing, whatever it holds.
    """
    names = {color: name for name, (color, _) in SCHEME.items()}
    paint = re.compile(rf"(?<=[ \";])(fill|stroke): ({'|'.join(names)})(?=[;\"])")
    svg = paint.sub(lambda found: f"{found[1]}: var(--{names[found[2]]})", svg)
    light, dark = (
        _variables(color for color, _ in SCHEME.values()),
        _variables(color for _, color in SCHEME.values()),
    )
    style = f"<style>:root{{{light}}}@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}</style>"
    return re.sub(r"(<svg\b[^>]*>)", lambda found: found[1] + style, svg, count=1)


def _variables(colors: Iterable[str]) -> str:
    return ";".join(f"--{name}:{color}" for name, color in zip(SCHEME, colors, strict=True))
