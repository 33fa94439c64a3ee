from __future__ import annotations

import pytest
from many_runs import PRUNE, write_journal, write_run, write_study

from hf_compress.cli import main
from hf_compress.journal import Journal
from hf_compress.report.document import experiment_document
from hf_compress.report.runs import read_runs


VARIANTS = {"prune": [PRUNE], "int8": [("quantize", 0.93, 0.25, 0.25)], "both": [PRUNE]}


def document(path):
    return experiment_document(*read_runs([path]))


def section(text, number):
    return text.split(f"\n## {number}. ")[1].split("\n## ")[0]


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path / "study", VARIANTS, failed=["int8/seed2"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no journal"),
        ("", "no whole line"),
        ('{"operation": "run", "sta', "no whole line"),
        ("[1]\n3\n{}\nnull\n" + "[" * 100_000, "no whole line"),
        (b"\xff\xfe\x00", "no whole line"),
        ('{"operation": ["run"]}\n{"operation": "run", "status": "done", "time": 3}\n', None),
        ('{"operation": "train", "wall_seconds": "many", "peak_bytes": NaN, "stage": {}, "notes": 3}\n', None),
        (
            '{"operation": "train", "status": "failed", "wall_seconds": 1e999, "minutes": true, "time": "\\ud800"}\n',
            None,
        ),
        ('{"operation": "human", "minutes": ' + "9" * 5000 + "}\n", "no whole line"),
    ],
)
def test_a_journal_in_any_state_makes_no_traceback(tmp_path, content, said):
    folder = write_run(tmp_path / "a", PRUNE)
    path = folder / "journal.jsonl"
    path.unlink() if content is None else path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for lang in ("en", "zh"):
        assert main(["report", str(tmp_path), "--output", str(tmp_path / "out"), "--lang", lang]) == 0
    assert (said or "## 10.") in (tmp_path / "out" / "experiment.md").read_text()


def test_a_journal_that_is_a_folder_is_said(tmp_path):
    folder = write_run(tmp_path / "a", PRUNE)
    (folder / "journal.jsonl").unlink()
    (folder / "journal.jsonl").mkdir()
    assert "the journal cannot be read (journal.jsonl is no file)" in document(tmp_path)


def test_a_run_without_results_has_its_timeline(tmp_path):
    write_run(tmp_path / "a", PRUNE)
    unfinished = write_run(tmp_path / "b", PRUNE)
    (unfinished / "results.json").unlink()
    write_journal(unfinished, ["00_baseline"], end=False)
    text = document(tmp_path)
    assert "### b\n" in section(text, 4) and "b: the run is not finished" in section(text, 8)
    assert str(tmp_path) not in text
    Journal(unfinished / "journal.jsonl").append(operation="run", status="failed", notes={"error": "E: out of reach"})
    assert "b: the run failed: E: out of reach" in section(document(tmp_path), 8)


def test_the_journal_is_shown_with_what_people_did(study, capsys):
    run = study / "runs" / "prune" / "seed0"
    arguments = ["--minutes", "40.5", "--kind", "reading", "--technique", "pruning", "--note", "a \x1b[31m\nb"]
    assert main(["journal", "add", str(run), *arguments]) == 0
    assert main(["journal", "show", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("40.5 min of reading on prune: a [31m b") and len(lines[-1].split("  ")[0]) == 19
    assert any(line.split()[1:] == ["01_prune", "train", "3.0", "s", "done"] for line in lines)


def test_the_journal_of_a_study_says_where_those_of_its_runs_are(study, capsys):
    assert main(["journal", "show", str(study)]) == 0
    assert (
        f"9 runs are in their folders:\n    hf-compress journal show {study}/runs/prune/seed0"
        in capsys.readouterr().out
    )
    assert main(["journal", "add", str(study), "--minutes", "5", "--kind", "other"]) == 0
    assert main(["journal", "show", str(study)]) == 0
    assert "5 min of other" in capsys.readouterr().out
