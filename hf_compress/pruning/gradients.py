"""How much a model's loss depends on units and on what is read from them: squared gradients of single examples.

One backward pass a batch gives, for every example, the derivative of its loss with respect to a mask on each unit,
`sum over positions of g x`. The mean of its absolute value is the criterion of Molchanov et al. 2017
(https://arxiv.org/abs/1611.06440); the mean of its square is the diagonal of the Fisher information of the masks, as
in Kwon et al. 2022 (https://arxiv.org/abs/2204.09656), which stands for the Hessian of optimal brain damage. The same
pass gives the derivatives with respect to each output of the layers that read the units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import CompressionError
from ..measurement import evaluating, frozen
from .speed import plain_attention
from .units import Slice, UnitGroup


if TYPE_CHECKING:
    from ..registry import Batch, StepContext


UNLABELLED = -100  # the label of tokens without one, in PyTorch and Transformers
NARROW = 256  # units of a layer, between which the information is kept too
ROOM = 2**28  # bytes that autograd may hold for one backward pass


class MicroBatches:
    """Cuts batches into parts whose backward pass has room; the first example ever, on its own, tells how large.

    Args:
        model (`nn.Module`): its weights do not count, they are there anyway.
        room (`int`, *optional*, defaults to 256 MiB): bytes that autograd may hold for a part. One example at a time
            is the least.
    """

    def __init__(self, model: nn.Module, room: int = ROOM):
        self._weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._room = room
        self._held = 0.0  # bytes for each element of the inputs; 0 as long as it is not known

    def of(self, batch: Batch) -> Iterator[Batch]:
        """The parts of `batch`, in order; each one's graph is to be built within [`watched`]."""
        elements = sum(value[0].numel() for value in batch.values())
        start, examples = 0, len(next(iter(batch.values())))
        while start < examples:
            end = start + (max(1, int(self._room / (self._held * elements))) if self._held else 1)
            yield {name: value[start:end] for name, value in batch.items()}
            start = end

    @contextmanager
    def watched(self, part: Batch) -> Iterator[None]:
        """Count what autograd keeps of `part`, if it is not known how much that is."""
        if self._held:
            yield
            return
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # the tensor itself would hold on to its graph

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
        self._held = max(1, sum(kept.values())) / sum(value.numel() for value in part.values())


@dataclass
class Sensitivity:
    """Expected derivatives of the loss of one example.

    Attributes:
        slopes (`dict[str, torch.Tensor]`): by group, the mean absolute derivative by each mask, `(size,)`.
        units (`dict[str, torch.Tensor]`): by group, the mean squared one, `(size,)`.
        outputs (`dict[str, torch.Tensor]`): by layer that reads units, the expected squared derivative of an example's
            loss with respect to an output at one position, `(out,)`, times the positions of an example.
        between (`dict[str, torch.Tensor]`): by group of up to `NARROW` units, the whole Fisher information of the
            masks, `E[g g^T]` of shape `(size, size)`, of which `units` is the diagonal. In wider ones its sums over
            many units would be those of chance, with the number of examples there is.
    """

    slopes: dict[str, Tensor]
    units: dict[str, Tensor]
    outputs: dict[str, Tensor]
    between: dict[str, Tensor]


def sensitivity(
    model: nn.Module, groups: Sequence[UnitGroup], batches: Iterable[Batch], context: StepContext
) -> Sensitivity:
    """Go through `batches`, which have labels, in eval mode; `model` is left as it was, without gradients.

    Raises:
        [`CompressionError`]: without examples, or if a gradient is not finite.
    """
    watcher = _Watcher(groups)
    handles = watcher.attach(model)
    parts = MicroBatches(model)
    try:
        with evaluating(model), frozen(model), torch.enable_grad():
            for part in (part for batch in batches for part in parts.of(batch)):
                watcher.begin(part)
                with parts.watched(part), plain_attention(model, part):
                    # examples do not mix in eval mode: times their number, the mean's gradient is that of each loss
                    loss = context.loss(model, part) * _averaged(part)
                loss.backward()
                watcher.end()
    finally:
        for handle in handles:
            handle.remove()
    return watcher.result()


def _averaged(batch: Batch) -> int:
    """How many losses the batch's is the mean of: those of its examples, or of all their labelled tokens, whose sum is
    then the loss of an example."""
    labels = batch.get("labels")
    if labels is None or labels.dim() < 2 or labels.is_floating_point():
        return len(next(iter(batch.values())))
    return int((labels != UNLABELLED).sum())


class _Watcher:
    def __init__(self, groups: Sequence[UnitGroup]):
        self.readers: dict[str, list[tuple[UnitGroup, Slice]]] = {}
        for group in groups:
            for part in group.consumers:
                self.readers.setdefault(part.module, []).append((group, part))
        self.units = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
        self.slopes = {name: zeros.clone() for name, zeros in self.units.items()}
        self.outputs: dict[str, Tensor] = {}
        self.between = {g.name: torch.zeros(g.size, g.size, dtype=torch.float64) for g in groups if g.size <= NARROW}
        self.total = 0

    def attach(self, model: nn.Module) -> list:
        handles = []
        for name in self.readers:
            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(self._input_hook(name)))
            handles.append(module.register_forward_hook(self._output_hook(name)))
        return handles

    def begin(self, batch: Batch) -> None:
        self.examples = len(next(iter(batch.values())))
        self.total += self.examples
        # of one batch: groups with several readers add up what these say before it is squared
        self.masks = {name: torch.zeros(self.examples, len(units)) for name, units in self.units.items()}

    def end(self) -> None:
        for name, gradient in self.masks.items():
            if not gradient.isfinite().all():
                raise CompressionError(
                    f"The gradients of {name} are not finite: the loss of a training example is NaN or infinite. "
                    "Check the model and the data, or prune with a method that needs no gradients (magnitude)."
                )
            self.slopes[name] += gradient.double().abs().sum(0)
            self.units[name] += gradient.double().square().sum(0)
            if name in self.between:
                self.between[name] += gradient.double().T @ gradient.double()

    def _input_hook(self, name: str):
        def watch(module: nn.Module, args: tuple) -> tuple:
            # a view of its own: the same tensor may be read by others, whose gradients are not meant
            x = args[0].view_as(args[0]) if args[0].requires_grad else args[0].detach().requires_grad_(True)
            value = x.detach()  # x in its own hook would be a circle that nobody can collect
            x.register_hook(lambda gradient: self._add_masks(name, module, value, gradient))
            return (x, *args[1:])

        return watch

    def _add_masks(self, name: str, module: nn.Module, x: Tensor, gradient: Tensor) -> None:
        product = x * gradient
        channels = 1 if isinstance(module, nn.Conv2d) else product.dim() - 1
        by_channel = product.movedim(channels, 1).flatten(2).sum(2) if product.dim() > 2 else product
        for group, part in self.readers[name]:
            self.masks[group.name] += by_channel[:, part.index.to(x.device)].sum(2).float().cpu()

    def _output_hook(self, name: str):
        def watch(module: nn.Module, args: tuple, output: Tensor) -> None:
            output.register_hook(lambda gradient: self._add_outputs(name, module, gradient))

        return watch

    def _add_outputs(self, name: str, module: nn.Module, gradient: Tensor) -> None:
        channels = 1 if isinstance(module, nn.Conv2d) else gradient.dim() - 1
        squares = gradient.double().square().movedim(channels, 0).flatten(1).sum(1).cpu()
        self.outputs[name] = self.outputs.get(name, 0) + squares

    def result(self) -> Sensitivity:
        if not self.total:
            raise CompressionError("calibration: the data has no example to take gradients of; give at least one.")
        found = (self.slopes, self.units, self.outputs, self.between)
        return Sensitivity(*({name: values / self.total for name, values in kind.items()} for kind in found))
