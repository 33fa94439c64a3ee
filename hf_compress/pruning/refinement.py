"""Refinement after the repair: all weights of a block descend together on the error of what it gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..measurement import evaluating
from .blocks import first_of
from .speed import bf16_where_fast
from .streams import Streams


RATE = 2e-3  # of Adam, at its highest
JUDGED = 8  # batches by which a refinement is judged


def refine_block(streams: Streams, block: str, passes: int, seed: int, kept: Tensor | None) -> float:
    """Descend on the error of the block's output in all its weights, which stay as they were if that does not lower
    it; the error that is left, as a share."""
    module = streams.models["pruned"].get_submodule(block)
    parameters = [
        parameter for parameter in module.parameters() if parameter.is_floating_point() and parameter.numel()
    ]
    trainable = [parameter.requires_grad for parameter in parameters]
    generator = torch.Generator().manual_seed(seed)
    steps = passes * len(streams)
    warm_up = 0.1 if steps != 10 else 0.15  # one step of warm-up has no length, and OneCycleLR divides by it
    judged = sorted({index * len(streams) // JUDGED for index in range(JUDGED)})
    before, kept_weights = _block_error(streams, block, judged, kept), [p.detach().clone() for p in parameters]
    try:
        with evaluating(module), torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            optimizer = torch.optim.Adam(parameters, lr=RATE, fused=True)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=warm_up)
            for _ in range(passes):
                order = torch.randperm(len(streams), generator=generator).tolist()
                for args, kwargs, wanted, weights in streams.pairs(block, "pruned", "dense", order):
                    with bf16_where_fast(module):
                        output = module(*args, **kwargs)
                    loss = _error(first_of(output), wanted, weights, kept)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
    finally:
        for parameter, flag in zip(parameters, trainable, strict=True):
            parameter.grad = None
            parameter.requires_grad_(flag)
    after = _block_error(streams, block, judged, kept)
    if after < before:
        return after / before
    with torch.no_grad():
        for parameter, weight in zip(parameters, kept_weights, strict=True):
            parameter.copy_(weight)
    return 1.0


def _block_error(streams: Streams, block: str, order: Sequence[int], kept: Tensor | None) -> float:
    """The mean of [`_error`] over the batches in `order`."""
    module, errors = streams.models["pruned"].get_submodule(block), []
    for args, kwargs, wanted, weights in streams.pairs(block, "pruned", "dense", order):
        with evaluating(module):
            errors.append(float(_error(first_of(module(*args, **kwargs)), wanted, weights, kept)))
    return sum(errors) / len(errors)


def _error(output: Tensor, wanted: Tensor, weights: Tensor | None, kept: Tensor | None) -> Tensor:
    """The mean squared error of an element, weighted by what its token counts."""
    output, wanted = output.float(), wanted.float()
    channels = 1 if wanted.dim() == 4 else -1
    if output.shape[channels] != wanted.shape[channels]:  # the stream has lost some
        wanted = wanted.index_select(channels, kept.to(wanted.device))
    if weights is None:
        return (output - wanted).square().mean()
    by_token = (output - wanted).square().mean(-1)
    return (by_token * weights.to(by_token)).sum() / (weights > 0).sum()
