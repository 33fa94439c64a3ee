"""`scripts/check_reload.py` over two real runs: everything comes back, and whatever does not is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer
from safetensors.torch import load_file, save_file
from small_runs import image_recipe, make_text_root, text_recipe

from hf_compress.errors import CompressionError
from hf_compress.reload import compare, compare_predictions, model_folders
from hf_compress.runner import run


SCRIPT = Path(__file__).parents[1] / "scripts" / "check_reload.py"
FINETUNE = {"finetune": {}}
PRUNE = {"method": "magnitude", "target": {"macs": 0.6}}
DISTILL = {"distill": {"teacher": "baseline"}}
SVD = {"factorize": {"method": "svd", "target": {"params": 0.5}}}
INT8 = {"quantize": {"backend": "openvino", "scheme": "static_int8", "calibration_samples": 32}}
INT8_WEIGHTS = {"quantize": {"backend": "openvino", "scheme": "weight_only_int8"}}
IMAGE = ["00_baseline", "01_prune", "02_distill", "03_factorize", "04_quantize", "model"]
TEXT = ["00_baseline", "01_prune", "02_factorize", "03_quantize", "model"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    quick = {"measure": {"batch": 1, "seconds": 0.02}}
    run(image_recipe(root / "image", [FINETUNE, {"prune": PRUNE}, DISTILL, SVD, INT8], **quick))
    pruned = {"prune": {**PRUNE, "target": {"macs": 0.6, "scope": "encoder"}, "distill": {"alpha": 0.5}}}
    data = make_text_root(root / "data")
    run(text_recipe(root / "text", data, [FINETUNE, pruned, SVD, INT8_WEIGHTS], **quick))
    return [root / "image", root / "text"]


def check(*arguments, output: Path, environment: dict | None = None) -> tuple[subprocess.CompletedProcess, dict]:
    """The script's process, and its findings as `{(run, stage): {check: row}}`."""
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments, "--output", output],
        capture_output=True,
        text=True,
        env={**(environment or os.environ), "OMP_NUM_THREADS": "1"},
    )
    assert output.exists(), done.stderr[-3000:]
    found: dict = {}
    for row in json.loads(output.read_text())["rows"]:
        found.setdefault((Path(row["run"]).name, row["stage"]), {})[row["check"]] = row
    return done, found


def test_every_stage_comes_back(runs, tmp_path):
    created = []
    with HubServer() as hub:
        add = hub.add
        hub.add = lambda name, files, kind, private: (created.append((name, private)), add(name, files, kind, private))
        environment = hub.environment(tmp_path / "home")
        done, found = check(*runs, "--hub", "tester", output=tmp_path / "reload.json", environment=environment)
        requests = hub.requests
        assert not hub.repos, "a temporary repository was left"
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert list(found) == [("image", stage) for stage in IMAGE] + [("text", stage) for stage in TEXT]
    for (name, stage), checks in found.items():
        assert list(checks) == ["predictions", "saved again", "hub", "without hf_compress"]
        assert all(row["passed"] for row in checks.values())
        if "quantize" not in stage and stage != "model":  # exported, they may be close
            assert {checks[check]["detail"] for check in ("predictions", "saved again", "hub")} == {"equal"}
        changed = stage.endswith(("_prune", "_distill", "_factorize"))
        alone = checks["without hf_compress"]["detail"]
        assert alone.startswith("refused" if changed else ("equal", "close")), (name, stage)
        # the architecture of the images' network is this package's own
        assert ("architecture" in alone) == (name == "image" and stage in IMAGE[:4])
        assert f"| {name}/{stage} |" in done.stdout
    assert len(created) == len(found) and all(private for _, private in created)
    for name, _ in created:
        assert name.startswith("tester/check-reload-")
        assert f"POST /api/models/{name}/commit/main" in requests
        assert any(request.startswith(f"GET /{name}/resolve/") for request in requests)
    assert "FAILED" not in done.stdout


def edit_config(folder: Path, edit) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_what_does_not_come_back_is_named(runs, tmp_path):
    copy = tmp_path / "altered"
    shutil.copytree(runs[1], copy)
    stages = copy / "stages"
    marked = {"quant_method": "hf_compress", "format_version": 1, "modules": {}, "history": []}
    edit_config(stages / "00_baseline", lambda config: config.update(quantization_config=marked))
    weights = stages / "01_prune" / "model.safetensors"
    tensors = load_file(weights)
    tensors["classifier.bias"][0] += 1e-4
    save_file(tensors, weights, metadata={"format": "pt"})
    edit_config(stages / "02_factorize", lambda config: config.pop("quantization_config"))
    binary = stages / "03_quantize" / "openvino_model.bin"
    binary.write_bytes(bytes(len(binary.read_bytes())))

    shutil.rmtree(copy / "model")

    done, found = check(copy, output=tmp_path / "reload.json")
    assert done.returncode == 1
    failed = {(stage, name) for (_, stage), checks in found.items() for name in checks if not checks[name]["passed"]}
    assert failed == {
        ("00_baseline", "without hf_compress"),  # it says that its structure was changed, and loads all the same
        ("01_prune", "predictions"),
        ("02_factorize", "predictions"),
        ("03_quantize", "predictions"),
        ("model", "predictions"),
    }
    lines = {line.split(" | ")[0]: line for line in done.stdout.splitlines()}
    assert {name for name, line in lines.items() if "FAILED" in line} == {f"| altered/{stage}" for stage in TEXT}
    assert "although its structure was changed" in found["altered", "00_baseline"]["without hf_compress"]["detail"]
    assert "other last bits" in found["altered", "01_prune"]["predictions"]["detail"]
    assert found["altered", "02_factorize"]["predictions"]["detail"].startswith("not loaded")
    assert "model is not there" in found["altered", "model"]["predictions"]["detail"]


def test_close_is_enough_for_exported_models_only_and_is_said():
    assert compare([[1.0, float("nan")]], [[1.0, None]], exact=True) == (True, "equal")
    for logits, passed in (([[1.0, 2.001]], True), ([[1.0, 2.01]], False), ([[1.0]], False), ([[1.0, None]], False)):
        finding = compare(logits, [[1.0, 2.0]], exact=False)
        assert finding.passed == passed and finding.detail != "equal"
        assert not compare(logits, [[1.0, 2.0]], exact=True).passed


def test_predictions_with_other_last_bits():
    def evaluation(accuracy: float, sha256: str, first: float) -> dict:
        kept = {"examples": 2, "sha256": sha256, "first": [[first, -1.0]]}
        return {"metrics": {"accuracy": accuracy}, "predictions": {"test": kept}}

    record = evaluation(0.5, "a", 1.0)
    assert compare_predictions(evaluation(0.5, "a", 1.0), record, exact=True) == (True, "equal")
    for found in (evaluation(0.5, "b", 1.0), evaluation(0.5, "b", 1.0001)):
        assert not compare_predictions(found, record, exact=True).passed
        finding = compare_predictions(found, record, exact=False)
        assert finding.passed and "other last bits; metrics equal" in finding.detail
    for found in (evaluation(0.75, "b", 1.0), evaluation(0.5, "b", 1.1)):
        assert not compare_predictions(found, record, exact=False).passed
    for accuracy, words in ((0.5, "metrics equal"), (0.75, "instead of")):  # of a run that kept no predictions
        finding = compare_predictions(record, {"metrics": {"accuracy": accuracy}}, exact=False)
        assert not finding.passed and "no predictions" in finding.detail and words in finding.detail


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(CompressionError, match=r"results\.json"):
        model_folders(tmp_path)
