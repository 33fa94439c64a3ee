"""Size, cost, speed, accuracy, time and memory of models."""

from .inputs import example_inputs
from .openvino_export import to_openvino


__all__ = ["example_inputs", "to_openvino"]
