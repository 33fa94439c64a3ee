"""First and second moments of what enters a layer, summed up over calibration batches as they pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn

from ..errors import CompressionError
from .states import device_of, evaluating


if TYPE_CHECKING:
    from ..registry import Batch

CHUNK = 2**24  # elements of an unfolded image batch that are held at once


class Moments:
    """Weighted sums over the inputs `x` of a layer: of `x x^T`, `(n, n)`, of `x`, `(n,)`, and of 1; float32."""

    def __init__(self, width: int, device: torch.device):
        self.square = torch.zeros(width, width, device=device)
        self.sum = torch.zeros(width, device=device, dtype=torch.float64)
        self.count = 0

    def add(self, rows: Tensor, weights: Tensor | None = None) -> None:
        """Take in a batch of inputs, `(count, n)`, which count 1 each or have `weights`, `(count,)`."""
        rows = rows.float()
        weighted = rows if weights is None else rows * weights.to(rows)[:, None]
        self.square.addmm_(weighted.T, rows)
        self.sum += weighted.sum(0)
        self.count += len(rows) if weights is None else float(weights.sum())

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count

    def matrix(self, centred: bool) -> Tensor:
        """`E[x x^T]`, about the mean if `centred`, in double precision."""
        second = self.square.double() / self.count
        return second - torch.outer(self.mean, self.mean) if centred else second


def input_moments(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    weigh: Callable[[Batch], Mapping[str, Tensor]] | None = None,
) -> dict[str, Moments]:
    """Run batches through the model and sum up what enters every layer.

    Args:
        model ([`~transformers.PreTrainedModel`]): run in eval mode, without gradients, and left as it was.
        layers (`Mapping[str, nn.Module]`): the `Linear` and `Conv2d` whose inputs to look at, by name. A convolution's
            input is the patch under its kernel, `(in kh kw,)`, padding included.
        batches (`Iterable[Batch]`): inputs; tokens that the `attention_mask` leaves out are not counted.
        weigh (`Callable[[Batch], Mapping[str, torch.Tensor]]`, *optional*): gives for a batch, by layer, what each of
            its tokens counts, `(examples, length)`; those of a layer that it does not name count the same.

    Returns:
        `dict[str, Moments]`: by name; layers that were never run are missing. Layers that read the same
        tensor (query, key and value) share one.
    """
    watcher = _Watcher()
    device = device_of(model)
    with evaluating(model):
        for batch in batches:
            inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
            weights = weigh(inputs) if weigh else {}  # which may run the model, so nobody watches yet
            with watcher.watching(layers, inputs.get("attention_mask"), weights):
                model(**inputs)
    return {name: moments for name, moments in watcher.moments.items() if moments.count}


class _Watcher:
    def __init__(self):
        self.moments: dict[str, Moments] = {}
        self.followers: set[str] = set()

    @contextmanager
    def watching(
        self, layers: Mapping[str, nn.Module], mask: Tensor | None, weights: Mapping[str, Tensor]
    ) -> Iterator[None]:
        self.weights = weights
        self.mask = mask.bool() if mask is not None and mask.ndim == 2 else None
        self.latest: tuple[Tensor, Moments] | None = None
        handles = [module.register_forward_pre_hook(self.hook(name)) for name, module in layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def hook(self, name: str):
        def look(module: nn.Module, args: tuple) -> None:
            values = args[0].detach()
            linear = isinstance(module, nn.Linear)
            again = linear and self.latest is not None and self.latest[0] is args[0]
            if name not in self.moments:
                if again:
                    self.followers.add(name)
                width = module.weight[0].numel()
                self.moments[name] = self.latest[1] if again else Moments(width, module.weight.device)
            moments = self.moments[name]
            if again and moments is self.latest[1]:
                return
            if name in self.followers:
                raise CompressionError(
                    f"{name} shares its input with another layer only sometimes; weighting 'activation' cannot "
                    "follow that. Exclude the layer, or take weighting 'none'."
                )
            if name in self.weights and linear and values.shape[:2] == self.weights[name].shape:
                weights = self.weights[name].to(values.device)
                moments.add(values[weights > 0], weights[weights > 0])
            else:
                for rows in input_rows(module, values, self.mask):
                    moments.add(rows)
            self.latest = (args[0], moments) if linear else None

        return look


def input_rows(module: nn.Linear | nn.Conv2d, values: Tensor, mask: Tensor | None = None) -> Iterator[Tensor]:
    """What a layer reads, as rows `(count, n)`, some of a batch at a time: tokens that count, or patches.

    Args:
        module (`nn.Linear` or `nn.Conv2d`): the layer.
        values (`torch.Tensor`): a batch of its inputs.
        mask (`torch.BoolTensor` of shape `(examples, length)`, *optional*): which tokens count.
    """
    if isinstance(module, nn.Conv2d):
        yield from _patches(module, values)
    elif mask is not None and values.ndim == 3 and values.shape[:2] == mask.shape:
        yield values[mask.to(values.device)]
    else:
        yield values.flatten(0, -2) if values.ndim > 1 else values[None]


def _patches(module: nn.Conv2d, images: Tensor) -> Iterator[Tensor]:
    """The patches under the kernel, `(count, in kh kw)`, a few images at a time."""
    images = _padded(module, images if images.ndim == 4 else images[None])
    elements = module.weight[0].numel() * images.shape[-2] * images.shape[-1]
    elements //= module.stride[0] * module.stride[1]
    for part in images.float().split(max(1, CHUNK // max(1, elements))):
        columns = F.unfold(part, module.kernel_size, dilation=module.dilation, stride=module.stride)
        yield columns.transpose(1, 2).flatten(0, 1)


def _padded(module: nn.Conv2d, images: Tensor) -> Tensor:
    """The images with what the layer puts around them."""
    if isinstance(module, Conv2dSame):  # as TensorFlow does, by the images' size
        return pad_same(images, module.kernel_size, module.stride, module.dilation)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(images, _padding(module), mode=mode)


def _padding(module: nn.Conv2d) -> list[int]:
    """How many pixels go to the left, the right, the top and the bottom."""
    sides: list[int] = []
    for axis in (1, 0):
        if isinstance(module.padding, str):
            total = module.dilation[axis] * (module.kernel_size[axis] - 1) if module.padding == "same" else 0
            sides += [total // 2, total - total // 2]
        else:
            sides += [module.padding[axis]] * 2
    return sides
