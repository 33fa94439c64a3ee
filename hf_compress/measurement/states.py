"""Looking at a model without changing it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode without gradients; afterwards every module has the training flag it had before.

    `model.train(flag)` would not do: frozen batch-norm layers keep a flag of their own.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield model
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """No parameter requires a gradient, so that none is computed and no activation kept for it."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield model
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def twin(model: nn.Module) -> nn.Module:
    """A second model in eval mode that shares every parameter and buffer with `model`, so it costs no memory."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared).eval()


def unshare(model: nn.Module, other: nn.Module) -> None:
    """Give `model` its own parameters and buffers in place of those that are `other`'s too, see [`twin`]; what is tied
    within it stays so."""
    theirs = {id(tensor) for tensor in (*other.parameters(), *other.buffers())}
    copies: dict = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({n: copy.deepcopy(t, copies) for n, t in tensors.items() if id(t) in theirs})


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter; the CPU where there is none (an exported model)."""
    if isinstance(model, nn.Module):
        for parameter in model.parameters():
            return parameter.device
    return torch.device("cpu")
