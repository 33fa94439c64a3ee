"""What single layers mean to the predictions: units of one group are silenced, the rest is as it was.

Scores of units, and the losses that elimination adds up, say little of how layers compare: errors of different layers
do not simply add up in what the network predicts. How far the predictions move is therefore measured, at a few widths
of each group, and between these widths the curve follows the losses at hand.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import PchipInterpolator
from torch import Tensor, nn

from ..errors import CompressionError, UnsupportedModelError
from ..measurement import device_of, evaluating
from .blocks import chain, check_chain, entering, run, without
from .elimination import Order
from .masks import masked
from .speed import quick_texts
from .token_weights import without_padding
from .units import UnitGroup


if TYPE_CHECKING:
    from ..registry import Batch, StepContext

# Of the softmax in the divergence. At 1, a classifier that is sure of its examples shows no error until it is large.
TEMPERATURE = 2.0
ROOM = 2**28  # bytes of predictions to compare with


def divergence(now: Tensor, then: Tensor, exclusive: bool = True) -> float:
    """The mean divergence of logits `(examples, classes)` from others: KL of the softened classes, or, where there is
    one logit or the classes are not `exclusive`, the squared error."""
    if now.shape[-1] == 1 or not exclusive:
        return float((now - then).square().mean())
    now, then = (F.log_softmax(logits / TEMPERATURE, -1) for logits in (now, then))
    return float(F.kl_div(now, then, reduction="batchmean", log_target=True))


class Reference:
    """The predictions of a model, and how far those of others are from them.

    Args:
        model ([`~transformers.PreTrainedModel`]): run in eval mode.
        batches (`Iterable[Batch]`): some hundred examples; labels are not needed. They are held in memory, what enters
            a block waits on disk. Of predictions of tokens from many (a language model's), as many are compared as
            256 MB hold, evenly spread.

    Raises:
        `CompressionError`: without examples.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Batch]):
        self.batches = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
        if not self.batches:
            raise CompressionError("calibration: the data has no example to look at; give at least one.")
        problem = getattr(model.config, "problem_type", None)
        self._exclusive = problem not in ("regression", "multi_label_classification")
        self._start: tuple[list[str], str] | None = None
        self._folder: tempfile.TemporaryDirectory | None = None  # made when something has to wait there
        self.logits = list(self._predictions(model))
        if not all(logits.isfinite().all() for logits in self.logits):
            raise CompressionError("The predictions of the model are not finite; check its weights and the data.")

    def start_from(self, model: nn.Module, block: str | None) -> None:
        """Run what comes before a block of [`chain`] now, and not again: what changes later on needs no more.

        Args:
            model ([`~transformers.PreTrainedModel`]): unchanged; a network that [`check_chain`] accepts.
            block (`str`, *optional*): best not before that of an earlier call; `None` is the beginning.
        """
        if block is None or (self._start is not None and block in self._start[0]):
            self._start = None
        if block is None or (self._start is not None and block == self._start[1]):
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="hf_compress-", ignore_cleanup_errors=True)
        with self._started(model):
            for batch, path in zip(self.batches, self._waiting(), strict=True):
                with quick_texts(model, batch):
                    entered = entering(model, block, batch)["args"][0]
                torch.save(entered, path)  # which has been read
        blocks = chain(model)
        self._start = (blocks[: blocks.index(block)], block)

    def _waiting(self) -> Iterator[Path]:
        """By batch, the file with what enters the block to start from."""
        return (Path(self._folder.name, f"{number:05d}.pt") for number in range(len(self.batches)))

    def divergence(self, model: nn.Module) -> float:
        """How far the predictions of `model` are from those kept, see [`divergence`]."""
        total = 0.0
        with closing(self._predictions(model)) as predictions:  # which puts the model back, whatever happens here
            for now, then in zip(predictions, self.logits, strict=True):
                total += divergence(now, then, self._exclusive) * len(then)
        return total / sum(map(len, self.logits))

    def _predictions(self, model: nn.Module) -> Iterator[Tensor]:
        with evaluating(model), self._started(model):
            for batch in self.batches:
                with quick_texts(model, batch):
                    outputs = run(model, batch)
                if getattr(outputs, "logits", None) is None:
                    others = ", ".join(outputs) if isinstance(outputs, dict) else "a tuple"
                    raise UnsupportedModelError(
                        f"{type(model).__name__} gives no logits to compare, but {others}; give a model "
                        "with a head that gives logits, or prune with magnitude."
                    )
                logits = without_padding(outputs.logits.float(), batch.get("attention_mask"))
                yield logits[:: math.ceil(len(self.batches) * logits.nbytes / ROOM)].clone()

    @contextmanager
    def _started(self, model: nn.Module) -> Iterator[None]:
        """What comes before the block to start from is left out, and what entered it is put in, batch after batch."""
        if self._start is None:
            yield
            return
        before, block = self._start
        waiting = self._waiting()

        def enter(module: nn.Module, args: tuple) -> tuple:
            return (torch.load(next(waiting), weights_only=True).to(device_of(model)), *args[1:])

        with without(model, before):
            handle = model.get_submodule(block).register_forward_pre_hook(enter)
            try:
                yield
            finally:
                handle.remove()


def stops(group: UnitGroup, shares: Sequence[float]) -> list[int]:
    """Numbers of units of `group` that are gone when `shares` of it are kept: each once, never none or too many."""
    most = group.size - group.minimum
    found = {gone for gone in (round((1 - share) * group.size) for share in shares) if 0 < gone <= most}
    return sorted(found | {group.size} if group.removable or most == group.size else found)


def divergences(
    model: nn.Module,
    groups: Sequence[UnitGroup],
    orders: Mapping[str, Order],
    shares: Sequence[float],
    reference: Reference,
    context: StepContext,
    means: Mapping[str, Tensor] | None = None,
) -> dict[str, dict[int, float]]:
    """How far the predictions move when a group has lost its first units.

    Args:
        model ([`~transformers.PreTrainedModel`]): left as it was.
        groups (`Sequence[UnitGroup]`), orders (`Mapping[str, Order]`): what goes first. Where an order has fitted
            weights for a width, the readers of the group are given them.
        shares (`Sequence[float]`): the fractions to keep that are tried.
        reference ([`Reference`]): the predictions to compare with.
        means (`Mapping[str, torch.Tensor]`, *optional*): by reader, the mean of its inputs, `(n,)`: fitted weights
            keep the mean outputs.

    Returns:
        `dict[str, dict[int, float]]`: by group and number of units gone, the mean divergence.
    """
    found: dict[str, dict[int, float]] = {}
    blocks = _blocks(model, reference)
    starts = {group.name: _first_reader(group, blocks) for group in groups}
    for group in context.progress(sorted(groups, key=lambda group: starts[group.name]), "sensitivity"):
        reference.start_from(model, blocks[starts[group.name]] if starts[group.name] else None)
        order = orders[group.name]
        found[group.name] = {}
        for gone in stops(group, shares):
            with _silenced(model, group, order, gone, means):
                found[group.name][gone] = reference.divergence(model)
    reference.start_from(model, None)
    return found


def curves(groups: Iterable[UnitGroup], measured: Mapping[str, Mapping[int, float]]) -> dict[str, list[dict]]:
    """What [`divergences`] found, as a report draws it: by group, the loss at fractions of its units."""
    return {
        group.name: [
            {"kept": round(1 - gone / group.size, 4), "loss": round(loss, 6)}
            for gone, loss in measured[group.name].items()
        ]
        for group in groups
    }


def _blocks(model: nn.Module, reference: Reference) -> list[str]:
    """The blocks of a network that is a chain of them."""
    try:
        check_chain(model, reference.batches[0])
    except UnsupportedModelError:
        return []
    return chain(model)


def _first_reader(group: UnitGroup, blocks: Sequence[str]) -> int:
    """The first block that reads units of `group`; 0 where something else does, which may run before."""
    homes = [[n for n, block in enumerate(blocks) if s.module.startswith(f"{block}.")] for s in group.consumers]
    return min(home[0] if home else 0 for home in homes)


@contextmanager
def _silenced(
    model: nn.Module, group: UnitGroup, order: Order, gone: int, means: Mapping[str, Tensor] | None
) -> Iterator[None]:
    if group.removable and gone == group.size:
        with without(model, [group.block]):
            yield
        return
    keep = torch.ones(group.size, dtype=torch.bool)
    keep[order.units[:gone]] = False
    fitted = _fitted(model, group, order.weights[gone], means) if gone in order.weights else nullcontext()
    with masked(model, [group], {group.name: keep}), fitted:
        yield


@contextmanager
def _fitted(model: nn.Module, group: UnitGroup, weights: Sequence[Tensor], means: Mapping[str, Tensor]):
    """The readers of a group with other weights, and the outputs they had in the mean."""
    handles, originals = [], []
    try:
        for part, weight in zip(group.consumers, weights, strict=True):
            module = model.get_submodule(part.module)
            originals.append((module, module.weight.data))
            change = module.weight.detach().flatten(1).cpu().double() - weight
            shift = (change @ means[part.module].double()).to(module.weight)
            shift = shift.view((-1, 1, 1) if isinstance(module, nn.Conv2d) else (-1,))
            module.weight.data = weight.to(module.weight).view_as(module.weight)
            handles.append(module.register_forward_hook(lambda module, args, output, shift=shift: output + shift))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, weight in originals:
            module.weight.data = weight


def corrected(order: Order, measured: Mapping[int, float]) -> Order:
    """`order` with losses that go through what was `measured` (but never fall), and else follow their own curve.

    Without its fitted weights, which have been measured with by now.
    """
    points = [(gone, loss) for gone, loss in sorted(measured.items()) if float(order.losses[gone]) > 0]
    if not points:
        return Order(order.units, order.losses)
    places = [gone for gone, _ in points]
    factors = [math.log(max(loss, 1e-12) / float(order.losses[gone])) for gone, loss in points]
    if len(points) > 1:  # before the first point it goes on as between the first two: no kink that draws the choice
        slope = (factors[1] - factors[0]) / (places[1] - places[0])
        places, factors = [0, *places], [factors[0] - slope * places[0], *factors]
        curve = PchipInterpolator(places, factors)(np.minimum(np.arange(len(order.losses)), places[-1]))
    else:
        curve = np.full(len(order.losses), factors[0])
    factor = np.exp(curve)
    losses = np.maximum.accumulate(order.losses.numpy() * factor)  # more gone never loses less
    return Order(order.units, torch.from_numpy(losses))
