from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from hf_compress.journal import JOURNAL, Journal
from hf_compress.storage import read_json


ROOT = Path(__file__).parents[1]
STUDY = ROOT / "model_cards" / "studies" / "mrpc-minilm"


def test_records_and_report_are_kept_and_models_are_not(tmp_path, monkeypatch):
    study = tmp_path / "outputs" / "mrpc-minilm"
    for run in read_json(STUDY / "study.json")["runs"][:2]:
        folder = study / run["folder"]
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "model.safetensors").write_bytes(b"large")
        for path in (STUDY / run["folder"]).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    (study / "study.json").write_bytes((STUDY / "study.json").read_bytes())
    Journal(study / JOURNAL).add_human(40, "reading", "prune", "what a group is")
    arguments = [str(study), str(STUDY / "study.yaml"), str(tmp_path / "kept")]
    monkeypatch.setattr(sys, "argv", ["keep_study.py", *arguments])
    for _ in range(2):  # the second time in place of what the first one left
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "scripts" / "keep_study.py"), run_name="__main__")
        assert ended.value.code == 0
    kept = tmp_path / "kept" / "mrpc-minilm"
    names = {path.name for path in kept.rglob("*")}
    assert {"study.yaml", "study.json", "results.json", "journal.jsonl", "experiment.md", "experiment.zh.md"} <= names
    assert {"report.html", "report.zh.html"} <= names and "model.safetensors" not in names
    assert "what a group is" in (kept / JOURNAL).read_text()
    assert "what a group is" in (kept / "report" / "experiment.md").read_text()


def test_a_folder_that_is_no_study_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["keep_study.py", str(tmp_path), str(STUDY / "study.yaml"), str(tmp_path)])
    with pytest.raises(Exception, match="study.json"):
        runpy.run_path(str(ROOT / "scripts" / "keep_study.py"), run_name="__main__")
