"""The blocks that a network is made of: their order, and the network without some of them."""

from __future__ import annotations

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
            f"{type(model).__name__} is not made of blocks that repeat, so it can neither be repaired block by block "
            "nor lose blocks; leave the repair out, and prune units."
        ) from None
    for module in containers:
        found += list(module) if isinstance(module, nn.Sequential) else [module]
    return [names[module] for module in found]


def check_chain(model: nn.Module, batch: Batch) -> None:
    """Refuse a network that does more than hand on what a block gives to the next one.

    Raises:
        [`UnsupportedModelError`]: with the block that gets something else.
    """
    blocks = chain(model)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    entered: dict[str, Tensor] = {}
    left: dict[str, Tensor] = {}
    handles = []
    for name in blocks:
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(_recorder(entered, name)))
        handles.append(module.register_forward_hook(_recorder(left, name)))
    try:
        with evaluating(model):
            model(**moved({name: value[:1] for name, value in inputs.items()}, device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    for before, after in zip(blocks, blocks[1:], strict=False):
        if left.get(before) is None or left[before] is not entered.get(after):
            raise UnsupportedModelError(
                f"{type(model).__name__}: {after} does not read what {before} gives, so that the network cannot be "
                "repaired block by block; leave the repair out."
            )


def removable(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> list[str]:
    """The blocks that run once and give what has the shape of what they read, so that the network runs without them.

    Raises:
        [`UnsupportedModelError`]: if there is none.
    """
    same: dict[str, list[bool]] = {}

    def watch(name: str):
        def keep(module: nn.Module, args: tuple, output) -> None:
            output = output[0] if isinstance(output, tuple) else output
            shapes = [getattr(value, "shape", None) for value in (args[0], output)]  # some hand on lists
            same.setdefault(name, []).append(shapes[0] is not None and shapes[0] == shapes[1])

        return keep

    names = chain(model)
    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        with evaluating(model):
            model(**moved({name: value[:1] for name, value in batch.items()}, device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    found = [name for name in names if same.get(name) == [True] and _is_composed(model.get_submodule(name))]
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__}: none of its blocks ({', '.join(names)}) is more than a layer and keeps the "
            "shape of what it reads, so none can leave; prune channels instead."
        )
    return found


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
            model(**moved(dict(inputs), device_of(model)))
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


def _recorder(place: dict[str, Tensor], name: str):
    def record(module: nn.Module, args: tuple, output: Any = None) -> None:
        value = args[0] if output is None else output
        place[name] = value[0] if isinstance(value, tuple) else value

    return record
