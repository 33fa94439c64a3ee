from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification

from hf_compress.errors import CompressionError, RecipeError, UnsupportedModelError
from hf_compress.quantization import quantize
from hf_compress.quantization.openvino import resolve_overflow_fix

from .models import dataset, images, make_bert, make_small_bert, make_small_resnet, texts


pytest.importorskip("optimum.intel")


def noise(logits: np.ndarray, reference: np.ndarray) -> float:
    """Squared error as a part of the variance of the logits over examples; 1 is what a constant would have."""
    return float(((logits - reference) ** 2).mean() / reference.var(axis=0).mean())


@pytest.mark.parametrize("name", ["bert", "resnet"])
@pytest.mark.parametrize(
    # these networks are random and narrow, so that int8 costs them far more than it costs a trained one
    ("scheme", "bound"),
    [("static_int8", 0.2), ("weight_only_int8", 0.005), ("none", 1e-9)],
)
def test_logits_stay_near_the_torch_model(exports, name, scheme, bound):
    export = exports[name, scheme]
    found = noise(export.logits, export.reference)
    assert found < bound
    assert (found > 1e-9) == (scheme != "none")  # nothing is called int8 that is not
    with torch.no_grad():  # the torch model is left as it was
        np.testing.assert_array_equal(export.model(**export.batch).logits.numpy(), export.reference)


def test_the_report_says_what_became_int8(exports):
    export = exports["resnet", "static_int8"]
    report = export.report
    json.dumps(report.to_dict(), allow_nan=False)
    layers = report.notes["layers"]
    convolutions = {name for name, module in export.model.named_modules() if type(module) is torch.nn.Conv2d}
    assert "timm_model.layer2.1.conv2.up" in convolutions
    assert layers.keys() == convolutions | {"timm_model.fc"}
    assert all(spec["bits"] == spec["activation_bits"] == 8 for spec in layers.values())
    counts = {"Convolution": len(convolutions), "MatMul": 1}
    assert report.notes["quantization"] == {
        "scheme": "static_int8",
        "layers": len(layers),
        "integer_weights": counts,
        "integer_compute": counts,
        "weight_type": "int8",
    }
    assert report.notes["calibration"]["samples"] == 32
    assert report.notes["calibration"]["rules"] == "convolutional"
    assert report.warnings == []
    assert 0 < report.seconds["calibrate"] < report.seconds["total"]
    saved = json.loads((export.folder / "openvino_config.json").read_text())["quantization_config"]
    assert saved["model_type"] is None and saved["num_samples"] == 32


def test_embeddings_and_both_low_rank_factors_become_int8(exports):
    report = exports["bert", "static_int8"].report
    layers = report.notes["layers"]
    assert layers["bert.embeddings.word_embeddings"] == {"type": "Gather", "bits": 8, "activation_bits": None}
    for name in ("down", "up"):
        spec = layers[f"bert.encoder.layer.0.intermediate.dense.{name}"]
        assert spec == {"type": "MatMul", "bits": 8, "activation_bits": 8}
    assert not any(name.startswith("bert.encoder.layer.1.attention") for name in layers)
    assert report.notes["calibration"]["rules"] == "transformer"


def test_other_schemes_say_what_they_are(exports):
    for name in ("bert", "resnet"):
        weights = exports[name, "weight_only_int8"].report.notes
        plain = exports[name, "none"].report.notes
        assert {spec["bits"] for spec in weights["layers"].values()} == {8}
        assert {spec["activation_bits"] for spec in weights["layers"].values()} <= {32, None}
        assert {spec["bits"] for spec in plain["layers"].values()} == {32}
        assert weights["quantization"]["integer_compute"] == plain["quantization"]["integer_weights"] == {}
        assert "calibration" not in weights and "calibration" not in plain


def test_excluded_modules_stay_float_and_few_examples_are_a_warning(tmp_path):
    report = quantize(
        make_small_resnet(),
        data=dataset({"pixel_values": images()["pixel_values"][:7]}),
        exclude=["timm_model.conv1", "timm_model.layer3.*"],
        output_dir=tmp_path / "out",
    )
    for name, spec in report.notes["layers"].items():
        bits = 32 if name.startswith(("timm_model.conv1", "timm_model.layer3.")) else 8
        assert spec["bits"] == spec["activation_bits"] == bits, name
    assert report.notes["calibration"]["samples"] == 7
    assert ["7 examples instead of 300" in warning for warning in report.warnings] == [True]


def test_the_same_seed_gives_the_same_model(exports, tmp_path):
    export = exports["bert", "static_int8"]
    options = {"data": dataset(export.batch), "calibration_samples": 32, "overflow_fix": "enable"}
    again = quantize(make_small_bert(), seed=0, output_dir=tmp_path / "again", **options)
    assert again.notes["calibration"] == export.report.notes["calibration"]
    np.testing.assert_array_equal(again.model(**export.batch).logits.numpy(), export.logits)
    other = quantize(make_small_bert(), seed=1, output_dir=tmp_path / "other", **options)
    assert other.notes["calibration"]["fingerprint"] != export.report.notes["calibration"]["fingerprint"]
    assert not np.array_equal(other.model(**export.batch).logits.numpy(), export.logits)


@pytest.mark.parametrize("scheme", ["static_int8", "weight_only_int8", "none"])
@pytest.mark.parametrize(("name", "make"), [("bert", make_small_bert), ("resnet", make_small_resnet)])
def test_an_export_does_not_follow_its_torch_model(exports, name, make, scheme, tmp_path):
    export, model = exports[name, scheme], make()
    options = {"overflow_fix": "enable"} if scheme == "static_int8" else {}
    data = {"data": dataset(export.batch), "calibration_samples": 32}
    report = quantize(model, scheme=scheme, output_dir=tmp_path / "again", **data, **options)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    np.testing.assert_array_equal(report.model(**export.batch).logits.numpy(), export.logits)


def test_attention_is_kept_from_overflow_where_sums_are_narrow():
    old, new, arm = {"avx2", "fma"}, {"avx2", "avx512f", "avx512_vnni"}, set()
    assert resolve_overflow_fix("auto", True, old) == "enable"
    assert {resolve_overflow_fix("auto", True, sets) for sets in (new, arm)} == {"first_layer_only"}
    assert {resolve_overflow_fix("auto", False, sets) for sets in (old, new, arm)} == {"first_layer_only"}
    assert resolve_overflow_fix("disable", True, old) == "disable"


def _token_classifier():
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20)
    return BertForTokenClassification(config).eval()


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (make_bert, {}, CompressionError, "got no data"),
        (make_bert, {"data": []}, CompressionError, "the data set is empty"),
        (make_bert, {"data": [{"pixel_values": 1.0}]}, CompressionError, "the model needs input_ids"),
        (make_bert, {"data": [{"input_ids": [7] * 99}]}, CompressionError, "fails on the calibration examples"),
        (make_bert, {"data": [{"input_ids": [7, 8]}], "exclude": ["*"]}, UnsupportedModelError, "none of the 17"),
        (make_bert, {"scheme": "int8"}, RecipeError, "scheme: got 'int8'"),
        (make_bert, {"scheme": "none", "backend": "onix"}, RecipeError, "allowed are openvino"),
        (make_bert, {"scheme": "none", "calibration_sample": 3}, RecipeError, "did you mean 'calibration_samples'"),
        (make_bert, {"scheme": "weight_only_int8", "exclude": ["bert.encodr.*"]}, RecipeError, "matches no module"),
        (make_bert, {"scheme": "weight_only_int8", "exclude": ["*"]}, UnsupportedModelError, "none of the 17"),
        (_token_classifier, {"scheme": "none"}, UnsupportedModelError, "classifiers of texts"),
        (lambda: object(), {"scheme": "none"}, UnsupportedModelError, "not a torch model"),
    ],
)
def test_what_cannot_be_quantized_is_refused_and_leaves_nothing(make, options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        quantize(make(), output_dir=tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_used_folder_is_refused_before_anything_is_done(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CompressionError, match="exists and is not empty"):
        quantize(make_bert(), scheme="none", output_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_no_usage_statistics_are_sent(tmp_path, monkeypatch):
    backend = pytest.importorskip("openvino_telemetry.backend.backend_ga4")
    sent = []
    monkeypatch.setattr(backend.GA4Backend, "send", lambda self, message: sent.append(message))
    quantize(make_bert(), data=dataset(texts()), calibration_samples=2, output_dir=tmp_path / "out")
    assert sent == []
