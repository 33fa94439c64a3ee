"""The layers of a block that can be fitted, and what stands behind each; found by running the block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from ..structure import Constant
from .blocks import first_of
from .streams import Place, Streams


@dataclass(frozen=True)
class Fit:
    """A layer to fit, and what stands behind it.

    Args:
        layer (`str`): a `Linear`, `Conv2d`, or the [`Constant`] that stands for one.
        norm (`str`, *optional*): the batch normalization that reads it, which is a fixed scale and shift here.
        joint (`tuple[str, str]`, *optional*): where the sum of its (normalized) output and a shortcut is: a module and
            `"reads"`, or the block and `"gives"`.
    """

    layer: str
    norm: str | None = None
    joint: Place | None = None


def find_fits(streams: Streams, block: str, layers: Iterable[str]) -> list[Fit]:
    """The `layers` that run in `block`, in their order, each with what stands behind it; found by trying it out."""
    model = streams.models["pruned"]
    wanted = {name for name in layers if name.startswith(f"{block}.")}
    inputs = _inputs(streams, block) if wanted else {}
    fits = []
    for position, name in enumerate(inputs):
        if name in wanted:
            later = list(inputs)[position + 1 :]
            norm = _norm(model, name, later, inputs, _output(streams, block, name))
            scale = torch.ones(1) if norm is None else scale_of(model.get_submodule(norm))[:, None, None]
            fits.append(Fit(name, norm, _joint(streams, block, name, scale, later, inputs)))
    return fits


def _norm(
    model: nn.Module, layer: str, later: Sequence[str], inputs: Mapping[str, Tensor], output: Tensor
) -> str | None:
    """The batch normalization that reads the layer and nothing else."""
    for name in later:
        if isinstance(model.get_submodule(name), _BatchNorm) and torch.equal(inputs[name], output):
            return name
    return None


def _joint(
    streams: Streams, block: str, layer: str, scale: Tensor, later: Sequence[str], inputs: Mapping[str, Tensor]
) -> Place | None:
    """The last module whose input changes just as the layer's (scaled) output does: it reads its sum with others; or
    the block itself, if its output changes so."""
    change = torch.randn(_output(streams, block, layer).shape, generator=torch.Generator().manual_seed(0))
    module = streams.models["pruned"].get_submodule(layer)

    def add(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        changed = first_of(output) + change.to(first_of(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = module.register_forward_hook(add)
    try:
        changed = _inputs(streams, block)
    finally:
        handle.remove()
    expected = change * scale.cpu()
    found = None
    for name in later:
        difference = changed[name] - inputs[name]
        rounding = 4 * torch.finfo(torch.float32).eps * inputs[name].abs().max()
        near = 1e-3 * (expected.abs() + expected.abs().max()) + rounding
        if difference.shape == expected.shape and bool(((difference - expected).abs() <= near).all()):
            found = (name, "gives" if name == block else "reads")
    return found


def _inputs(streams: Streams, block: str) -> dict[str, Tensor]:
    """What every layer in `block` reads, on the first batch, in the order in which they run; last, what it gives."""
    found: dict[str, Tensor] = {}
    model, handles = streams.models["pruned"], []
    for name, module in model.get_submodule(block).named_modules(prefix=block):
        # a constant may hold a seal, and timm's normalizations an activation
        if isinstance(module, Constant | _BatchNorm) or not any(True for _ in module.children()):

            def keep(module: nn.Module, args: tuple, name=name) -> None:
                if args and isinstance(args[0], Tensor):
                    found[name] = args[0].detach().clone().cpu()  # what follows may write into it

            handles.append(module.register_forward_pre_hook(keep))
    found[block] = _output(streams, block, block, handles)
    return found


def _output(streams: Streams, block: str, layer: str, handles: Sequence[RemovableHandle] = ()) -> Tensor:
    found = []
    module = streams.models["pruned"].get_submodule(layer)
    handle = module.register_forward_hook(lambda module, args, output: found.append(first_of(output).clone().cpu()))
    _first(streams, block, [*handles, handle])
    return found[0]


def _first(streams: Streams, block: str, handles: Sequence) -> None:
    """Run the block on the first batch alone."""
    try:
        played = streams.play(block, ["pruned"])
        next(played)
        played.close()
    finally:
        for handle in handles:
            handle.remove()


def scale_of(norm: nn.Module) -> Tensor:
    """What a batch normalization in eval mode multiplies each channel by."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    return scale if norm.weight is None else scale * norm.weight.detach()
