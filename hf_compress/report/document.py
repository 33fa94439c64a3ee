"""The document of an experiment, made from the results and journals of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..tasks.selection import HOLDOUT_SHARE
from .effort import Effort, efforts, machine_seconds
from .judgement import (
    effect_line,
    effect_table,
    effects,
    frontiers,
    in_short,
    model_name,
    sharing,
    time_table,
)
from .markdown import fenced, inline, quoted, table
from .process import MOST_TIMELINES, Process, shortened
from .reproduce import file_name, public_name, reproductions
from .runs import RunRecord, comparison_table, recipes, rows, task_name
from .tables import MISSING, human_bytes
from .words import Words


MOST_STAGES = 150  # rows of the table stage by stage
FACTS = ("cpu", "instruction_sets", "usable_cores", "threads", "memory_bytes", "os", "python")
QUESTIONS = ("expected", "happened", "learning", "surprises", "use")
LAST_QUESTIONS = ("choice", "limits", "again")


def experiment_document(
    records: Sequence[RunRecord], problems: Mapping[str, str], pictures: Sequence[Path] = (), lang: str = "en"
) -> str:
    """The document of an experiment as Markdown: setting, environment, data, process, results, time by technique,
    frontier, failures, how to reproduce it, and questions for a personal evaluation with the notes people took.

    Args:
        records (`Sequence[RunRecord]`): the finished runs, at least one.
        problems (`Mapping[str, str]`): the folders of the other runs, each with the reason; see [`read_runs`].
        pictures (`Sequence[Path]`, *optional*): plots (PNG) and pages (HTML), relative to the document; others are
            passed over.
        lang (`str`, *optional*, defaults to `"en"`): "en" or "zh".

    Raises:
        `CompressionError`: for another language.
    """
    words = Words(lang)
    process = Process(records, problems, words)
    spent = efforts(records, map(Path, problems))
    table_rows = rows(records)
    environments = _environment(records, words)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML; what others wrote is escaped by the functions of `markdown`
    )
    return environment.get_template("experiment.md.jinja").render(
        w=words,
        title=_title(records, words),
        summary=_summary(records, problems, spent, words),
        short=in_short(table_rows, words),
        setting=_setting(records, words),
        environment=environments[0],
        environment_differs=environments[1],
        data=_data(records, words),
        holdout=words("data.holdout", share=HOLDOUT_SHARE),
        process=process.overview(),
        timelines=process.timelines(),
        timelines_elsewhere=words("process.long", n=len(process.runs)),
        final=comparison_table([row for row in table_rows if row.last], words.columns("comparison")),
        pictures=_pictures(pictures),
        stages=comparison_table(table_rows, words.columns("comparison"))
        if len(table_rows) <= MOST_STAGES
        else words("results.long", n=len(table_rows)) + "\n",
        steps=effect_table(effects(records, words), words),
        time=time_table(spent, words),
        sharing=sharing(records, spent, words),
        frontiers=frontiers(table_rows, spent, words),
        problems=[
            (words("problems.warnings"), _warnings(records, process, environments[1], words)),
            (words("problems.errors"), process.errors()),
            (words("problems.runs"), process.without_results()),
        ],
        **_reproduce(records, lang, words),
        evaluations=_evaluations(records, spent, words),
    )


def _title(records: Sequence[RunRecord], words: Words) -> str:
    models = list(dict.fromkeys(model_name(record.results) for record in records))
    tasks = list(dict.fromkeys(record.results["task"]["name"] for record in records))
    return words(
        "title", models=words.some(list(map(inline, models)), 3), tasks=words.some(list(map(inline, tasks)), 3)
    )


def _summary(records: Sequence[RunRecord], problems: Mapping[str, str], spent: Sequence[Effort], words: Words) -> str:
    minutes = sum(effort.human_minutes for effort in spent)
    seeds = sorted({record.results.get("seed", 0) for record in records})
    return words(
        "summary",
        runs=len(records),
        recipes=len(recipes(records)),
        seeds=words.some(list(map(str, seeds))),
        machine=words.duration(machine_seconds(records)[0]),
        human=words.duration(60 * minutes) if minutes else words("none"),
        problems=len(problems),
    )


def _setting(records: Sequence[RunRecord], words: Words) -> str:
    """A row for each kind of recipe: what has the same task, model and steps up to their options."""
    named = recipes(records)
    in_detail = len(named) <= MOST_TIMELINES
    kinds: dict[tuple[str, str, str], tuple[list[str], set[int]]] = {}
    for name, members in named.items():
        results = members[0].results
        steps = [_step(step, in_detail) for step in results["recipe"].get("steps", [])]
        key = (task_name(results, words), model_name(results), " → ".join(steps) or MISSING)
        names, seeds = kinds.setdefault(key, ([], set()))
        names.append(name)
        seeds |= {record.results.get("seed", 0) for record in members}
    lines = [
        [*key, words.some(names, 4), words.some(list(map(str, sorted(seeds))))]
        for key, (names, seeds) in kinds.items()
    ]
    return table(words.columns("setting"), lines)


def _step(step: dict, in_detail: bool) -> str:
    """`{"prune": {"method": "fisher", "target": {"macs": 0.47}}}` -> `"prune (fisher, macs 0.47)"`."""
    technique, options = next(iter(step.items()), ("?", {}))
    target = options.get("target")
    target = target if isinstance(target, dict) else {}
    facts = [str(options[key]) for key in ("method", "scheme", "teacher") if options.get(key)]
    facts += [f"{key} {value}" for key, value in target.items() if key != "scope"]
    return f"{technique} ({', '.join(map(public_name, facts))})" if in_detail and facts else str(technique)


def _environment(records: Sequence[RunRecord], words: Words) -> tuple[list[str], bool]:
    """A line a fact, and whether runs differ in one; where they do, each value is named with its runs."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, members in recipes(records).items():
        for record in members:
            label = words("run_of", recipe=name, seed=record.results.get("seed", 0))
            for key, value in _facts(record.results.get("environment", {}), words).items():
                found.setdefault(key, {}).setdefault(value, []).append(label)
    same = {key: next(iter(values)) for key, values in found.items() if len(values) == 1}
    lines = [
        f"{inline(words.name('environment', key))}{words('colon')}{inline(same[key])}" for key in FACTS if key in same
    ]
    packages = [f"{key} {value}" for key, value in same.items() if key not in FACTS]
    if packages:
        lines.append(f"{words('environment.versions')}{words('colon')}{inline(words('comma').join(packages))}")
    for key, values in found.items():
        if key not in same:
            parts = [f"{value}{words('colon')}{words.some(runs, 3)}" for value, runs in values.items()]
            name = words.name("environment", key)
            lines.append(f"**{inline(name)}**{words('colon')}{inline(words('semicolon').join(parts))}")
    return lines or [words("environment.unknown")], len(same) < len(found)


def _facts(environment: dict, words: Words) -> dict[str, str]:
    """What a run says of its environment, as text: the `FACTS`, and the versions by package."""
    facts = {key: environment[key] for key in FACTS if environment.get(key)}
    facts = {key: words("comma").join(value) if isinstance(value, list) else value for key, value in facts.items()}
    if "memory_bytes" in facts:
        facts["memory_bytes"] = human_bytes(facts["memory_bytes"])
    versions = {key: value for key, value in environment.get("versions", {}).items() if value and key not in FACTS}
    return {key: str(value) for key, value in (facts | versions).items()}


def _data(records: Sequence[RunRecord], words: Words) -> str:
    lines = {}
    for record in records:
        facts, spec = record.results["task"], record.results["recipe"].get("task", {})
        data_dir = spec.get("data_dir")
        source = "hub" if data_dir is None else "sample" if data_dir == "sample" else "local"
        line = (
            facts["name"],
            *(facts.get(key) or MISSING for key in ("hub_dataset", "hub_config", "eval_split")),
            *(str(spec.get(key) or words("data.all")) for key in ("max_train_samples", "max_eval_samples")),
            words(f"data.{source}"),
        )
        lines[line] = None
    return table(words.columns("data"), lines)


def _pictures(pictures: Sequence[Path]) -> list[str]:
    pages = [path for path in pictures if path.suffix == ".html"]
    plots = [path for path in pictures if path.suffix == ".png"]
    return [
        *(f"![{inline(path.stem)}]({quote(path.as_posix())})" for path in plots),
        *(f"[{inline(path.name)}]({quote(path.as_posix())})" for path in pages),
    ]


def _warnings(records: Sequence[RunRecord], process: Process, differs: bool, words: Words) -> list[str]:
    """Of the runs, and of what the tables made of them cannot say."""
    named = recipes(records)
    seeds = {name: [record.results.get("seed", 0) for record in members] for name, members in named.items()}
    lines = [words("warning.environment")] if differs else []
    twice = [inline(name) for name, used in seeds.items() if len(set(used)) < len(used)]
    few = [inline(name) for name, used in seeds.items() if len(set(used)) < 3]
    lines += [words("warning.twice", recipes=words.some(twice))] if twice else []
    lines += [words("warning.seeds", recipes=words.some(few))] if few else []
    lines += process.stale()
    found: dict[tuple[str, str], list[str]] = {}
    for name, members in named.items():
        for record in members:
            for stage in record.results["stages"]:
                for text in stage.get("warnings", []):
                    found.setdefault((stage["name"], text), []).append(
                        words("run_of", recipe=name, seed=record.results.get("seed", 0))
                    )
    lines += [
        f"{inline(words.some(runs, 3))}{words('comma')}{inline(stage)}{words('colon')}{inline(text)}"
        for (stage, text), runs in found.items()
    ]
    return shortened(lines, words)


def _reproduce(records: Sequence[RunRecord], lang: str, words: Words) -> dict:
    found = reproductions(records)
    shown = found[:MOST_TIMELINES]
    parts = []
    for one in shown:
        kind = "study" if one.is_study else "recipe"
        title = words(f"reproduce.{kind}", name=inline(one.name), file=file_name(one.name))
        parts.append((title, fenced(one.text, "yaml"), fenced("\n".join(one.commands), "bash")))
    return {
        "reproductions": parts,
        "needs_paths": any("path/to/" in one.text for one in shown),
        "reproductions_left": words("reproduce.long", n=len(found) - len(shown)) if len(found) > len(shown) else "",
        "report_command": fenced(f"hf-compress report RUN_OR_STUDY… --output DIR --lang {lang}", "bash"),
    }


def _evaluations(records: Sequence[RunRecord], spent: Sequence[Effort], words: Words) -> list[dict]:
    """A part for each technique, and one for the whole: facts, notes people took, questions."""
    found = effects(records, words)
    parts = []
    for effort in spent:
        if effort.technique not in ("baseline", ""):
            facts = [
                words("evaluation.machine", time=words.duration(effort.machine_seconds), n=effort.stages),
                _people(effort, words),
                *(effect_line(effect, words) for effect in found if effect.technique == effort.technique),
            ]
            title = inline(words.name("technique", effort.technique))
            parts.append({"title": title, "facts": facts, "notes": _notes(effort, words), "questions": QUESTIONS})
    rest = [effort for effort in spent if effort.technique in ("baseline", "")]
    notes = [note for effort in rest for note in _notes(effort, words)]
    facts = [_people(effort, words) for effort in rest if effort.human]
    return [
        *parts,
        {"title": words("evaluation.whole"), "facts": facts, "notes": notes, "questions": LAST_QUESTIONS},
    ]


def _people(effort: Effort, words: Words) -> str:
    if not effort.human:
        return words("evaluation.nobody")
    kinds = [f"{words.name('kind', kind)} {minutes:g}" for kind, minutes in effort.human.items()]
    return words("evaluation.people", minutes=effort.human_minutes, kinds=words("comma").join(kinds))


def _notes(effort: Effort, words: Words) -> list[tuple[str, str]]:
    """The notes with what stands over each: date, minutes, kind."""
    notes = []
    for event in effort.notes:
        date = inline(str(event.get("time") or MISSING)[:10])
        kind = inline(words.name("kind", event.get("kind") or "other"))
        head = words("evaluation.note_head", date=date, minutes=event["minutes"], kind=kind)
        notes.append((head, quoted(str(event.get("note") or MISSING))))
    return notes
