"""Size, cost, speed, accuracy, time and memory of models."""

from .accuracy import Evaluation, agreement, evaluate, plain_metrics, predict
from .blocks import encoder_modules
from .comparison import latency_rows
from .inputs import example_inputs, image_size, max_length
from .latency import latency, timing_lock
from .machine import (
    configure_threads,
    configured_threads,
    cpu_name,
    default_threads,
    environment,
    has_fast_bf16,
    instruction_sets,
)
from .macs import count
from .memory import PeakMemory, peak_memory, reset_peak_memory
from .openvino_export import require_openvino, to_openvino, without_statistics
from .openvino_names import name_convolutions
from .profile import module_seconds
from .runtimes import arithmetic, openvino_callable, openvino_config, openvino_model, stored_bytes, torch_callable
from .serving import Serving
from .size import folder_size, parameter_bytes
from .states import device_of, evaluating, frozen, twin, unshare
from .verb import Measurement, measure


__all__ = [
    "Evaluation",
    "Measurement",
    "PeakMemory",
    "Serving",
    "agreement",
    "arithmetic",
    "configure_threads",
    "configured_threads",
    "count",
    "cpu_name",
    "default_threads",
    "device_of",
    "encoder_modules",
    "environment",
    "evaluate",
    "evaluating",
    "example_inputs",
    "folder_size",
    "frozen",
    "has_fast_bf16",
    "image_size",
    "instruction_sets",
    "latency",
    "latency_rows",
    "max_length",
    "measure",
    "module_seconds",
    "name_convolutions",
    "openvino_callable",
    "openvino_config",
    "openvino_model",
    "parameter_bytes",
    "peak_memory",
    "plain_metrics",
    "predict",
    "require_openvino",
    "reset_peak_memory",
    "stored_bytes",
    "timing_lock",
    "to_openvino",
    "torch_callable",
    "twin",
    "unshare",
    "without_statistics",
]
