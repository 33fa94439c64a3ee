"""Static int8 of a pretrained network on all of CIFAR-10."""

from __future__ import annotations

import os

import pytest

from hf_compress.models import load_model
from hf_compress.quantization import load_exported, quantize
from hf_compress.tasks import TaskSpec, load_task


pytest.importorskip("optimum.intel")


@pytest.mark.real
@pytest.mark.skipif("HF_COMPRESS_DATA" not in os.environ, reason="HF_COMPRESS_DATA is not set")
def test_resnet20_keeps_its_accuracy_in_int8(tmp_path):
    task = load_task(TaskSpec(name="cifar10"))
    model, processor = load_model("resnet20_cifar10", task=task)
    data = task.prepare(processor)
    report = quantize(model, data=data, output_dir=tmp_path / "int8")
    assert report.notes["calibration"]["samples"] == 300
    assert report.notes["quantization"]["integer_compute"] == {"Convolution": 19, "MatMul": 1}
    exported, _ = load_exported(tmp_path / "int8")
    right = 0
    for _, batch in data.evaluation["test"].batches(500):
        right += int((exported(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["labels"]).sum())
    assert len(data.evaluation["test"]) == 10_000
    assert right / 100 == pytest.approx(91.73, abs=0.2)
