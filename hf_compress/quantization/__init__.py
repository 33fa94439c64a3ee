"""Quantization: the technique `quantize`, one module a backend."""

from .exported import is_exported, load_exported, save_exported, served_precision
from .openvino import OpenVinoOptions, quantize_openvino
from .verb import quantize


__all__ = [
    "OpenVinoOptions",
    "is_exported",
    "load_exported",
    "quantize",
    "quantize_openvino",
    "save_exported",
    "served_precision",
]
