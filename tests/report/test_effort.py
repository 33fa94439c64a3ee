from __future__ import annotations

import json

import pytest

from hf_compress.cli import main
from hf_compress.report.effort import efforts, human_events, machine_seconds
from hf_compress.report.runs import read_runs


def write_run(folder, stages, name="run"):
    common = {"method": "none", "params": 1, "macs": 1, "size_bytes": 1, "metrics": {"accuracy": 0.5}}
    results = {
        "format_version": 1,
        "name": name,
        "seed": 0,
        "recipe": {},
        "task": {"name": "cifar10", "main_metric": "accuracy"},
        "stages": [{**common, **stage} for stage in stages],
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "journal.jsonl").write_text("")


def stage(name, technique, key=None, **seconds):
    return {"name": name, "technique": technique, "seconds": seconds} | ({"key": key} if key else {})


@pytest.fixture
def study(tmp_path):
    dense = stage("00_baseline", "none", "d", total=10.0, evaluate=7.0, load=3.0)
    write_run(tmp_path / "runs" / "a" / "seed0", [dense, stage("01_prune", "prune", "p", total=5.0, surgery=5.0)])
    write_run(tmp_path / "runs" / "b" / "seed0", [dense, stage("01_distill", "distill", "q", total=8.0, train=8.0)])
    (tmp_path / "study.json").write_text("{}")
    return tmp_path


def add(folder, *arguments):
    return main(["journal", "add", str(folder), "--minutes", "30", "--kind", "reading", *arguments])


def test_a_shared_stage_counts_once(study):
    records, _ = read_runs([study])
    assert machine_seconds(records) == (23.0, 33.0)
    found = {effort.technique: effort for effort in efforts(records)}
    assert {name: effort.machine_seconds for name, effort in found.items()} == {
        "baseline": 10.0,
        "prune": 5.0,
        "distill": 8.0,
    }
    assert found["baseline"].machine["evaluate"] == 7.0 and found["baseline"].machine["other"] == 3.0
    assert found["baseline"].stages == 1


def test_stages_of_runs_without_keys_are_all_different(tmp_path):
    for run in ("a", "b"):
        write_run(tmp_path / run, [stage("00_baseline", "none", total=10.0)])
    assert machine_seconds(read_runs([tmp_path])[0]) == (20.0, 20.0)


def test_the_time_of_people_is_found_in_the_run_and_in_its_study(study):
    assert add(study, "--technique", "pruning", "--note", "the paper") == 0
    assert add(study / "runs" / "a" / "seed0", "--technique", "prune") == 0
    assert add(study) == 0
    found = {effort.technique: effort for effort in efforts(read_runs([study])[0])}
    assert found["prune"].human == {"reading": 60.0} and found["prune"].machine_seconds == 5.0
    assert [note["note"] for note in found["prune"].notes] == ["the paper", ""]
    assert found[""].human_minutes == 30 and found[""].stages == 0
    assert list(found)[-1] == ""


def test_lines_that_are_no_time_are_passed_over(study):
    run = study / "runs" / "a" / "seed0"
    for minutes in ('"many"', "-3", "Infinity", "null"):
        with open(run / "journal.jsonl", "a") as file:
            file.write(f'{{"operation": "human", "minutes": {minutes}}}\n')
    assert human_events([run]) == []


def test_a_folder_that_is_neither_run_nor_study_gets_no_journal(tmp_path, capsys):
    assert add(tmp_path) == 2
    assert "no study.json" in capsys.readouterr().err and not list(tmp_path.iterdir())
