"""The backend `quantize/openvino`: static int8, int8 weights, or plain export, through Optimum."""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import nn

from ..errors import CompressionError, RecipeError, UnsupportedModelError
from ..measurement import instruction_sets, name_convolutions, to_openvino
from ..registry import StepContext, register_method
from .calibration import Calibration
from .census import layers, summary
from .engine import quiet_engine, reason_of, require
from .exported import EXTRA, OPTIMUM, wrap


if TYPE_CHECKING:
    import openvino
    from optimum.intel.openvino.modeling import OVModel

SCHEMES = ("static_int8", "weight_only_int8", "none")
OVERFLOW_FIXES = ("auto", "enable", "first_layer_only", "disable")
# options that one scheme alone understands; "exclude" is for both that quantize
_STATIC_ONLY = ("overflow_fix", "symmetric", "fast_bias_correction", "smooth_quant_alpha")
WIDE_SUMS = {"avx_vnni", "avx512_vnni", "amx_int8"}  # instructions that add int8 products in 32 bits
_DTYPES = {"i64": np.dtype("int64"), "i32": np.dtype("int32"), "f32": np.dtype("float32")}


@dataclass
class OpenVinoOptions:
    """Options of `quantize/openvino`.

    Args:
        scheme (`str`, *optional*, defaults to `"static_int8"`): int8 weights and activations, with ranges from
            calibration examples ("static_int8"); int8 weights alone, which needs no data and makes the file small
            ("weight_only_int8"; where the CPU has VNNI, OpenVINO makes the inputs int8 on the fly); float32
            weights, to run in f32 or bf16 ("none").
        calibration_samples (`int`, *optional*, defaults to 300): training examples for static int8.
        exclude (`list[str]`, *optional*): patterns (`*`, `?`) for names of modules that stay in float, with all in
            them.
        overflow_fix (`str`, *optional*, defaults to `"auto"`): where weights use only half of their range: in every
            layer ("enable"), in the first one, whose inputs are large ("first_layer_only"), nowhere ("disable"). A CPU
            without VNNI adds products in 16 bits, which overflow: there "disable" costs ResNet-20 one point of
            accuracy, and "first_layer_only" none. "auto" is "first_layer_only", but "enable" for a network with
            attention on such a CPU, where overflow makes half of the error. Say "enable" for one that is quantized
            on a newer CPU and served on an older one.
        symmetric (`bool`, *optional*, defaults to `False`): activations without a zero point.
        fast_bias_correction (`bool`, *optional*, defaults to `True`): correct biases layer by layer from the float
            model's statistics; `False` runs the quantized model for it, which takes long and is seldom better.
        smooth_quant_alpha (`float`, *optional*): in [0, 1], how far the range of activations moves into the weights
            before a matrix product of a transformer; -1 turns it off. Optimum's default otherwise.
    """

    scheme: Literal["static_int8", "weight_only_int8", "none"] = "static_int8"
    calibration_samples: int = 300
    exclude: list[str] = field(default_factory=list)
    overflow_fix: Literal["auto", "enable", "first_layer_only", "disable"] = "auto"
    symmetric: bool = False
    fast_bias_correction: bool = True
    smooth_quant_alpha: float | None = None

    def __post_init__(self):
        for name, allowed in (("scheme", SCHEMES), ("overflow_fix", OVERFLOW_FIXES)):
            if getattr(self, name) not in allowed:
                raise RecipeError(f"{name}: got {getattr(self, name)!r}; allowed are {', '.join(allowed)}.")
        if self.calibration_samples < 1:
            raise RecipeError(f"calibration_samples: got {self.calibration_samples!r}; give at least 1 example.")
        alpha = self.smooth_quant_alpha
        if alpha is not None and alpha != -1 and not 0 <= alpha <= 1:
            raise RecipeError(f"smooth_quant_alpha: got {alpha!r}; give a number from 0 to 1, or -1 to turn it off.")
        if isinstance(self.exclude, str):
            raise RecipeError(f"exclude: got {self.exclude!r}; give a list of patterns.")
        meaningless = () if self.scheme == "static_int8" else _STATIC_ONLY
        if self.scheme == "none":
            meaningless += ("exclude",)
        for option in fields(self):
            if option.name in meaningless and getattr(self, option.name) not in (option.default, []):
                raise RecipeError(f"{option.name}: the scheme {self.scheme} does not use it; leave it out.")


@register_method(
    "quantize",
    "openvino",
    options=OpenVinoOptions,
    paper="Jacob et al. 2018 (arXiv:1712.05877), Xiao et al. 2023 (arXiv:2211.10438)",
    supports=("conv", "linear", "bert", "timm"),
    extra=EXTRA,
)
def quantize_openvino(model: nn.Module, options: OpenVinoOptions, context: StepContext) -> OVModel:
    """Export to OpenVINO, with int8 weights and activations, int8 weights alone, or in float.

    `model` is left as it was. Weights are per channel, activations per tensor. A network with attention gets the rules
    for transformers, among them SmoothQuant. Without quantization the weights are kept in float32, so that the export
    computes what the model does; how it then runs, in f32 or bf16, is chosen when it is loaded.

    Returns:
        `OVModel`: not compiled; [`save_exported`] writes it in Optimum's layout.

    Raises:
        [`~errors.BackendUnavailableError`]: without the extra `openvino`.
        [`~errors.CompressionError`]: static int8 without examples, or examples that do not fit the model.
        [`~errors.UnsupportedModelError`]: the model cannot be converted, or has nothing to quantize.
    """
    optimum, _ = require(OPTIMUM, "nncf", extra=EXTRA)
    ignored = _ignored_scope(model, options.exclude)
    if options.scheme == "static_int8":
        _check_examples(context)
    started = time.perf_counter()
    quantizes = options.scheme != "none"
    with quiet_engine():
        graph = to_openvino(model, share_weights=quantizes)
        name_convolutions(graph, model)
        exported = wrap(graph, model)
    converted = time.perf_counter()
    if options.scheme == "weight_only_int8":
        _compress_weights(exported, ignored, optimum)
    elif options.scheme == "static_int8":
        _quantize(exported, options, ignored, context, optimum)
    if quantizes:
        _own_constants(exported.model)
    found = layers(exported.model)
    facts = summary(found)
    _check_quantized(facts, options.scheme, type(model).__name__)
    seconds = {"convert": converted - started, "quantize": time.perf_counter() - converted}
    context.note(
        layers=found,
        quantization={"scheme": options.scheme, **facts, "weight_type": _weight_type(options.scheme)},
        export_seconds={name: round(value, 3) for name, value in seconds.items()},
    )
    return exported


def _own_constants(model: openvino.Model) -> None:
    """Copy what is left in float: it still lies in the memory of the torch model, which its owner may train on.

    Sharing the weights until they are int8 saves a copy of the whole model at the peak.
    """
    (openvino,) = require("openvino", extra=EXTRA)
    for constant in [op for op in model.get_ops() if op.get_type_name() == "Constant"]:
        if constant.get_element_type() == openvino.Type.f32:
            own = openvino.op.Constant(constant.data.copy())
            own.set_friendly_name(constant.get_friendly_name())
            for target in constant.output(0).get_target_inputs():
                target.replace_source_output(own.output(0))
    model.validate_nodes_and_infer_types()


def _compress_weights(exported: OVModel, ignored: dict | None, optimum: ModuleType) -> None:
    """Make the weights of `exported` int8, in place."""
    config = optimum.OVWeightQuantizationConfig(bits=8, ignored_scope=ignored)
    with quiet_engine():
        quantizer = optimum.OVQuantizer.from_pretrained(exported)
        quantizer.quantize(ov_config=optimum.OVConfig(quantization_config=config))


def _quantize(
    exported: OVModel, options: OpenVinoOptions, ignored: dict | None, context: StepContext, optimum: ModuleType
) -> None:
    """Make weights and activations of `exported` int8, in place, with ranges from calibration examples."""
    (nncf,) = require("nncf", extra=EXTRA)
    calibration = Calibration(context, options.calibration_samples, _inputs(exported.model))
    is_transformer = has_attention(exported.model)
    config = optimum.OVQuantizationConfig(
        sym=options.symmetric,
        ignored_scope=ignored,
        num_samples=options.calibration_samples,
        fast_bias_correction=options.fast_bias_correction,
        overflow_fix=resolve_overflow_fix(options.overflow_fix, is_transformer),
        smooth_quant_alpha=options.smooth_quant_alpha,
    )
    # Optimum knows transformers only, so a network without attention says so beside the configuration
    rules = {} if is_transformer else {"model_type": None}
    try:
        with quiet_engine():
            optimum.OVQuantizer.from_pretrained(exported, seed=context.seed).quantize(
                calibration_dataset=nncf.Dataset(calibration),
                ov_config=optimum.OVConfig(quantization_config=config),
                **rules,
            )
    except RuntimeError as error:  # of OpenVINO, which runs the model on the examples
        raise CompressionError(
            f"quantize: the exported model fails on the calibration examples ({reason_of(error)}); check that they "
            "fit the model, their length and size among them."
        ) from error
    if not is_transformer:
        config.model_type = None  # what openvino_config.json will say
    if calibration.seen < options.calibration_samples:
        message = f"Calibrated on {calibration.seen} examples instead of {options.calibration_samples}: the training"
        context.note(warnings=[f"{message} data has no more."])
    context.note(
        calibration={
            "samples": calibration.seen,
            "fingerprint": calibration.fingerprint,
            "rules": "transformer" if is_transformer else "convolutional",
            "overflow_fix": config.overflow_fix,
        }
    )


def resolve_overflow_fix(choice: str, is_transformer: bool, available: Collection[str] | None = None) -> str:
    """What `"auto"` means for a network on this CPU, or on one with the instruction sets `available`."""
    if choice != "auto":
        return choice
    available = instruction_sets() if available is None else available
    # other than x86 CPUs, which have none of these sets, have no 16-bit sums
    narrow_sums = bool(available) and not WIDE_SUMS.intersection(available)
    return "enable" if is_transformer and narrow_sums else "first_layer_only"


def has_attention(model: openvino.Model) -> bool:
    """Whether a converted model attends: softmax over scores, fused or not."""
    return any(op.get_type_name() in ("ScaledDotProductAttention", "Softmax") for op in model.get_ops())


def _inputs(model: openvino.Model) -> dict[str, np.dtype]:
    return {port.get_any_name(): _DTYPES[port.get_element_type().get_type_name()] for port in model.inputs}


def _check_examples(context: StepContext) -> None:
    """Draw one example before the conversion, which takes longer: data that is missing or empty is refused first."""
    if next(iter(context.calibration(1)), None) is None:
        raise CompressionError("calibration: the data has no example to calibrate with; give at least one.")


def _ignored_scope(model: nn.Module, exclude: list[str]) -> dict[str, Any] | None:
    """NNCF's patterns for the operations of the modules that `exclude` names."""
    if not exclude:
        return None
    names = [name for name, _ in model.named_modules() if name]
    patterns = []
    for pattern in exclude:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise RecipeError(
                f"exclude: {pattern!r} matches no module of {type(model).__name__}, whose modules are such as "
                f"{', '.join(names[:1] + names[-2:])}."
            )
        patterns += [rf"__module\.{re.escape(name)}[./].*" for name in matches]
    return {"patterns": patterns, "validate": False}  # a module without operations is no mistake


def _check_quantized(facts: dict[str, Any], scheme: str, owner: str) -> None:
    """Refuse an export that is called int8 and is not."""
    missing = {
        "static_int8": not facts["integer_compute"],
        "weight_only_int8": not facts["integer_weights"],
        "none": False,
    }
    if missing[scheme]:
        raise UnsupportedModelError(
            f"quantize: none of the {facts['layers']} layers of {owner} became int8; take modules out of exclude, or "
            "export with scheme none."
        )


def _weight_type(scheme: str) -> str:
    return "float32" if scheme == "none" else "int8"
