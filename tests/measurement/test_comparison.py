from __future__ import annotations

import importlib

import pytest
import torch

from hf_compress.errors import CompressionError, NotFoundError
from hf_compress.measurement import (
    arithmetic,
    example_inputs,
    has_fast_bf16,
    latency_rows,
    measure,
    openvino_callable,
    openvino_config,
    torch_callable,
)
from hf_compress.measurement.runtimes import ARITHMETIC, stored_bytes, stored_precision

from .architectures import batch_for, bert, build
from .test_accuracy import ByLength


openvino = pytest.importorskip("openvino")
comparison = importlib.import_module("hf_compress.measurement.comparison")
pytestmark = pytest.mark.usefixtures("own_lock")


@pytest.fixture
def exported(exports):
    return exports("bert")[1]


@pytest.fixture(scope="module")
def exported_int8(exports):
    """Integer weights, as a quantizer would leave them."""
    import nncf

    return nncf.compress_weights(exports("bert")[1].clone(), mode=nncf.CompressWeightsMode.INT8_SYM)


def snapshot(model):
    return (
        [module.training for module in model.modules()],
        {name: (tensor.clone(), tensor.stride(), tensor.dtype) for name, tensor in model.state_dict().items()},
    )


def unchanged(model, before):
    flags, state = before
    assert [module.training for module in model.modules()] == flags
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name][0])
        assert (tensor.stride(), tensor.dtype) == state[name][1:]


@pytest.mark.parametrize("name", ["bert", "timm_resnet"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_torch_callable_computes_the_same_and_leaves_the_model_alone(name, precision):
    model = build(name).train()
    before = snapshot(model)
    inputs = batch_for(model, 3, 8)
    candidate = torch_callable(model, precision, threads=1)
    output = candidate(candidate.prepare({**inputs, "labels": torch.zeros(3)})).logits
    unchanged(model, before)
    expected = model.eval()(**inputs).logits
    assert output.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    scale = expected.abs().max().item()
    torch.testing.assert_close(output.float(), expected, atol=(1e-5 if precision == "fp32" else 0.1) * scale, rtol=0)


def test_weights_are_shared_where_nothing_has_to_change():
    model = build("bert")
    same = torch_callable(model).model
    assert all(a is b for a, b in zip(model.parameters(), same.parameters(), strict=True))
    half = torch_callable(model, "bf16").model
    assert not any(a is b for a, b in zip(model.parameters(), half.parameters(), strict=True))
    assert torch_callable(build("bert").bfloat16(), "fp32").dtype == torch.float32
    kernels = [weight for weight in torch_callable(build("timm_resnet")).model.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)


def test_openvino_callable_takes_what_optimum_has(exported, tmp_path):
    model = build("bert")
    inputs = batch_for(model, 3, 8)
    expected = model(**inputs).logits
    openvino.save_model(exported, tmp_path / "openvino_model.xml", compress_to_fp16=False)
    for source in (exported, str(tmp_path), tmp_path):
        candidate = openvino_callable(source, threads=1)
        output = candidate(candidate.prepare(inputs))["logits"]
        torch.testing.assert_close(torch.from_numpy(output.copy()), expected, atol=1e-4, rtol=1e-4)
    fixed = openvino_callable(exported, threads=1, static_for=inputs)
    assert fixed.compiled.inputs[0].partial_shape.is_static
    assert exported.inputs[0].partial_shape.is_dynamic
    torch.testing.assert_close(
        torch.from_numpy(fixed(fixed.prepare(inputs))["logits"]), expected, atol=1e-4, rtol=1e-4
    )
    with pytest.raises(CompressionError, match="token_type_ids"):
        candidate.prepare({name: inputs[name] for name in ("input_ids", "attention_mask")})
    with pytest.raises(NotFoundError, match="openvino_model.xml"):
        openvino_callable(tmp_path / "nowhere")
    with pytest.raises(CompressionError, match="to_openvino"):
        openvino_callable(model)


@pytest.mark.parametrize("fast", [True, False])
def test_arithmetic_beside_int8_follows_the_cpu(monkeypatch, fast):
    monkeypatch.setattr("hf_compress.measurement.runtimes.has_fast_bf16", lambda: fast)
    assert openvino_config("int8", 2)["INFERENCE_PRECISION_HINT"] == ("bf16" if fast else "f32")
    assert "DYNAMIC_QUANTIZATION_GROUP_SIZE" not in openvino_config("int8", 2)  # OpenVINO's own choice
    assert openvino_config("f32", 2) == {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "INFERENCE_NUM_THREADS": 2,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    for function, model in ((torch_callable, bert()), (openvino_callable, None)):
        with pytest.raises(CompressionError, match="precision"):
            function(model, "fp16")


def test_stored_precision_and_bytes(exported, exported_int8):
    assert (stored_precision(exported), stored_precision(exported_int8)) == ("f32", "int8")
    weights = sum(parameter.numel() * 4 for parameter in build("bert").parameters())
    assert 0.95 * weights <= stored_bytes(exported) <= 1.05 * weights
    assert stored_bytes(exported_int8) < 0.6 * weights


def test_rows_of_a_torch_stage_beside_the_baseline(monkeypatch, exported):
    monkeypatch.setattr(comparison, "has_fast_bf16", lambda: False)
    monkeypatch.setattr(comparison, "to_openvino", lambda model, share_weights: exported)  # saves two conversions
    stage, baseline = bert(intermediate_size=16), bert()
    before = snapshot(stage), snapshot(baseline)
    rows = latency_rows(stage, baseline, batch=2, length=8, threads=1, samples=2)
    unchanged(stage, before[0])
    unchanged(baseline, before[1])
    settings = [(row["role"], row["runtime"], row["precision"]) for row in rows]
    assert settings == [
        (role, runtime, precision)
        for role in ("stage", "baseline")
        for runtime, precision in (("torch", "fp32"), ("torch", "bf16"), ("openvino", "f32"), ("openvino", "bf16"))
    ]
    for row in rows:
        assert (row["batch"], row["length"], row["threads"]) == (2, 8, 1)
        if row["precision"] == "bf16":
            assert "emulates bfloat16" in row["skipped"]
            assert "p50" not in row
        else:
            assert 0 < row["p50"] <= row["p90"]
            assert row["samples"] == 2
            assert "skipped" not in row


def test_rows_of_an_int8_stage_stand_beside_the_dense_ones(exported, exported_int8, monkeypatch):
    monkeypatch.setattr(comparison, "has_fast_bf16", lambda: True)
    monkeypatch.setattr(comparison, "to_openvino", lambda model, share_weights: exported)
    rows = latency_rows(exported_int8, build("bert"), batch=1, length=8, threads=1, samples=1)
    assert [(row["role"], row["runtime"], row["precision"]) for row in rows] == [
        ("stage", "openvino", "int8"),
        ("baseline", "torch", "fp32"),
        ("baseline", "torch", "bf16"),
        ("baseline", "openvino", "f32"),
        ("baseline", "openvino", "bf16"),
    ]
    assert all(row["p50"] > 0 for row in rows)  # emulated, where the CPU has no bf16
    assert [row.get("rest") for row in rows] == ["bf16" if has_fast_bf16() else "f32", None, None, None, None]


@pytest.mark.parametrize("given", ["f32", "bf16", None])
def test_an_int8_model_is_timed_as_it_is_evaluated(exported_int8, monkeypatch, given):
    optimum = pytest.importorskip("optimum.intel")
    asked = {} if given is None else {"INFERENCE_PRECISION_HINT": given, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "64"}
    model = optimum.OVModelForSequenceClassification(
        exported_int8.clone(), config=build("bert").config, ov_config=dict(asked)
    )
    compiled = []
    make = comparison.openvino_callable

    def record(*args, **kwargs):
        compiled.append(make(*args, **kwargs))
        return compiled[-1]

    monkeypatch.setattr(comparison, "openvino_callable", record)
    report = measure(model, ByLength(), runtimes=("openvino",), length=8, threads=1, samples=1)
    (row,) = report.latency
    for name in ARITHMETIC:
        assert compiled[0].compiled.get_property(name) == model.request.get_property(name)
    assert (row["precision"], row["rest"]) == ("int8", arithmetic(model)["INFERENCE_PRECISION_HINT"])
    assert report.precision == f"int8 (rest {row['rest']})"
    assert str(report).count(report.precision) == 2  # of the metrics and of the time
    if given == "f32" or (given == "bf16" and has_fast_bf16()):  # elsewhere OpenVINO may take f32 instead of bf16
        assert row["rest"] == given


def test_images_have_no_length_and_rows_can_be_chosen():
    chosen = {"runtimes": ("torch",), "precisions": ("fp32",)}
    rows = latency_rows(build("timm_resnet"), batch=(3, 1), threads=1, samples=1, **chosen)
    assert [(row["runtime"], row["precision"], row["batch"], row["length"]) for row in rows] == [
        ("torch", "fp32", 3, None),
        ("torch", "fp32", 1, None),
    ]
    with pytest.raises(CompressionError, match="runtimes: got 'onnx'"):
        latency_rows(build("bert"), runtimes=("onnx",))


def test_missing_engine_is_a_reason_in_the_record(without_openvino):
    rows = latency_rows(bert(), batch=1, length=8, threads=1, samples=1, precisions=("fp32", "f32"))
    assert [("p50" in row, row.get("skipped")) for row in rows][0] == (True, None)
    assert "pip install hf_compress[openvino]" in rows[1]["skipped"]


def test_exported_model_alone_needs_inputs(exported):
    with pytest.raises(CompressionError, match="inputs"):
        latency_rows(exported, threads=1)
    inputs = example_inputs(build("bert"), 2, 8)
    (row,) = latency_rows(exported, threads=1, inputs=inputs, samples=1, precisions=("f32",))
    assert (row["batch"], row["length"]) == (2, 8)
