"""Show that every stage of finished runs comes back: `python scripts/check_reload.py RUN [RUN ...] [--hub USER]`.

This process has imported hf_compress and loads with plain `from_pretrained`. For every stage, and the `model` folder:

- predictions: on the evaluation splits they are, to the last bit, those that results.json has the fingerprint of
- saved again: saved once more and loaded from there, the model gives equal logits
- hub: pushed to a private repository of USER, which is removed afterwards, and loaded from there, it does so too
- without hf_compress: in a process that never imports it (`load_unaware.py`), a model whose structure was changed is
  refused by its shapes, and any other one gives equal logits

Another process may serve an exported model with other last bits: it also passes with close logits (and, for its
predictions, equal metrics), and its row says so. Run this where the run was made: other CPUs round differently.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save_file

import hf_compress
from hf_compress.errors import CompressionError
from hf_compress.measurement import environment
from hf_compress.reload import Finding, ModelFolder, check_reload, model_folders
from hf_compress.report.tables import MISSING, markdown_table
from hf_compress.storage import read_json, write_json


UNAWARE = "without hf_compress"
CHECKS = ("predictions", "saved again", "hub", UNAWARE)


def check_unaware(folders: list[ModelFolder]) -> None:
    """Load all models in one process without hf_compress, and judge what came of it."""
    with TemporaryDirectory() as scratch:
        jobs, files = [], [Path(scratch) / name for name in ("jobs.json", "outcomes.json")]
        for index, folder in enumerate(folders):
            batch = Path(scratch) / f"{index}.safetensors"
            save_file(folder.batch, batch)
            paths = {"folder": str(folder.path), "batch": str(batch)}
            jobs.append({"class": folder.class_name, "options": folder.options, "threads": folder.threads, **paths})
        write_json(files[0], jobs)
        subprocess.run([sys.executable, Path(__file__).with_name("load_unaware.py"), *files], check=True)
        for folder, outcomes in zip(folders, json.loads(files[1].read_text()), strict=True):
            folder.findings[UNAWARE] = judge_unaware(folder, outcomes)


def judge_unaware(folder: ModelFolder, outcomes: list[dict]) -> Finding:
    """Of two attempts the second, in which timm was given the architecture, says what becomes of the structure."""
    last = outcomes[-1]
    note = "" if len(outcomes) == 1 else ", once timm was given the architecture"
    structure = read_json(folder.path / "config.json").get("quantization_config", {})
    if structure.get("quant_method") == "hf_compress":
        if "error" not in last:
            return Finding(False, "loaded, although its structure was changed")
        refused = "ignore_mismatched_sizes" in last["error"]  # what Transformers says to shapes that do not fit
        return Finding(refused, f"refused{note}" if refused else f"not refused by its shapes: {last['error']}")
    if "error" in last:
        return Finding(False, last["error"])
    passed, words = folder.judge(last["logits"])
    return Finding(passed, words + note)


def table(folders: list[ModelFolder]) -> str:
    """A row a folder, a column a check."""
    checks = [check for check in CHECKS if any(check in folder.findings for folder in folders)]
    lines = []
    for folder in folders:
        line = [f"{folder.run.name}/{folder.path.name}"]
        for check in checks:
            passed, detail = folder.findings.get(check, (True, MISSING))
            line.append(detail if passed else f"FAILED: {detail}")
        lines.append(line)
    return markdown_table(["stage", *checks], lines)


def rows(folders: list[ModelFolder]) -> list[dict]:
    """A row a folder and check, JSON-plain."""
    return [
        {"run": str(folder.run), "stage": folder.path.name, "check": check, **finding._asdict()}
        for folder in folders
        for check, finding in folder.findings.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--output", type=Path, default=Path("reload.json"), help="default: %(default)s")
    parser.add_argument("--hub", metavar="USER", help="push to private temporary repositories of this user, too")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # Optimum and Transformers have much to say about every load
    hf_compress.load_methods()  # which a recipe is checked against
    try:
        folders = [folder for run in options.runs for folder in model_folders(run)]
    except CompressionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    prepared: dict = {}
    for folder in folders:
        print(folder.path, file=sys.stderr, flush=True)
        check_reload(folder, prepared, options.hub)
    check_unaware([folder for folder in folders if folder.logits is not None])
    found = rows(folders)
    failed = [row for row in found if not row["passed"]]
    write_json(options.output, {"passed": not failed, "environment": environment(), "rows": found})
    print(table(folders))
    print(f"{len(found) - len(failed)} of {len(found)} checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
