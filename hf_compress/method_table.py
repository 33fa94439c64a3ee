"""What `hf-compress methods` shows: each method with what it needs, and where it may stand among a recipe's steps.

The order is not written down here: [`~recipe.check_order`] is asked about every pair of methods.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterable
from dataclasses import MISSING, fields

from . import load_methods
from .errors import RecipeError
from .recipe import COMMON_KEYS, METHOD_KEYS, Step, check_order
from .registry import TECHNIQUES, Method, get_method, methods, nearest


WIDTH = 100
BASELINE, OTHER = "baseline", "another/model"  # teachers: check_order tells the dense model from all others
_NEEDS = {
    "labels": "labels",
    "calibration": "calibration examples",
    "teacher": "a teacher",
    "training": "training",
}


def method_rows() -> list[dict]:
    """Every registered method, by technique, as plain JSON.

    Returns:
        `list[dict]`: each with `technique`, `method`, `key` (of a step that the name stands under), `summary`,
        `paper`, `needs` (of "labels", "calibration", "teacher", "training"), `may_need` (by its options), `extra`
        (of this package), `supports`, `targets`, `blocks` (that a step may have beside the options), `options` (with
        their defaults) and `order`, see [`order_of`].
    """
    load_methods()
    known = sorted(methods(), key=lambda method: TECHNIQUES.index(method.technique))
    return [_row(method, known) for method in known]


def chosen_rows(name: str) -> list[dict]:
    """The rows of the methods that a user may mean by `name`: "fisher", "prune/fisher", or all of "prune".

    Raises:
        `RecipeError`: if there is none.
    """
    rows = {f"{row['technique']}/{row['method']}": row for row in method_rows()}
    found = [row for full, row in rows.items() if name in (full, row["method"], row["technique"])]
    if not found:
        known = sorted({part for full in rows for part in (full, *full.split("/"))})
        raise RecipeError(f"methods: got {name!r}{nearest(name, known)}; allowed are {', '.join(rows)}.")
    return found


def order_of(method: Method, known: Iterable[Method]) -> dict:
    """Where `method` may stand, as [`~recipe.check_order`] says for recipes of one and two steps.

    Returns:
        `dict`: `first` (whether a recipe may begin with it), `after` and `before` (techniques that may come anywhere
        before and after it; `technique/method` where a technique's methods differ), `reasons` (for what is refused,
        by `"after factorize"` or `"before prune"`), and, of a method that may learn from the dense model,
        `teacher_baseline`: the techniques of which one has to come before it then.
    """
    known, reasons = list(known), {}
    own = _step(method, OTHER)
    order = {
        "first": refusal([own]) is None,
        "after": _names(known, lambda other: refusal([_step(other, OTHER), own]), "after", reasons),
        "before": _names(known, lambda other: refusal([own, _step(other, OTHER)]), "before", reasons),
    }
    dense = _step(method, BASELINE)
    if refusal([dense]) is not None and order["first"]:
        order["teacher_baseline"] = _names(known, lambda other: refusal([_step(other, OTHER), dense]))
    return {**order, "reasons": reasons}


def refusal(steps: list[Step]) -> str | None:
    """Why [`~recipe.check_order`] refuses the steps, without the path; `None` if it takes them."""
    try:
        check_order(steps)
    except RecipeError as error:
        return str(error).split(": ", 1)[1]
    return None


def method_table(rows: Iterable[dict], width: int = WIDTH) -> str:
    """The rows of [`method_rows`] as text, a block a method, no line longer than `width`."""
    return "\n\n".join(_block(row, width) for row in rows) + "\n"


def option_table(rows: Iterable[dict], width: int = WIDTH) -> str:
    """The rows of [`method_rows`] as text with the meaning of every option."""
    return "\n\n".join("\n".join([_block(row, width), "", *_options(row, width)]) for row in rows) + "\n"


def method_json(rows: Iterable[dict]) -> str:
    """The rows of [`method_rows`] as a JSON list."""
    return json.dumps(list(rows), indent=1, ensure_ascii=False) + "\n"


def _row(method: Method, known: list[Method]) -> dict:
    options = {field.name: _default(field) for field in fields(method.options)}
    needs = [name for name in _NEEDS if name in method.needs or (name == "training" and method.trains)]
    calibrates = "calibration_samples" in options and "calibration" not in needs
    return {
        "technique": method.technique,
        "method": method.name,
        "key": METHOD_KEYS.get(method.technique, "method"),
        "summary": method.summary,
        "paper": method.paper,
        "needs": needs,
        "may_need": ["calibration"] if calibrates else [],
        "extra": method.extra,
        "supports": list(method.supports),
        "targets": sorted(method.targets),
        "blocks": list(COMMON_KEYS[method.technique]),
        "options": options,
        "meanings": {name: meaning for name, meaning in meanings(method.options).items() if name in options},
        "order": order_of(method, known),
    }


def meanings(options: type) -> dict[str, str]:
    """What the docstring of a class of options, and of those it is made from, says under `Args` of each."""
    found: dict[str, str] = {}
    for part in options.__mro__:
        text = inspect.cleandoc(part.__dict__.get("__doc__") or "").partition("Args:\n")[2].partition("\n\n")[0]
        for entry in re.split(r"\n(?=\S)", textwrap.dedent(text)):
            head = re.match(r"((?:\w+ \([^)]*\)(?:, )?)+): (.*)", " ".join(entry.split()))
            if head:
                meaning = re.sub(r"\[(`[^`]*`)\]", r"\1", head[2]).replace("~", "")
                found = {name: meaning for name in re.findall(r"(\w+) \(", head[1])} | found
    return found


def _default(field):
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else None


def _step(method: Method, teacher: str) -> Step:
    """A step of `method` that learns from `teacher`, if it can learn from one."""
    own = any(field.name == "teacher" for field in fields(method.options))
    step = Step(method.technique, method.name, method.options(teacher=teacher) if own else method.options())
    if not own and teacher == BASELINE and "distill" in COMMON_KEYS[method.technique]:
        step.distill = get_method("distill", "logits").options(teacher=teacher)
    return step


def _names(known: list[Method], refused, side: str = "", reasons: dict | None = None) -> list[str]:
    """The techniques, or their methods where these differ, that `refused` gives no reason against."""
    allowed = []
    for technique in TECHNIQUES:
        answers = {method.name: refused(method) for method in known if method.technique == technique}
        if len({reason is None for reason in answers.values()}) == 1:
            answers = {"": next(iter(answers.values()))}
        for name, reason in answers.items():
            full = f"{technique}/{name}" if name else technique
            if reason is None:
                allowed.append(full)
            elif reasons is not None:
                reasons[f"{side} {full}"] = reason
    return allowed


def _block(row: dict, width: int) -> str:
    order = row["order"]
    lines = {
        "paper": row["paper"] or "–",
        "needs": _needs(row),
        "supports": ", ".join(row["supports"]) or "any model",
        "target": " or ".join(row["targets"]) or "none",
        "options": ", ".join(row["options"]) or "none",
        "blocks": ", ".join(f"{name}:" for name in row["blocks"]) or "none",
        "after": ", ".join([*["the beginning"] * order["first"], *order["after"]]) or "nothing",
        "before": ", ".join([*order["before"], "the end"]),
    }
    if "teacher_baseline" in order:
        lines["baseline"] = f"as its teacher: only after {' or '.join(order['teacher_baseline'])}"
    text = [f"{row['technique']}: {row['method']}", textwrap.indent(textwrap.fill(row["summary"], width - 4), " " * 4)]
    for name, value in lines.items():
        text.append(textwrap.fill(value, width, initial_indent=f"    {name:<9} ", subsequent_indent=" " * 14))
    return "\n".join(text)


def _options(row: dict, width: int) -> list[str]:
    lines = []
    for name, default in row["options"].items():
        text = f"{name}: {row['meanings'].get(name, '')} Default: {json.dumps(default)}."
        lines.append(textwrap.fill(text, width, initial_indent=" " * 4, subsequent_indent=" " * 8))
    return lines


def _needs(row: dict) -> str:
    needs = [_NEEDS[name] for name in row["needs"]]
    needs += [f"{_NEEDS[name]} (by its options)" for name in row["may_need"]]
    if row["extra"]:
        needs.append(f'pip install "hf_compress[{row["extra"]}]"')
    return ", ".join(needs) or "nothing but the model"
