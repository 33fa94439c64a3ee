"""Statistics of batch normalizations that tell of the network as it is now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..measurement import evaluating
from .blocks import run


if TYPE_CHECKING:
    from ..registry import Batch


def reestimate(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Let the running statistics of `model` be those of what its batch normalizations read, and let it give the same.

    Scale and shift take up what the statistics change: with another mean `m'` and variance `v'` the scale is
    `w sqrt((v' + eps) / (v + eps))` and the shift `b + w (m' - m) / sqrt(v + eps)`. So eval mode is as it was, and
    training mode, which normalizes by its batches, starts from the same function. Normalizations without scale and
    shift, or without running statistics, are left alone.

    Args:
        model ([`~transformers.PreTrainedModel`]): changed in place.
        batches (`Iterable[Batch]`): training examples; looked at only if there is something to estimate.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and _has_all(module)]
    if not norms:
        return
    seen = {norm: _ChannelSums() for norm in norms}
    handles = [norm.register_forward_pre_hook(lambda norm, args: seen[norm].add(args[0])) for norm in norms]
    try:
        with evaluating(model):
            for batch in batches:
                run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    for norm, sums in seen.items():
        if sums.count:
            _restate(norm, *sums.moments())


def _has_all(norm: nn.Module) -> bool:
    return None not in (norm.weight, norm.bias, norm.running_mean, norm.running_var)


class _ChannelSums:
    """Sums over examples and positions of what a normalization reads, `(examples, channels, ...)`."""

    def __init__(self):
        self.count, self.sum, self.squares = 0, 0.0, 0.0

    def add(self, x: Tensor) -> None:
        dims = [0, *range(2, x.dim())]
        self.count += x.numel() // x.shape[1]
        self.sum += x.sum(dims, dtype=torch.float64)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        self.squares += x.square().sum(dims, dtype=torch.float64)

    def moments(self) -> tuple[Tensor, Tensor]:
        mean = self.sum / self.count
        return mean, (self.squares / self.count - mean.square()).clamp(min=0)


@torch.no_grad()
def _restate(norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
    mean, variance = (value.to(norm.running_mean).double() for value in (mean, variance))  # as they are kept
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    norm.bias += (scale * (mean - norm.running_mean.double())).to(norm.bias)
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
