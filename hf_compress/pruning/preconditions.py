"""What a repair needs, looked at before anything is cut."""

from __future__ import annotations

import shutil
import tempfile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CompressionError, DiskFullError, UnsupportedModelError
from .blocks import block_calls, check_chain, first_of


if TYPE_CHECKING:
    from ..registry import Batch, StepContext


def check_repair(model: nn.Module, options: Any, context: StepContext) -> None:
    """Look whether `model` can be repaired, before anything takes long.

    Args:
        model ([`~transformers.PreTrainedModel`]): before the surgery.
        options: with `repair`, `samples` and `refine`; without a repair there is nothing to look at.
        context ([`StepContext`]): gives the examples.

    Raises:
        [`UnsupportedModelError`]: if the blocks do not form a chain, or cannot be refined.
        `CompressionError`: if an example has inputs that are not finite, or weights are not in float32.
        `DiskFullError`: if there is no room for the activations that wait on disk.
    """
    if not options.repair:
        return
    other = next((n for n, p in model.named_parameters() if p.is_floating_point() and p.dtype != torch.float32), None)
    if other is not None:
        raise CompressionError(
            f"repair: it fits weights in float32, and {other} is in {model.get_parameter(other).dtype}; call "
            "model.float() before, or leave the repair out."
        )
    elements, waiting = 0, 0.0
    for batch in context.calibration(options.samples):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        _check_finite(inputs)
        first = next(iter(inputs.values()))
        if not elements:
            check_chain(model, inputs)
            calls = block_calls(model, inputs)
            # of both versions what a block reads, of one what it gives and what is seen within
            most = max(
                2 * read.nbytes + 3 * first_of(given).nbytes for found in calls.values() for read, given in found
            )
            waiting = most / first[:1].numel()
            if options.refine:
                _check_rows(model, {name: first_of(given) for name, found in calls.items() for _, given in found})
        elements += first.numel()
    _check_room(waiting * elements)


def _check_finite(inputs: Batch) -> None:
    for name, value in inputs.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CompressionError(
                f"calibration: {name} of a training example has values that are NaN or infinite, which no layer can "
                "be fitted to; mend the data or its transform."
            )


def _check_rows(model: nn.Module, given: dict[str, Tensor]) -> None:
    """Refuse to refine where the rows of a block's last layer do not tell which channels of its output are left."""
    for name, output in given.items():
        layers = [module for module in model.get_submodule(name).modules() if isinstance(module, nn.Conv2d)]
        if output.dim() == 4 and layers and layers[-1].out_channels != output.shape[1]:
            raise UnsupportedModelError(
                f"refine: {name} gives {output.shape[1]} channels and its last layer {layers[-1].out_channels}, so "
                "which of them are left after pruning is not known; give refine 0."
            )


def _check_room(needed: float) -> None:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(
            f"{folder}: the repair lets about {needed / 1e9:.1f} GB of activations wait there, and {free / 1e9:.1f} "
            "GB are free; give fewer samples, make room, or set TMPDIR to a folder of a larger disk."
        )
