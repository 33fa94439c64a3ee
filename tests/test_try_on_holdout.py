from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from small_runs import image_recipe

from hf_compress.tasks.task import TaskData


SCRIPT = Path(__file__).parents[1] / "scripts" / "try_on_holdout.py"
STEPS = [
    {"prune": {"method": "fisher", "target": {"macs": 0.7}, "samples": 16, "score_samples": 16, "probe_samples": 8}},
    {"distill": {"alpha": 1.0}},
    {"quantize": {"calibration_samples": 8}},
]


def tried(tmp_path, monkeypatch, steps):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(image_recipe(tmp_path / "out", steps)))
    monkeypatch.setattr(sys, "argv", ["try_on_holdout.py", str(path), "seed=1"])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_every_step_is_judged_by_the_holdout_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        TaskData, "evaluation", property(lambda self: pytest.fail("looked at"), lambda *_: None), False
    )
    tried(tmp_path, monkeypatch, STEPS)
    dense, *lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"step"')]
    assert dense["step"] == "dense" and dense["divergence"] == 0
    assert [line["step"] for line in lines] == ["0: prune/fisher", "1: distill/logits", "2: quantize/openvino"]
    assert lines[0]["achieved"] <= 0.7 and all(line["divergence"] > 0 and "accuracy" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_makes_its_dense_model_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        tried(tmp_path, monkeypatch, [{"finetune": {}}])
    assert "starts from the fine-tuned model" in capsys.readouterr().err
