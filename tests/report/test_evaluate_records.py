from __future__ import annotations

import json
import statistics

import evaluate
import pytest
from many_runs import INT8, PRUNE, write_run

from hf_compress.metrics import load_metric
from hf_compress.report.evaluate_records import evaluate_records, save_evaluate_records
from hf_compress.report.runs import read_runs


@pytest.fixture
def records(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"prune-{seed}", PRUNE, seed=seed, name="prune")
    write_run(tmp_path / "int8", PRUNE, INT8, name="int8")
    return read_runs([tmp_path])[0]


def test_the_last_stage_of_each_recipe_over_its_seeds(records):
    found = evaluate_records(records)
    assert list(found) == ["int8", "prune"] and found["int8"]["stage"] == "02_quantize"
    values = [0.9, 0.901, 0.902]
    prune = found["prune"]
    assert prune["accuracy"] == pytest.approx(statistics.mean(values))
    assert prune["accuracy_std"] == pytest.approx(statistics.stdev(values))
    assert [one["seed"] for one in prune["by_seed"]] == [0, 1, 2]
    assert [one["accuracy"] for one in prune["by_seed"]] == values
    assert prune["size_ratio"] == 0.5 and prune["seconds_to_here"] == 20 and "accuracy_std" not in found["int8"]


def test_the_metrics_are_named_as_evaluate_names_them(records):
    (name,) = load_metric("accuracy").compute(predictions=[0], references=[0])
    assert name in evaluate_records(records)["int8"]


def test_the_files_have_the_form_of_evaluate_save(records, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    paths = save_evaluate_records(records, folder)
    saved = evaluate.save(tmp_path / "theirs.json", accuracy=0.9)
    theirs, ours = json.loads(saved.read_text()), json.loads(paths[0].read_text())
    assert theirs.keys() <= ours.keys()
    assert ours["_evaluate_version"] == "0.4.6" and ours["_python_version"] == "3.11.7"
    assert ours["_timestamp"].startswith("2026-11-25T10:00")


def test_the_same_runs_give_the_same_bytes_and_no_path(records, tmp_path):
    texts = []
    for name in "ab":
        (tmp_path / name).mkdir()
        texts.append([path.read_bytes() for path in save_evaluate_records(records, tmp_path / name)])
    assert texts[0] == texts[1] and not any(str(tmp_path).encode() in text for text in texts[0])


def test_every_name_gets_a_file_of_its_own_and_none_is_a_run(tmp_path):
    names = ["results", "Results", "../../etc", "a/b", "a b", "", ".", "\ud800", "名", "x" * 300]
    for index, name in enumerate(names):
        write_run(tmp_path / f"{index}", PRUNE, name=name)
    folder = tmp_path / "out"
    folder.mkdir()
    records, problems = read_runs([tmp_path])
    paths = save_evaluate_records(records, folder)
    assert not problems and len({path.name.lower() for path in paths}) == len(names) == len(list(folder.iterdir()))
    assert all(path.parent == folder and path.is_file() for path in paths)
    assert len(read_runs([tmp_path])[0]) == len(names)
