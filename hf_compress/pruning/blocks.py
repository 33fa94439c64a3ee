"""The blocks that a network is made of: their order, and the network without some of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CompressionError, UnsupportedModelError
from ..measurement import device_of, evaluating
from ..measurement.blocks import encoder_modules
from ..structure import Removed


if TYPE_CHECKING:
    from ..registry import Batch


def chain(model: nn.Module) -> list[str]:
    """Names of the blocks of `model`, in the order in which they run; stages are taken apart into their blocks."""
    names = {module: name for name, module in model.named_modules()}
    found = []
    try:
        containers = encoder_modules(model)
    except CompressionError:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not made of blocks that repeat, so it can neither be repaired block by block, "
            "nor lose blocks, nor be timed block by block; leave the repair out, and prune units to a target of macs "
            "or params."
        ) from None
    for module in containers:
        found += list(module) if isinstance(module, nn.Sequential) else [module]
    return [names[module] for module in found]


def block_calls(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, list[tuple[Any, Any]]]:
    """By block of [`chain`], at every call of it on the first example of `batch`: what it reads first, and what it
    gives."""
    calls: dict[str, list[tuple[Any, Any]]] = {name: [] for name in chain(model)}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, found=found: found.append((args[0], output))
        )
        for name, found in calls.items()
    ]
    try:
        with evaluating(model):
            run(model, {name: value[:1] for name, value in batch.items()})
    finally:
        for handle in handles:
            handle.remove()
    return calls


def first_of(output: Any) -> Any:
    """What a module gives; of several things (attention gives its weights too) the first."""
    return output[0] if isinstance(output, tuple) else output


def check_chain(model: nn.Module, batch: Batch) -> None:
    """Refuse a network that does more than hand on what a block gives to the next one.

    Raises:
        [`UnsupportedModelError`]: with the block that gets something else.
    """
    calls = block_calls(model, batch)
    for before, after in itertools.pairwise(calls):
        if not calls[before] or not calls[after] or first_of(calls[before][-1][1]) is not calls[after][-1][0]:
            raise UnsupportedModelError(
                f"{type(model).__name__}: {after} does not read what {before} gives, so that the network cannot be "
                "repaired block by block; leave the repair out."
            )


def removable(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> list[str]:
    """The blocks that run once and give a tensor of the shape of what they read, so that the network runs without
    them.

    Raises:
        [`UnsupportedModelError`]: if there is none.
    """
    calls = block_calls(model, batch)
    found = [name for name in calls if _keeps_shape(calls[name]) and _is_composed(model.get_submodule(name))]
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__}: none of its blocks ({', '.join(calls)}) is more than a layer and gives "
            "a single tensor, of the shape of what it reads, so none can leave; prune units instead."
        )
    return found


def _keeps_shape(calls: Sequence[tuple[Any, Any]]) -> bool:
    """In a single call; some blocks hand on lists or tuples, which have no shape."""
    return len(calls) == 1 and all(isinstance(x, Tensor) for x in calls[0]) and calls[0][0].shape == calls[0][1].shape


def _is_composed(module: nn.Module) -> bool:
    """Not a single layer or a pooling, which some networks have among their blocks, nor what stands for a block."""
    return any(True for child in module.children() for _ in child.parameters())


@contextmanager
def without(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """`model` with blocks that hand on what they read."""
    originals = {name: model.get_submodule(name) for name in names}
    originals = {name: module for name, module in originals.items() if not isinstance(module, Removed)}
    try:
        for name, module in originals.items():
            model.set_submodule(name, Removed.replacing(module) if module.state_dict() else nn.Identity())
        yield
    finally:
        for name, module in originals.items():
            model.set_submodule(name, module)


def run(model: nn.Module, batch: Batch) -> Any:
    """What a network gives for a batch, whose labels it is not told."""
    return model(**moved({name: value for name, value in batch.items() if name != "labels"}, device_of(model)))


def moved(values: Any, device: torch.device) -> Any:
    if isinstance(values, dict):
        return {name: moved(value, device) for name, value in values.items()}
    if isinstance(values, list):
        return [moved(value, device) for value in values]
    return values.to(device) if isinstance(values, Tensor) else values


class _Stop(Exception):
    """Ends a forward at a block whose inputs are all that is wanted."""


def entering(model: nn.Module, block: str, inputs: Batch) -> dict[str, Any]:
    """What the block is called with: `args`, the activations first, and `kwargs`."""
    found: dict[str, Any] = {}

    def stop(module: nn.Module, args: tuple, kwargs: dict) -> None:
        found["args"] = [_plain(value) for value in args]
        found["kwargs"] = {name: _plain(value) for name, value in kwargs.items()}
        raise _Stop

    handle = model.get_submodule(block).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with evaluating(model):
            run(model, inputs)
    except _Stop:
        pass
    finally:
        handle.remove()
    return found


def _plain(value: Any) -> Any:
    """Tensors and plain values wait on disk; what else a block may be given (a cache) is not for a classifier."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    return value if isinstance(value, bool | int | float | str) else None
