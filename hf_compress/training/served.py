"""The [`~measurement.Serving`] of a step, with int8 models made by the registered method."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from .. import load_methods
from ..errors import RecipeError
from ..measurement import Serving
from ..registry import get_method, nearest


if TYPE_CHECKING:
    from .context import Context

BACKEND = "openvino"
# Ranges need not be the best: the time of an int8 operation does not depend on them.
CALIBRATION_SAMPLES = 32


def serving(context: Context, options: Any = None, **settings) -> Serving:
    """What models of a step are served in.

    Args:
        context ([`Context`]): of the step; its data calibrates int8 models.
        options (dataclass, *optional*): of the quantization to come; the method's defaults otherwise.
        **settings: fields of [`~measurement.Serving`].
    """

    def quantize(model: nn.Module) -> Any:
        load_methods()
        method = get_method("quantize", BACKEND)
        chosen = method.options() if options is None else options
        if chosen.scheme == "static_int8":
            chosen = replace(chosen, calibration_samples=min(chosen.calibration_samples, CALIBRATION_SAMPLES))
        return method.function(model, chosen, context.apart())

    allowed = [name for name in Serving.__dataclass_fields__ if name not in ("quantize", "quantization")]
    unknown = [name for name in settings if name not in allowed]
    if unknown:
        raise RecipeError(
            f"measure.{unknown[0]}: unknown key{nearest(unknown[0], allowed)}; allowed are {', '.join(allowed)}."
        )
    return Serving(quantize=quantize, quantization=None if options is None else asdict(options), **settings)
