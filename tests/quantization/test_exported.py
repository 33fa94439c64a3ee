from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_compress.errors import CompressionError, NotFoundError
from hf_compress.measurement import arithmetic, folder_size
from hf_compress.quantization import is_exported, load_exported, quantize, save_exported

from .models import make_bert, texts


pytest.importorskip("optimum.intel")

FRESH = Path(__file__).with_name("fresh_process.py")


def test_a_process_without_this_package_reloads_every_export(exports, tmp_path):
    for (name, _), export in exports.items():
        np.savez(tmp_path / f"{name}.npz", **{key: value.numpy() for key, value in export.batch.items()})
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "image.png")
    jobs = [(str(export.folder), str(tmp_path / f"{name}.npz")) for (name, _), export in exports.items()]
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", str(FRESH), json.dumps(jobs), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for export in exports.values():
        name = export.folder.name
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), export.logits, err_msg=name)
    labels = json.loads((tmp_path / "labels.json").read_text())
    assert labels["bert-static_int8"] == {"0": "no", "1": "maybe", "2": "yes"}
    assert labels["resnet-static_int8"]["7"] == "thing 7"
    assert labels["pipelines"][0].startswith("thing ") and labels["pipelines"][1] in ("no", "maybe", "yes")


def test_the_folder_is_in_optimum_s_layout(exports):
    folder = exports["bert", "static_int8"].folder
    names = {path.name for path in folder.iterdir()}
    assert {
        "openvino_model.xml",
        "openvino_model.bin",
        "config.json",
        "openvino_config.json",
        "tokenizer.json",
    } <= names
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert not any(name.endswith((".safetensors", ".partial", ".pt")) for name in names)
    assert is_exported(folder) and not is_exported(folder.parent)


def test_int8_is_a_fourth_of_float32(exports):
    sizes = {key: folder_size(export.folder) for key, export in exports.items()}
    for name, slack in (("bert", 1.4), ("resnet", 1.1)):  # what is not a matrix stays float32
        parameters = sum(parameter.numel() for parameter in exports[name, "none"].model.parameters())
        assert sizes[name, "none"] == pytest.approx(4 * parameters, rel=0.05)
        assert parameters < sizes[name, "static_int8"] < slack * parameters
        assert parameters < sizes[name, "weight_only_int8"] < slack * parameters


@pytest.mark.parametrize("key", [("bert", "static_int8"), ("resnet", "none")])
def test_load_exported_gives_model_and_processor(exports, key):
    export = exports[key]
    model, processor = load_exported(export.folder)
    assert model.request is None  # compiled by the first call
    np.testing.assert_array_equal(model(**export.batch).logits.numpy(), export.logits)
    if key[0] == "bert":
        assert processor("word3 word4")["input_ids"] == [2, 8, 9, 3]
    else:
        assert processor.data_config["input_size"] == (3, 32, 32)


def test_saving_a_reloaded_export_again_changes_nothing(exports, tmp_path):
    export = exports["resnet", "static_int8"]
    model, processor = load_exported(export.folder)
    save_exported(model, tmp_path / "again", processor)
    again, _ = load_exported(tmp_path / "again")
    np.testing.assert_array_equal(again(**export.batch).logits.numpy(), export.logits)
    assert again.config.id2label[7] == "thing 7"


def test_precision_and_threads_are_what_is_asked_for(exports):
    model, _ = load_exported(exports["bert", "none"].folder, threads=1)
    model.compile()
    assert model.request.get_property("INFERENCE_NUM_THREADS") == 1
    assert arithmetic(model) == {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    model, _ = load_exported(exports["bert", "none"].folder, precision="bf16")
    assert model.ov_config["INFERENCE_PRECISION_HINT"] == "bf16"
    with pytest.raises(CompressionError, match="precision: got 'fp16' for OpenVINO; allowed are f32"):
        load_exported(exports["bert", "none"].folder, precision="fp16")


@pytest.mark.parametrize("name", ["openvino_model.xml", "openvino_model.bin", "config.json"])
def test_damaged_and_unwritable_files_are_named(exports, name, tmp_path):
    folder = exports["bert", "none"].folder
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    os.truncate(damaged / name, (damaged / name).stat().st_size // 2)
    with pytest.raises(CompressionError, match=f"{damaged}: the exported model cannot be read"):
        load_exported(damaged)
    model, _ = load_exported(folder)
    full = tmp_path / "full"
    full.mkdir()
    (full / name).symlink_to("/dev/full")
    # the system says why for a file of Python's, OpenVINO does not
    told = "its disk is full" if name == "config.json" else "the exported model cannot be written"
    with pytest.raises(CompressionError, match=f"{full}: {told}"):
        save_exported(model, full)


def test_a_disk_that_fills_up_leaves_no_folder(tmp_path, monkeypatch):
    from optimum.intel import OVModelForSequenceClassification

    def fill(self, folder):
        (Path(folder) / "openvino_model.xml").write_text("<net")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(OVModelForSequenceClassification, "save_pretrained", fill)
    with pytest.raises(CompressionError, match="No space left on device"):
        quantize(make_bert(), scheme="none", output_dir=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_an_export_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match="openvino_model.xml"):
        load_exported(tmp_path)


def test_a_bfloat16_model_is_exported_in_float32(tmp_path):
    model = make_bert().to(torch.bfloat16)
    report = quantize(model, scheme="none", output_dir=tmp_path / "out")
    with torch.no_grad():
        expected = model.float()(**texts()).logits.numpy()
    np.testing.assert_allclose(report.model(**texts()).logits.numpy(), expected, atol=1e-4)
    assert json.loads((tmp_path / "out" / "config.json").read_text()).get("dtype", "float32") == "float32"
