from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hub_server import hub  # noqa: F401  (a fixture)
from small_runs import image_recipe

from hf_compress.errors import CompressionError
from hf_compress.publish import push_run
from hf_compress.runner import run


SVD = {"factorize": {"method": "svd", "target": {"params": 0.6}}}
INT8 = {"quantize": {"backend": "openvino", "scheme": "static_int8", "calibration_samples": 32}}

PUSH = """
import json, sys
from hf_compress.cli import main
recipe, repo_id = sys.argv[1:]
assert main(["run", recipe, f"hub.repo_id={repo_id}", "--push_to_hub"]) == 0
"""
LOAD_TORCH = """
import sys, torch, hf_compress
from transformers import AutoModelForImageClassification
name, local = sys.argv[1:]
batch = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)}
with torch.no_grad():
    logits = [AutoModelForImageClassification.from_pretrained(where)(**batch).logits for where in (name, local)]
assert torch.equal(*logits)
"""
LOAD_EXPORTED = """
import sys, torch
from optimum.intel import OVModelForImageClassification
name, local = sys.argv[1:]
batch = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)}
logits = [OVModelForImageClassification.from_pretrained(where)(**batch).logits for where in (name, local)]
assert torch.equal(*logits)
assert "hf_compress" not in sys.modules
"""


def python(code: str, *arguments, environment: dict) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "0", **environment, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("steps", "load"), [([SVD], LOAD_TORCH), ([INT8], LOAD_EXPORTED)], ids=["torch", "openvino"])
def test_a_pushed_run_comes_back_from_the_hub(tmp_path, hub, steps, load):  # noqa: F811
    recipe = image_recipe(tmp_path / "run", steps)
    run(recipe)  # finished here, so that the child only pushes
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    environment = hub.environment(tmp_path / "home")
    python(PUSH, tmp_path / "recipe.yaml", "tester/small", environment=environment)
    files = set(hub.repos["models", "tester/small"].files)
    assert {"README.md", "config.json", "results.json", "results.md", "recipe.yaml", "journal.jsonl"} <= files
    assert any(name.startswith("plots/") for name in files)
    assert not {"report.json", "measurement.json"} & files
    card = hub.repos["models", "tester/small"].files["README.md"]
    assert b"tester/small" in card and b"model-index" in card
    python(load, "tester/small", tmp_path / "run" / "model", environment=hub.environment(tmp_path / "fresh"))


def test_an_unfinished_run_is_not_pushed(tmp_path):
    with pytest.raises(CompressionError, match=r"results\.json"):
        push_run(tmp_path, "tester/small")
