"""The command line: `hf-compress run | study | report | push | journal | doctor | methods`."""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from .endings import ending_cleanly
from .errors import CompressionError
from .journal import HUMAN_KINDS, JOURNAL, Journal


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 something is missing that a doctor looked for, 2 the
    input cannot be worked with."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if hasattr(options, "overrides") and not any(text.startswith("-") for text in rest):
        options.overrides += rest  # key=value may stand behind a flag too
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that the terminal's encoding does not have are shown escaped
            stream.reconfigure(errors="backslashreplace")
    _set_up_logging(options.verbose)
    try:
        with ending_cleanly():
            return options.verb(options) or 0
    except CompressionError as error:
        print(f"hf-compress: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # a full disk, a folder that may not be written: the message is the remedy, a traceback is not
        print(f"hf-compress: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-compress", description="Compress Transformers and timm models.")
    parser.add_argument("--verbose", action="store_true", help="also show what the libraries log")
    verbs = parser.add_subparsers(required=True, metavar="run | study | report | push | journal | doctor | methods")

    run = verbs.add_parser("run", help="run a recipe or a study, or finish one that was stopped")
    run.add_argument("recipe", help="a YAML file")
    run.add_argument("overrides", nargs="*", metavar="key=value", help="such as steps.1.target.macs=0.5")
    run.add_argument("--push_to_hub", action="store_true", help="upload model, card and results at the end")
    run.set_defaults(verb=_run)

    study = verbs.add_parser("study", help="run what is missing of a study: many recipes, stages in common made once")
    study.add_argument("study", help="a YAML file")
    study.add_argument("overrides", nargs="*", metavar="key=value", help="such as seeds=[0] or base.threads=1")
    study.add_argument("--jobs", type=int, default=1, help="runs side by side")
    study.set_defaults(verb=_study)

    report = verbs.add_parser("report", help="many runs in one table over seeds, and the document of the experiment")
    report.add_argument("paths", nargs="+", type=Path, help="run folders, or folders of them such as a study's")
    report.add_argument(
        "--output", type=Path, help="also write tables, plots, report.html, experiment.md and files for evaluate here"
    )
    report.add_argument("--lang", choices=("en", "zh"), default="en", help="the language of the document")
    report.set_defaults(verb=_report)

    push = verbs.add_parser("push", help="upload model, card and results of a finished run, or of all runs of a study")
    push.add_argument("run", type=Path, help="the folder of a run or of a study")
    push.add_argument("--repo_id", required=True, help="user/name; of a study what user/name-<variant> begins with")
    push.add_argument("--seeds", choices=("0", "all"), default="0", help="of a study: each variant's first, or all")
    push.add_argument("--private", action="store_true")
    push.set_defaults(verb=_push)

    journal = verbs.add_parser("journal", help="the time of every operation, by machine and by hand")
    journal_verbs = journal.add_subparsers(required=True, metavar="add | show")
    add = journal_verbs.add_parser("add", help="add time that a person spent")
    add.add_argument("run", type=Path, help="the folder of a run or of a study")
    add.add_argument("--minutes", type=float, required=True)
    add.add_argument("--kind", choices=HUMAN_KINDS, required=True)
    add.add_argument("--technique", help="what it was spent on, such as pruning")
    add.add_argument("--note", default="")
    add.set_defaults(verb=_journal_add)
    show = journal_verbs.add_parser("show", help="print the journal")
    show.add_argument("run", type=Path, help="the folder of a run or of a study")
    show.set_defaults(verb=_journal_show)

    doctor = verbs.add_parser("doctor", help="whether a recipe can run here, and about how long it would take")
    doctor.add_argument("recipe", nargs="?", help="a YAML file of a recipe or a study; without one, the machine alone")
    doctor.add_argument("overrides", nargs="*", metavar="key=value", help="such as size=full")
    doctor.add_argument("--no-estimate", action="store_true", help="time nothing")
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.set_defaults(verb=_doctor)

    methods = verbs.add_parser("methods", help="the methods: what each needs, and where it may stand in a recipe")
    methods.add_argument("name", nargs="?", help="such as fisher or prune/fisher, for what its options mean")
    methods.add_argument("--json", action="store_true", help="for machines")
    methods.set_defaults(verb=_methods)
    return parser


def _run(options) -> None:
    from .runner import run
    from .study import is_study

    overrides = list(options.overrides)
    if is_study(options.recipe):
        if options.push_to_hub:
            raise CompressionError("A study is pushed when it is done: hf-compress push STUDY_FOLDER --repo_id …")
        _run_study(options.recipe, overrides, jobs=1)
        return
    if options.push_to_hub:
        overrides.append("hub.push=true")
    run(options.recipe, overrides)


def _study(options) -> None:
    _run_study(options.study, options.overrides, options.jobs)


def _run_study(path: str, overrides: Sequence[str], jobs: int) -> None:
    from . import load_methods
    from .study import load_study
    from .study_runner import run_study

    load_methods()
    study = load_study(path, overrides)
    runs = run_study(study, jobs=jobs)["runs"]
    failed = [run for run in runs if run["status"] != "done"]
    if len(failed) < len(runs):
        _show([study.output_dir], study.output_dir / "report", "en")
    for run in failed:
        print(f"{run['folder']}: {run.get('error', run['status'])}", file=sys.stderr)
    if failed:
        raise CompressionError(f"{len(failed)} of {len(runs)} runs failed; the others are done.")


def _report(options) -> None:
    _show(options.paths, options.output, options.lang)


def _show(paths: Sequence[Path], output: Path | None, lang: str) -> None:
    """Print the table of the runs in `paths` and, into a folder, write all that can be said of them."""
    from .report.comparison import write_comparison
    from .report.page import write_comparison_pictures
    from .report.runs import comparison_table, read_runs, rows

    records, problems = read_runs(paths)
    for problem in problems.values():
        print(f"left out: {problem}", file=sys.stderr)
    if not records:
        raise CompressionError("There is no finished run in these folders.")
    print(comparison_table(rows(records)))
    if output is not None:
        for path in write_comparison(records, problems, output, lang, pictures=write_comparison_pictures):
            if path.parent == output:
                print(path)


def _push(options) -> None:
    from .publish import push_run, push_study

    if not (options.run / "study.json").exists():
        print(push_run(options.run, options.repo_id, private=options.private))
        return
    pushed = push_study(options.run, options.repo_id, private=options.private, seeds=options.seeds)
    for name, status in pushed.left_out.items():
        print(f"left out: {name} ({status})", file=sys.stderr)
    for run in pushed.runs:
        print(f"{run.run}: {run.address}" if run.error is None else f"{run.run} -> {run.repo_id}: failed: {run.error}")
    if pushed.collection is not None:
        print(f"collection: {pushed.collection}")
    if pushed.failed:
        raise CompressionError(
            f"{pushed.failed} uploads failed{f' ({pushed.error})' * bool(pushed.error)}; the same command tries again."
        )


def _run_journal(folder: Path) -> Journal:
    if not (folder / JOURNAL).exists() and not (folder / "study.json").exists():
        raise CompressionError(
            f"{folder} is the folder of no run and no study: it has no {JOURNAL} and no study.json."
        )
    return Journal(folder / JOURNAL)


def _journal_add(options) -> None:
    _run_journal(options.run).add_human(options.minutes, options.kind, options.technique, options.note)


def _journal_show(options) -> None:
    from .report.unfinished import study_rows

    for event in _run_journal(options.run).events():
        if event.get("status") != "started":
            print(_shown(event))
    folders = [row["folder"] for row in study_rows(options.run)]
    if folders:
        print(f"The journals of the study's {len(folders)} runs are in their folders:")
        print(f"    hf-compress journal show {options.run / folders[0]}")


def _shown(event: dict) -> str:
    """One event in a line: of a person's time the minutes, what they went into and the note."""
    from .report.markdown import one_line

    texts = {key: one_line(value) for key, value in event.items() if isinstance(value, str)}
    start = f"{texts.get('time', '')[:19]:<19}  "
    if event["operation"] == "human":
        on = f" on {texts['technique']}" if texts.get("technique") else ""
        note = f": {texts['note']}" if texts.get("note") else ""
        return f"{start}{event.get('minutes', 0):g} min of {texts.get('kind', 'other')}{on}{note}"
    seconds = f"{event['wall_seconds']:.1f} s" if "wall_seconds" in event else ""
    stage, status = texts.get("stage", "-"), texts.get("status", "").replace("saved", "saved, so far")
    return f"{start}{stage:<16} {texts['operation']:<12} {seconds:>11}  {status}"


def _doctor(options) -> int:
    """0 if the recipe can run here, 1 if something is missing."""
    from . import load_methods
    from .doctor import (
        Estimate,
        Finding,
        doctor_json,
        doctor_text,
        estimate,
        findings,
        machine_findings,
        resource_findings,
    )
    from .errors import TargetError, UnsupportedModelError

    load_methods()
    recipes, store = ([], None) if options.recipe is None else _recipes(options.recipe, options.overrides)
    folder = Path(recipes[0].output_dir if recipes else ".")
    found, timed, why_not = machine_findings(folder) + findings(recipes, store), Estimate(), None
    if recipes and not options.no_estimate:
        try:
            timed = estimate(recipes, store)
            found += resource_findings(timed, folder)
        except (TargetError, UnsupportedModelError) as error:  # known before the hours that lead up to it
            why_not = "a step would be refused"
            found.append(Finding("recipe", "steps", "missing", str(error)))
        except CompressionError as error:
            missing = any(finding.state == "missing" for finding in found)
            why_not = "it needs what is missing" if missing else str(error).splitlines()[0]
    print((doctor_json if options.json else doctor_text)(found, timed, why_not), end="")
    return int(any(finding.state == "missing" for finding in found))


def _recipes(path: str, overrides: Sequence[str]) -> tuple[list, Path | None]:
    """The recipe in a file, or those of a study, as they run here, and where those of a study share their stages."""
    from .preflight import resolved
    from .recipe import load_recipe
    from .study import is_study, load_study

    if not is_study(path):
        return [resolved(load_recipe(path, overrides))], None
    study = load_study(path, overrides)
    return [resolved(run.recipe) for run in study.runs], study.output_dir / "stages"


def _methods(options) -> None:
    from .method_table import chosen_rows, method_json, method_rows, method_table, option_table

    rows = chosen_rows(options.name) if options.name else method_rows()
    show = method_json if options.json else option_table if options.name else method_table
    print(show(rows), end="")


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("hf_compress").setLevel(logging.INFO)
    if not verbose:
        for name in ("nncf", "openvino", "optimum", "httpx", "transformers", "datasets"):
            logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
