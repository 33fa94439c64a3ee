"""Text that others wrote (names, notes, errors) as Markdown that shows it and does nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable


_SPECIAL = re.compile(r"([\\`*\[\]|~])")
_ENTITY = re.compile(r"&(?=[#A-Za-z])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def one_line(text: object) -> str:
    """`text` in one line, without the characters that steer a terminal or turn the direction of writing."""
    return " ".join(_CONTROL.sub(" ", str(text)).split())


def inline(text: object) -> str:
    """`text` within a line: no markup, no HTML, no cell of a table ends in it."""
    escaped = _SPECIAL.sub(r"\\\1", _ENTITY.sub("&amp;", one_line(text)).replace("<", "&lt;"))
    # between letters an underscore is one already
    return re.sub(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])", r"\\_", escaped)


def quoted(text: str) -> str:
    """`text` as a quotation, its lines kept."""
    return "\n".join(f"> {inline(line)}".rstrip() + "  " for line in re.split(r"\r\n|\r|\n", text.strip()))


def fenced(text: str, language: str = "") -> str:
    """`text` as a code block, with a fence longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A GitHub-flavoured table; whatever is in a cell is shown as it is."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(inline, line)) + " |" for line in lines) + "\n"
