from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import hf_compress
from hf_compress.errors import BackendUnavailableError, CompressionError
from hf_compress.measurement import measure, openvino_config, predict

from .architectures import bert, build
from .test_accuracy import ByLength


pytestmark = pytest.mark.usefixtures("own_lock")


@pytest.fixture
def pair():
    """A dense model and a smaller one."""
    dense, small = build("bert"), build("bert")
    layer = small.bert.encoder.layer[0]
    layer.intermediate.dense, layer.output.dense = nn.Linear(32, 16), nn.Linear(16, 32)
    return small.eval(), dense


def test_package_has_the_verb():
    report = hf_compress.measure(bert(), runtimes=())
    assert report.params == sum(parameter.numel() for parameter in bert().parameters())


def test_model_beside_the_dense_one(pair):
    small, dense = pair
    data = ByLength()
    report = measure(small, data, against=dense, batch=2, length=8, threads=1, samples=2)
    assert report.against.params - report.params == 2 * 32 * 48 + 48
    assert report.against.macs - report.macs == 8 * 2 * 32 * 48
    assert report.size_bytes < report.against.size_bytes
    (logits, labels), (reference, _) = predict(small, data), predict(dense, data)
    assert report.metrics["data"]["accuracy"] == (logits.argmax(1) == labels).mean()
    assert report.against.metrics["data"]["accuracy"] == (reference.argmax(1) == labels).mean()
    assert report.agreement == (logits.argmax(1) == reference.argmax(1)).mean()
    assert report.logit_difference == pytest.approx(np.abs(logits - reference).mean())
    assert report.examples == report.against.examples == len(data)
    timed = [row for row in report.latency if row["precision"] == "fp32"]
    assert [(row["role"], row["batch"], row["length"]) for row in timed] == [("stage", 2, 8), ("baseline", 2, 8)]

    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["against"]["macs"] == report.against.macs
    table = str(report)
    lines = {line.split("  ")[0]: line for line in table.splitlines() if line[:1].strip()}
    assert f"{report.macs:,}" in lines["MACs an example"]
    assert f"{report.macs / report.against.macs:.3f}" in lines["MACs an example"]
    assert "accuracy (data)" in lines
    assert "model torch fp32" in lines
    assert "against torch fp32" in lines
    assert len({len(line) for line in table.split("\n\n")[1].splitlines() if "torch fp32" in line}) <= 2


def test_same_model_agrees_with_itself(pair):
    report = measure(pair[1], ByLength(), against=pair[1], runtimes=())
    assert (report.agreement, report.logit_difference) == (1.0, 0.0)
    assert report.latency == []


def test_alone_and_without_data():
    report = measure(build("timm_resnet"), runtimes=())
    assert (report.metrics, report.agreement, report.against, report.examples) == ({}, None, None, None)
    assert "ratio" not in str(report)
    regression = bert(num_labels=1).eval()
    data = ByLength()
    data.labels = torch.linspace(0, 5, len(data))
    report = measure(regression, data, against=regression, runtimes=())
    assert "mean_squared_error" in report.metrics["data"]
    assert report.agreement is None


def test_exported_model(pair, exports, monkeypatch, tmp_path):
    pytest.importorskip("optimum.intel")
    from optimum.intel import OVModelForSequenceClassification

    (small, dense), (_, converted) = pair, exports("bert")
    monkeypatch.setattr("hf_compress.measurement.comparison.to_openvino", lambda *_, **__: converted)
    exported = OVModelForSequenceClassification(
        converted.clone(), config=dense.config, ov_config=openvino_config("f32")
    )
    exported.save_pretrained(tmp_path)
    report = measure(
        exported, ByLength(), against=small, runtimes=("openvino",), length=8, threads=1, samples=1, progress=True
    )
    assert report.params is report.macs is None
    assert report.logit_difference == pytest.approx(
        measure(dense, ByLength(), against=small, runtimes=()).logit_difference, abs=1e-4
    )
    assert (report.precision, report.against.precision) == ("f32", "fp32")
    timed = [(row["role"], row["precision"]) for row in report.latency if "p50" in row and row["precision"] == "f32"]
    assert timed == [("stage", "f32"), ("baseline", "f32")]
    folder = measure(tmp_path, against=dense, runtimes=())
    assert folder.size_bytes == (tmp_path / "openvino_model.bin").stat().st_size
    assert folder.size_bytes == pytest.approx(report.size_bytes, rel=0.05)
    with pytest.raises(CompressionError, match="from_pretrained"):
        measure(tmp_path, ByLength(), runtimes=())


def test_engine_asked_for_must_be_there(without_openvino):
    with pytest.raises(BackendUnavailableError, match="hf_compress\\[openvino\\]"):
        measure(bert(), runtimes=("torch", "openvino"))
