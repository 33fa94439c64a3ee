"""Runs in processes of their own: two that share one, and one that is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import make_text_root, text_recipe

from hf_compress.journal import JOURNAL, Journal


PRUNE = {"prune": {"method": "magnitude", "target": {"macs": 0.6}}}
INT8 = {"quantize": {"backend": "openvino", "scheme": "static_int8", "calibration_samples": 32}}


@pytest.fixture(scope="module")
def text_root(tmp_path_factory):
    return make_text_root(tmp_path_factory.mktemp("text"))


def test_two_processes_give_the_results_of_one(tmp_path, text_root):
    pruned = {"prune": {**PRUNE["prune"], "distill": {"alpha": 0.5}}}
    results = {}
    for processes in (1, 2):
        recipe = text_recipe(tmp_path / f"run{processes}", text_root, [{"finetune": {}}, pruned])
        recipe["training"]["per_device_train_batch_size"] = 32 // processes
        recipe["training"]["bf16"] = False  # in which another split of a batch is another rounding
        path = tmp_path / f"recipe{processes}.yaml"
        path.write_text(json.dumps(recipe))
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
        ]
        script = Path(__file__).parents[1] / "scripts" / "compress.py"
        done = subprocess.run(
            [*command, str(script), str(path)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("01_prune") == 1, "only rank 0 prints"
        results[processes] = json.loads((tmp_path / f"run{processes}" / "results.json").read_text())["stages"]
    for one, two in zip(results[1], results[2], strict=True):
        assert [entry["loss"] for entry in two["epochs"]] == pytest.approx(
            [e["loss"] for e in one["epochs"]], abs=1e-4
        )
        assert two["metrics"] == one["metrics"]
        assert (two["params"], two["macs"], two["layers"]) == (one["params"], one["macs"], one["layers"])


def test_a_killed_run_finishes_with_the_predictions_of_a_whole_one(tmp_path, text_root):
    pruned = {"prune": {**PRUNE["prune"], "distill": {"alpha": 0.5}}}
    recipe = text_recipe(tmp_path, text_root, [{"finetune": {}}, pruned, INT8])
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    points = [
        ("train", "00_baseline", 4),
        ("surgery", "01_prune", 1),
        ("save", "01_prune", 1),  # of the cut
        ("written", "01_prune", 1),
        ("train", "01_prune", 4),
        ("save", "01_prune", 1),  # of the trained model
        ("written", "01_prune", 1),
        ("surgery", "02_quantize", 1),
        ("measure", "02_quantize", 1),
        ("rename", "02_quantize", 1),
    ]
    driver = Path(__file__).with_name("kill_driver.py")
    command = [sys.executable, str(driver), str(tmp_path / "recipe.json"), str(tmp_path), json.dumps(points)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(found["whole"]) == 3 and found["killed"] == found["whole"]
    train = [
        event for event in Journal(tmp_path / "killed" / JOURNAL).events("train") if event["stage"] == "00_baseline"
    ]
    assert [event["status"] for event in train] == ["started", "saved", "started", "saved", "done"]
    results = json.loads((tmp_path / "killed" / "results.json").read_text())
    seconds = train[1]["wall_seconds"] + train[4]["wall_seconds"]
    assert results["stages"][0]["seconds"]["train"] == pytest.approx(seconds, abs=2e-3)
