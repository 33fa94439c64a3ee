"""How a model is served: the runtime, precision and batch that a latency target speaks of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import RecipeError
from ..recipe import PRECISIONS
from .inputs import example_inputs
from .latency import latency
from .openvino_export import to_openvino
from .openvino_names import name_convolutions
from .profile import module_seconds
from .runtimes import openvino_callable, torch_callable


if TYPE_CHECKING:
    from ..registry import Batch


@dataclass(frozen=True)
class Serving:
    """
    What a model runs in.

    Args:
        runtime (`str`, *optional*, defaults to `"openvino"`): or `"torch"`.
        precision (`str`, *optional*): of `PRECISIONS`; by default the runtime's first.
        batch (`int`, *optional*, defaults to 1), length (`int`, *optional*): of the inputs; tokens, for texts.
        threads (`int`, *optional*): by default what [`configure_threads`] set.
        seconds (`float`, *optional*, defaults to 5): about how long one comparison may take.
        quantize (`Callable`, *optional*): makes an int8 `OVModel` of a torch model; needed for the precision int8.
        quantization (`dict`, *optional*): the options with which that is done.

    Raises:
        `RecipeError`: for a precision that the runtime does not have.
    """

    runtime: str = "openvino"
    precision: str | None = None
    batch: int = 1
    length: int | None = None
    threads: int | None = None
    seconds: float = 5.0
    quantize: Callable[[nn.Module], Any] | None = None
    quantization: dict[str, Any] | None = None

    def __post_init__(self):
        if self.runtime not in PRECISIONS:
            raise RecipeError(f"measure.runtime: got {self.runtime!r}; allowed are {', '.join(PRECISIONS)}.")
        allowed = PRECISIONS[self.runtime]
        if self.precision is None:
            object.__setattr__(self, "precision", allowed[0])
        if self.precision not in allowed:
            raise RecipeError(
                f"measure.precision: got {self.precision!r} for {self.runtime}; allowed are {', '.join(allowed)}."
            )
        if self.precision == "int8" and self.quantize is None:
            raise RecipeError("measure.precision: got int8, and nothing here makes models int8; give f32 or bf16.")

    def export(self, model: nn.Module) -> Any:
        """`model` in the form that the runtime takes, with operations named after its modules."""
        if self.runtime == "torch":
            return model
        if self.precision == "int8":
            return self.quantize(model)
        graph = to_openvino(model, share_weights=True)
        name_convolutions(graph, model)
        return graph

    def inputs(self, model: nn.Module) -> Batch:
        return example_inputs(model, self.batch, self.length)

    def module_seconds(self, model: nn.Module, repeats: int = 20) -> dict[str, float]:
        """Median seconds of a batch by module; see [`~measurement.module_seconds`]."""
        return module_seconds(self.export(model), self.inputs(model), self.precision, self.threads, repeats)

    def latencies(self, model: nn.Module, against: nn.Module) -> tuple[float, float]:
        """Median seconds of a batch of `model` and of `against`, timed in turn."""
        make = torch_callable if self.runtime == "torch" else openvino_callable
        candidates = {
            name: make(self.export(one), self.precision, self.threads)
            for name, one in (("model", model), ("against", against))
        }
        found = latency(candidates, self.inputs(model), seconds=self.seconds)
        return found["model"]["p50"], found["against"]["p50"]
