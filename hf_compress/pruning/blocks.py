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


def removable(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[list[str], dict[str, str]]:
    """The blocks that can leave: they run once and give a tensor of the shape of what they read, and the network runs
    without them. Of the others, but for those that are gone, why they cannot.

    Raises:
        [`UnsupportedModelError`]: if none can leave.
    """
    found, kept = [], {}
    for name, calls in block_calls(model, batch).items():
        reason = _reason_to_stay(model, name, calls, batch)
        if reason is None:
            found.append(name)
        elif not isinstance(model.get_submodule(name), Removed):
            kept[name] = reason
    if not found:
        by_reason: dict[str, list[str]] = {}
        for name, reason in kept.items():
            by_reason.setdefault(reason, []).append(name)
        told = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
        told = told or "all have left already"
        raise UnsupportedModelError(
            f"{type(model).__name__}: none of its blocks can leave ({told}); prune units instead."
        )
    return found, kept


def _reason_to_stay(
    model: nn.Module, name: str, calls: Sequence[tuple[Any, Any]], batch: Mapping[str, torch.Tensor]
) -> str | None:
    module = model.get_submodule(name)
    if not any(True for child in module.children() for _ in child.parameters()):
        return "it is a single layer"
    if len(calls) != 1:
        return f"it runs {len(calls)} times"
    (read, given) = calls[0]
    if not isinstance(read, Tensor) or not isinstance(given, Tensor):
        return "it does not read and give a single tensor"
    if read.shape != given.shape:
        return "it changes the shape of what it reads"
    try:
        with evaluating(model), without(model, [name]):
            run(model, {key: value[:1] for key, value in batch.items()})
    except Exception as error:  # whatever the network asks of its blocks
        return f"the network does not run without it ({type(error).__name__}: {error})"
    return None


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
