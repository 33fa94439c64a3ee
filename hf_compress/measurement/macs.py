"""Parameters and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..errors import CompressionError, UnsupportedModelError
from ..registry import Cost
from .blocks import encoder_modules
from .inputs import example_inputs
from .states import evaluating, frozen


if TYPE_CHECKING:
    from ..registry import Batch


def count(model: nn.Module, inputs: Batch | None = None, length: int | None = None) -> Cost:
    """
    Count parameters and multiply-accumulates of a torch model, by running it once.

    MACs are those of matrix products and convolutions (also the two products of attention), as one multiply and one
    add each; element-wise work, normalization and look-ups are not counted. The model is left as it was.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            On any device; the meta device too, where nothing is computed.
        inputs (`dict[str, torch.Tensor]`, *optional*):
            What to run it on; the count is divided by the size of their first dimension, and padding counts as work.
            One example made from the configuration by default.
        length (`int`, *optional*):
            Tokens of that one example (by default 128, or the model's positions if fewer). Only without `inputs`.

    Returns:
        [`Cost`]: shared parameters counted once. `encoder_*` are 0 for a model without repeated blocks.
        `nonzero_params` is `None` on the meta device.

    Raises:
        [`UnsupportedModelError`]: for an exported model, which has the MACs of the torch model it came from.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"MACs of a {type(model).__name__} cannot be counted; count the torch model it was exported from."
        )
    if inputs is None:
        inputs = example_inputs(model, length=length)
    elif length is not None:
        raise CompressionError("length: got it together with inputs; the inputs have a length of their own.")
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    try:
        blocks = encoder_modules(model)
    except CompressionError:
        blocks = []
    # FlopCounterMode knows no formula for the fused attention of the CPU and would count it as nothing
    # FlopCounterMode hooks outputs that require gradients, and fails on a view of a parameter, which does so even
    # under `no_grad`, without a graph
    with evaluating(model), frozen(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with _flops_inside(blocks, counter) as inside:
            model(**inputs)
    examples = len(next(iter(inputs.values())))
    return Cost(
        params=parameter_count(model.parameters()),
        macs=counter.get_total_flops() // 2 // examples,
        encoder_params=parameter_count(parameter for block in blocks for parameter in block.parameters()),
        encoder_macs=sum(inside) // 2 // examples,
        nonzero_params=nonzero_count(model.parameters()),
    )


def parameter_count(parameters: Iterable[nn.Parameter]) -> int:
    """Entries of the given parameters, a shared one counted once."""
    return sum(parameter.numel() for parameter in _distinct(parameters))


def nonzero_count(parameters: Iterable[nn.Parameter]) -> int | None:
    """Entries that are not zero, a shared parameter counted once; `None` where any is on the meta device."""
    total = 0
    for parameter in _distinct(parameters):
        if parameter.is_meta:
            return None
        total += int(torch.count_nonzero(parameter.detach()))
    return total


def _distinct(parameters: Iterable[nn.Parameter]) -> Iterable[nn.Parameter]:
    return {id(parameter): parameter for parameter in parameters}.values()


@contextmanager
def _flops_inside(blocks: list[nn.Module], counter: FlopCounterMode) -> Iterator[list[int]]:
    """A list that collects the FLOPs of every call of a block."""
    inside: list[int] = []
    started: list[int] = []

    def enter(*_):
        started.append(counter.get_total_flops())

    def leave(*_):
        inside.append(counter.get_total_flops() - started.pop())

    handles = []
    try:
        for block in blocks:
            handles += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
        yield inside
    finally:
        for handle in handles:
            handle.remove()
