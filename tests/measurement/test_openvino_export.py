from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hf_compress.errors import BackendUnavailableError, UnsupportedModelError
from hf_compress.measurement import openvino_config, to_openvino
from hf_compress.measurement.inputs import example_inputs

from .architectures import batch_for, bert


openvino = pytest.importorskip("openvino")


def logits_of(exported, inputs):
    compiled = openvino.compile_model(exported, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled({name: value.numpy() for name, value in inputs.items()})["logits"])


def logits_of_torch(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "timm_resnet", "timm_vit"])
def test_logits_are_those_of_torch_at_other_shapes(exports, name):
    model, exported = exports(name)
    assert [port.get_any_name() for port in exported.inputs] == list(example_inputs(model))
    assert all(len(port.get_names()) == 1 for port in (*exported.inputs, *exported.outputs))
    assert [port.get_any_name() for port in exported.outputs] == ["logits"]
    compiled = openvino.compile_model(exported, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch, length in ((1, 5), (3, 20), (6, 64)):
        inputs = batch_for(model, batch, length)
        expected = logits_of_torch(model, inputs)
        if "attention_mask" in inputs and batch > 1:  # the comparison would see a lost mask
            unmasked = {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}
            assert (logits_of_torch(model, unmasked) - expected).abs().max() > 1e-3
        found = torch.from_numpy(compiled({key: value.numpy() for key, value in inputs.items()})["logits"])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert", "timm_resnet"])
def test_optimum_takes_the_result(exports, name, tmp_path):
    from optimum.intel import OVModelForImageClassification, OVModelForSequenceClassification

    model, exported = exports(name)
    kind = OVModelForSequenceClassification if name == "bert" else OVModelForImageClassification
    kind(exported.clone(), config=model.config).save_pretrained(tmp_path)
    inputs = batch_for(model, 3, 9)
    loaded = kind.from_pretrained(tmp_path, ov_config=openvino_config("f32"))
    torch.testing.assert_close(loaded(**inputs).logits, logits_of_torch(model, inputs), atol=1e-4, rtol=1e-4)


def test_result_does_not_follow_later_changes_of_the_weights(exports):
    model, exported = exports("bert")
    inputs = batch_for(model, 2, 8)
    expected = logits_of_torch(model, inputs)
    originals = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert (logits_of_torch(model, inputs) - expected).abs().max() > 1e-3
    torch.testing.assert_close(logits_of(exported, inputs), expected, atol=1e-4, rtol=1e-4)
    model.load_state_dict(originals)


def test_model_without_logits_is_refused():
    with pytest.raises(UnsupportedModelError, match="logits"):
        to_openvino(bert().base_model)


def test_missing_engine_names_the_extra(without_openvino):
    with pytest.raises(BackendUnavailableError, match=r"pip install hf_compress\[openvino\]"):
        to_openvino(bert())


ALONE = """
import os
import torch
from openvino_telemetry.utils.sender import TelemetrySender
sent = []
TelemetrySender.send = lambda self, backend, message: sent.append(message)
import hf_compress as hc
from hf_compress.measurement import to_openvino
model, _ = hc.load_model("hf_compress/resnet20_cifar10")
to_openvino(model)
assert sent == [] and "CI" not in os.environ, sent
"""


def test_no_usage_statistics_are_sent(tmp_path):
    """In a process of its own: what is decided at its first conversion holds to its end."""
    pytest.importorskip("openvino_telemetry.utils.sender")
    variables = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", ALONE], check=True, env=variables)
