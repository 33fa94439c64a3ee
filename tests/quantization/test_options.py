from __future__ import annotations

import pytest

from hf_compress.errors import RecipeError
from hf_compress.fields import from_mapping
from hf_compress.quantization import OpenVinoOptions
from hf_compress.registry import get_method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "static_int4"}, r"scheme: got 'static_int4'.*'static_int8'"),
        ({"sheme": "none"}, r"sheme: unknown key \(did you mean 'scheme'\?\)"),
        ({"calibration_samples": 0}, r"calibration_samples: got 0; give at least 1"),
        ({"calibration_samples": "300"}, r"calibration_samples: got '300' \(str\)"),
        ({"overflow_fix": "on"}, r"overflow_fix: got 'on'"),
        ({"smooth_quant_alpha": 1.5}, r"smooth_quant_alpha: got 1.5; give a number from 0 to 1"),
        ({"exclude": "classifier"}, r"exclude: got 'classifier'"),
        ({"scheme": "none", "symmetric": True}, r"symmetric: the scheme none does not use it"),
        ({"scheme": "none", "exclude": ["*.fc"]}, r"exclude: the scheme none does not use it"),
        (
            {"scheme": "weight_only_int8", "smooth_quant_alpha": 0.5},
            r"smooth_quant_alpha: the scheme weight_only_int8",
        ),
    ],
)
def test_wrong_options_are_refused_by_name(options, message):
    with pytest.raises(RecipeError, match=message):
        from_mapping(OpenVinoOptions, options, "steps.0.quantize")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scheme": "none"},
        {"scheme": "weight_only_int8", "exclude": ["classifier"]},
        {"smooth_quant_alpha": -1},
        {"smooth_quant_alpha": 0.95, "overflow_fix": "disable", "symmetric": True, "fast_bias_correction": False},
    ],
)
def test_right_options_are_read(options):
    read = from_mapping(OpenVinoOptions, options, "steps.0.quantize")
    assert {name: getattr(read, name) for name in options} == options


def test_options_refuse_wrong_values_in_python_too():
    with pytest.raises(RecipeError, match="scheme: got 'int8'"):
        OpenVinoOptions(scheme="int8")


def test_the_backend_is_registered():
    method = get_method("quantize", "openvino")
    assert method.options is OpenVinoOptions
    assert not method.trains and not method.targets
    with pytest.raises(RecipeError, match="did you mean 'openvino'"):
        get_method("quantize", "openvin")
