"""Size, cost, speed, accuracy, time and memory of models."""

from .blocks import encoder_modules
from .inputs import example_inputs, image_size, max_length
from .machine import configure_threads, configured_threads, environment, has_fast_bf16, instruction_sets
from .macs import count
from .memory import PeakMemory, peak_memory, reset_peak_memory
from .openvino_export import to_openvino
from .size import folder_size, parameter_bytes
from .states import device_of, evaluating


__all__ = [
    "PeakMemory",
    "configure_threads",
    "configured_threads",
    "count",
    "device_of",
    "encoder_modules",
    "environment",
    "evaluating",
    "example_inputs",
    "folder_size",
    "has_fast_bf16",
    "image_size",
    "instruction_sets",
    "max_length",
    "parameter_bytes",
    "peak_memory",
    "reset_peak_memory",
    "to_openvino",
]
