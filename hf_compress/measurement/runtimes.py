"""Models as plain callables of one runtime and one precision, for timing."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..errors import CompressionError, NotFoundError
from .machine import configured_threads, has_fast_bf16
from .openvino_export import require_openvino
from .states import device_of, twin


if TYPE_CHECKING:
    import openvino
    from optimum.intel.openvino.modeling import OVModel

    from ..registry import Batch

TORCH_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
INTEGERS = ("int8", "int4")
OPENVINO_PRECISIONS = ("f32", "bf16", *INTEGERS)
OPENVINO_FILE = "openvino_model.xml"  # Optimum's name
# the properties that logits depend on: the type of what is not int8, and whether inputs of layers with integer weights
# are made int8 on the fly (0: never), which OpenVINO does on its own where the CPU has VNNI
ARITHMETIC = ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
INTEGER_WEIGHTS = {"i8": "int8", "u8": "int8", "i4": "int4", "u4": "int4"}


class TorchCallable:
    """A torch model that takes prepared inputs; made by [`torch_callable`]."""

    def __init__(self, model: nn.Module, threads: int, memory_format: torch.memory_format):
        self.model, self.threads, self.memory_format = model, threads, memory_format
        self.device = device_of(model)
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def prepare(self, inputs: Batch) -> Batch:
        """The inputs on the model's device, floats in its type and images in its memory format. No labels."""
        prepared = {}
        for name, tensor in inputs.items():
            if name == "labels":
                continue
            dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
            if tensor.ndim == 4:
                prepared[name] = tensor.to(self.device, dtype, memory_format=self.memory_format)
            else:
                prepared[name] = tensor.to(self.device, dtype)
        return prepared

    def __call__(self, inputs: Batch) -> Any:
        with torch.inference_mode():
            output = self.model(**inputs)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return output


class OpenVinoCallable:
    """A compiled OpenVINO model that takes prepared inputs; made by [`openvino_callable`]."""

    def __init__(self, compiled: openvino.CompiledModel, threads: int):
        self.compiled, self.threads = compiled, threads
        self.names = [port.get_any_name() for port in compiled.inputs]
        self._request = compiled.create_infer_request()

    def prepare(self, inputs: Batch) -> dict[str, np.ndarray]:
        """The inputs that the model knows, as contiguous arrays."""
        missing = [name for name in self.names if name not in inputs]
        if missing:
            raise CompressionError(
                f"The OpenVINO model takes {', '.join(self.names)}; the inputs lack {', '.join(missing)}."
            )
        return {name: np.ascontiguousarray(inputs[name].numpy(force=True)) for name in self.names}

    def __call__(self, inputs: dict[str, np.ndarray]) -> Any:
        return self._request.infer(inputs, share_inputs=True, share_outputs=True)

    def profile(self) -> list[tuple[str, float]]:
        """Name and seconds of each operation of the last call, of a model compiled with the property `PERF_COUNT`."""
        return [(entry.node_name, entry.real_time.total_seconds()) for entry in self._request.get_profiling_info()]


def torch_callable(model: nn.Module, precision: str = "fp32", threads: int | None = None) -> TorchCallable:
    """
    A model as PyTorch runs it, in eval mode and without gradients.

    The model given is not changed: in its own precision it is shared, for another one, and for the channels-last
    layout that models of images are timed in, it is copied.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        precision (`str`, *optional*, defaults to `"fp32"`):
            `"fp32"`, or `"bf16"` for bfloat16 weights and activations (on a CPU faster than autocast).
        threads (`int`, *optional*):
            Threads that [`latency`] gives PyTorch meanwhile; by default what [`configure_threads`] set.
    """
    if precision not in TORCH_PRECISIONS:
        raise CompressionError(f"precision: got {precision!r} for PyTorch; allowed are {', '.join(TORCH_PRECISIONS)}.")
    dtype = TORCH_PRECISIONS[precision]
    images = getattr(model, "main_input_name", None) == "pixel_values"
    layout = torch.channels_last if images else torch.preserve_format
    same = all(parameter.dtype == dtype for parameter in model.parameters() if parameter.is_floating_point())
    if same and not images:
        model = twin(model)
    else:
        model = copy.deepcopy(model).eval().to(dtype)
        if images:
            model = model.to(memory_format=layout)
    return TorchCallable(model, threads or configured_threads(), layout)


def openvino_callable(
    model: Any,
    precision: str = "f32",
    threads: int | None = None,
    *,
    static_for: Batch | None = None,
    properties: Mapping[str, Any] | None = None,
) -> OpenVinoCallable:
    """
    An exported model as OpenVINO runs it: one stream, tuned for latency.

    Args:
        model (`str`, `os.PathLike`, `OVModel` or `openvino.Model`):
            The folder Optimum saved, the model it loaded, or the bare model. Not changed.
        precision (`str`, *optional*, defaults to `"f32"`):
            `"f32"` or `"bf16"` for all arithmetic but that of operations quantized in the model itself, or `"int8"`
            (`"int4"`) for what OpenVINO makes of a quantized model by itself: what is not quantized runs in bf16 where
            the CPU has it and in f32 elsewhere, and with VNNI the inputs of layers whose weights alone are integers
            are quantized on the fly.
        threads (`int`, *optional*):
            By default what [`configure_threads`] set.
        static_for (`dict[str, torch.Tensor]`, *optional*):
            Compile for the shapes of these inputs. By default the shapes stay dynamic, as Optimum serves models,
            which costs a millisecond or so a call.
        properties (`dict[str, Any]`, *optional*):
            Of the compilation, over those that `precision` and `threads` mean; see [`arithmetic`].

    Raises:
        [`BackendUnavailableError`]: without the extra `openvino`.
    """
    openvino = require_openvino()
    threads = threads or configured_threads()
    properties = {**openvino_config(precision, threads), **(properties or {})}
    source = openvino_model(model)
    if static_for is not None:
        source = source.clone()
        source.reshape({port.get_any_name(): list(static_for[port.get_any_name()].shape) for port in source.inputs})
    compiled = openvino.Core().compile_model(source, "CPU", properties)
    return OpenVinoCallable(compiled, threads)


def openvino_config(precision: str = "f32", threads: int | None = None) -> dict[str, Any]:
    """
    The properties that a model is compiled with; also for Optimum's `ov_config`.

    Args:
        precision (`str`, *optional*, defaults to `"f32"`): see [`openvino_callable`].
        threads (`int`, *optional*): by default what [`configure_threads`] set.
    """
    if precision not in OPENVINO_PRECISIONS:
        allowed = ", ".join(OPENVINO_PRECISIONS)
        raise CompressionError(f"precision: got {precision!r} for OpenVINO; allowed are {allowed}.")
    if precision in INTEGERS:
        computed = {"INFERENCE_PRECISION_HINT": "bf16" if has_fast_bf16() else "f32"}
    else:
        computed = {"INFERENCE_PRECISION_HINT": precision, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    return {
        **computed,
        "INFERENCE_NUM_THREADS": threads or configured_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }


def arithmetic(model: OVModel) -> dict[str, str]:
    """
    How one of Optimum's models computes, as the `ov_config` that makes it compute so anywhere.

    Args:
        model (`OVModel`): compiled, if it is not yet.

    Returns:
        `dict[str, str]`: what OpenVINO says of `ARITHMETIC`, such as `{"INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}`.
    """
    model.compile()
    found = {}
    for name in ARITHMETIC:
        value = model.request.get_property(name)
        found[name] = value.get_type_name() if hasattr(value, "get_type_name") else str(value)
    return found


def openvino_model(model: Any) -> openvino.Model:
    """The bare `openvino.Model` in a folder, in one of Optimum's models, or itself."""
    openvino = require_openvino()
    if isinstance(model, openvino.Model):
        return model
    if isinstance(model, str | os.PathLike):
        files = [Path(model) / OPENVINO_FILE]
        if not files[0].is_file():
            files = sorted(Path(model).glob("*.xml"))
        if len(files) != 1:
            raise NotFoundError(f"{model}: no {OPENVINO_FILE} found; give a folder that an OVModel was saved in.")
        return openvino.Core().read_model(files[0])
    inner = getattr(model, "model", None)
    if isinstance(inner, openvino.Model):
        return inner
    raise CompressionError(
        f"model: got {type(model).__name__}; give a folder, an OVModel or an openvino.Model (to_openvino makes one of "
        "a torch model)."
    )


def stored_precision(model: openvino.Model) -> str:
    """`"int8"` or `"int4"` for an OpenVINO model with integer weights or quantized activations, otherwise `"f32"`."""
    found = {"int8" for op in model.get_ops() if op.get_type_name() == "FakeQuantize"}
    for constant in _weights(model):
        found.add(INTEGER_WEIGHTS.get(constant.get_element_type().get_type_name(), "f32"))
    return min(found - {"f32"}, default="f32")  # "int4" before "int8"


def stored_bytes(model: openvino.Model) -> int:
    """Bytes of the constants of an OpenVINO model, which is what its `.bin` file holds."""
    return sum(constant.get_byte_size() for constant in _constants(model))


def _constants(model: openvino.Model) -> list:
    return [op for op in model.get_ops() if op.get_type_name() == "Constant"]


def _weights(model: openvino.Model) -> list:
    return [constant for constant in _constants(model) if len(constant.get_output_shape(0)) > 1]
