"""What the page says of how the runs were made: warnings, settings, environments, steps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from .runs import RunRecord, task_name
from .tradeoffs import Entry, short_model_name


MOST_WARNINGS = 100
MOST_ENVIRONMENTS = 6


def warnings_of(found: Sequence[Entry], words: Mapping[str, str]) -> list[dict[str, str]]:
    """What the stages warn of, over the seeds, what could not be measured, and what limits the comparison."""
    warnings = [{"text": text, "small": ""} for text in _limits(found, words)]
    reasons: Counter[str] = Counter()
    lines = []
    for entry in found:
        said: Counter[tuple[str, str]] = Counter()
        for record in entry.records:
            for stage in record.results["stages"]:
                said.update((stage["name"], str(text)) for text in stage.get("warnings") or [])
                reasons.update(
                    f"{row.get('runtime')} {row.get('precision')}: {row['skipped']}"
                    for row in stage.get("latency") or []
                    if "skipped" in row
                )
        for (stage, text), times in said.items():
            small = words["in_seeds"].format(n=times, of=len(entry.records)) if len(entry.records) > 1 else ""
            lines.append({"text": f"{entry.number} {entry.name}, {stage}: {text}", "small": small})
    warnings += lines[:MOST_WARNINGS]
    if len(lines) > MOST_WARNINGS:
        warnings.append({"text": words["more"].format(n=len(lines) - MOST_WARNINGS), "small": ""})
    for reason, times in reasons.items():
        text = words["not_measured"].format(reason=reason)
        warnings.append({"text": text, "small": words["in_stages"].format(n=times)})
    return warnings


def _limits(found: Sequence[Entry], words: Mapping[str, str]) -> Iterable[str]:
    single = sum(len(set(entry.last.seeds)) == 1 for entry in found)
    if single and len(found) > 1:
        yield words["single_seed"].format(n=single, of=len(found))
    environments = len(_environments(record for entry in found for record in entry.records))
    if environments > 1:
        yield words["environments"].format(n=environments)


def _environments(records: Iterable[RunRecord]) -> list[tuple[dict[str, Any], int]]:
    """The different environments, as far as times depend on them, the commonest first; each with its runs."""
    counted: Counter[str] = Counter()
    for record in records:
        environment = record.results.get("environment")
        kept = environment if isinstance(environment, dict) else {}
        keys = ("cpu", "instruction_sets", "threads", "versions")
        counted[json.dumps({key: kept.get(key) for key in keys}, sort_keys=True, default=str)] += 1
    return [(json.loads(text), times) for text, times in counted.most_common()]


def settings(records: Sequence[RunRecord], words: Mapping[str, str]) -> list[dict[str, Any]]:
    """A block for each task, and one for each environment."""
    blocks = []
    by_task: dict[str, list[dict]] = {}
    for record in records:
        by_task.setdefault(task_name(record.results), []).append(record.results)
    for task, results in by_task.items():
        models = ", ".join(dict.fromkeys(map(short_model_name, results)))
        facts = [
            (words["models"], models),
            (words["split"], _same((r["task"].get("eval_split") for r in results), words)),
        ]
        for key, title in (("training", words["training_of"]), ("measure", words["measure"])):
            facts.append((title, _same((r["recipe"].get(key) for r in results), words)))
        blocks.append({"title": f"{words['task']}: {task}", "facts": facts})
    environments = _environments(records)
    for kept, times in environments[:MOST_ENVIRONMENTS]:
        facts = [
            (words["cpu"], _text(kept["cpu"], words)),
            (words["instructions"], _text(kept["instruction_sets"], words)),
            (words["threads"], _text(kept["threads"], words)),
            (words["versions"], _text(kept["versions"], words)),
        ]
        number = f" ({counted(words, 'run', times)})" if len(environments) > 1 else ""
        blocks.append({"title": words["environment"] + number, "facts": facts})
    return blocks


def counted(words: Mapping[str, str], what: str, number: int) -> str:
    """`1 run`, `2,000 runs`, in the words of the page."""
    return words[f"{what}_one"] if number == 1 else words[f"{what}_many"].format(n=f"{number:,}")


def _same(values: Iterable[Any], words: Mapping[str, str]) -> str:
    different = {json.dumps(value, sort_keys=True, default=str): value for value in values}
    return _text(next(iter(different.values())), words) if len(different) == 1 else words["several"]


def _text(value: Any, words: Mapping[str, str]) -> str:
    """A setting as text: lists with commas, mappings as `name value`."""
    if value in (None, {}, []):
        return words["unknown"]
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items() if item is not None)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def steps_of(found: Sequence[Entry]) -> list[dict[str, Any]]:
    """The steps of every recipe as one line of YAML."""
    return [
        {"number": entry.number, "name": entry.name, "steps": _yaml(entry.records[0].results["recipe"].get("steps"))}
        for entry in found
    ]


def _yaml(steps: Any) -> str:
    try:
        text = yaml.safe_dump(steps, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    except yaml.YAMLError:  # results of another program
        text = str(steps)
    return text.removesuffix("...\n").strip()
