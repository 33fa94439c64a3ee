"""Repair after surgery: what reads pruned units is fitted anew, so that each block gives what it gave before.

Block by block from the input, every layer that reads pruned units gets the weights with which the block of the pruned
network, on the activations it really receives, comes nearest to the block of the dense one: a ridge regression whose
penalty draws towards the weights at hand. Where the layer's output is added to a shortcut, the sum is what is fitted,
so that a layer also makes up for what went wrong before it. Then, if asked for, all weights of the block are refined
together. Errors of tokens count as much as the predictions depend on them ([`token_weights`]). In the end batch
normalizations are told the statistics of what they read now, without a change to what the network gives. No label is
needed.

Kwon et al. 2022 (https://arxiv.org/abs/2204.09656) refit scales of units this way, Park et al. 2024
(https://arxiv.org/abs/2308.03449) whole weights of Transformers; here convolutions and their batch normalizations are
fitted too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CompressionError
from ..measurement import twin, unshare
from ..measurement.moments import input_rows
from ..structure import Constant
from .fits import Fit, find_fits, scale_of
from .normalization import reestimate
from .refinement import refine_block
from .streams import Place, Streams, watch
from .surgery import ROWS
from .units import UnitGroup, side_size


if TYPE_CHECKING:
    from ..registry import StepContext

SMALL = 1e-3  # a channel that batch normalization scales by less than this share of the largest is left alone


@contextmanager
def repairing(
    model: nn.Module, layers: Callable[[nn.Module], Sequence[str]], options: Any, context: StepContext
) -> Iterator[Callable[[], None]]:
    """Repair `model` after what is cut out of it here, and on the way whenever what this gives is called.

    Args:
        model ([`~transformers.PreTrainedModel`]): dense on entering, smaller on leaving; see [`check_repair`].
        layers (`Callable`): given the dense model, names the layers to fit; asked on leaving.
        options: with `samples`, `ridge` and `refine`, see [`repair`].
        context ([`StepContext`]): gives the examples; gets the note `repair`.
    """
    dense = twin(model)  # what is cut is replaced, so that no memory is needed for all of it twice
    figures = {name: getattr(options, name) for name in ("samples", "ridge", "refine")}
    with following_rows(model) as rows:

        def now() -> None:
            unshare(dense, model)  # from here on weights are changed in place
            left = repair(model, dense, layers(dense), context, rows=rows(), **figures)
            context.note(repair={name: round(error, 4) for name, error in left.items()})

        yield now
        now()
    reestimate(model, context.calibration(options.samples))


@contextmanager
def following_rows(model: nn.Module) -> Iterator[Callable[[], dict[str, Tensor]]]:
    """Gives what tells, by layer, which rows are left of those that it has on entering."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for layer in layers:
        setattr(layer, ROWS, torch.arange(side_size(layer, "out")))

    def rows() -> dict[str, Tensor]:
        return {name: getattr(module, ROWS) for name, module in model.named_modules() if hasattr(module, ROWS)}

    try:
        yield rows
    finally:
        for layer in layers:
            delattr(layer, ROWS)


def pruned_readers(pruned: nn.Module, dense: nn.Module, groups: Iterable[UnitGroup]) -> list[str]:
    """The layers that read fewer units in `pruned` than in `dense`, and the constants that stand for such layers."""
    names = {part.module for group in groups for part in group.consumers}
    found = {_standing(pruned, name) for name in names}
    return sorted(name for name in found if name is not None and _reads_less(pruned, dense, name))


def _standing(pruned: nn.Module, name: str) -> str | None:
    """The layer `name`, or the [`Constant`] that stands for it or for what was around it; `None` if none is left."""
    while name:
        with suppress(AttributeError):
            module = pruned.get_submodule(name)
            return name if isinstance(module, nn.Linear | nn.Conv2d | Constant) else None
        name = name.rpartition(".")[0]
    return None


def _reads_less(pruned: nn.Module, dense: nn.Module, name: str) -> bool:
    module = pruned.get_submodule(name)
    return isinstance(module, Constant) or side_size(module, "in") < side_size(dense.get_submodule(name), "in")


def repair(
    pruned: nn.Module,
    dense: nn.Module,
    layers: Sequence[str],
    context: StepContext,
    *,
    samples: int = 2048,
    ridge: float = 1e-3,
    refine: int = 0,
    rows: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Fit the `layers` of `pruned`, in place, so that its blocks give what those of `dense` give.

    Args:
        pruned ([`~transformers.PreTrainedModel`]): after the surgery; run in eval mode.
        dense ([`~transformers.PreTrainedModel`]): before it, with the same blocks.
        layers (`Sequence[str]`): names of the `Linear` and `Conv2d` that read pruned units. Those outside the blocks
            are left as they are.
        context ([`StepContext`]): gives the examples; labels are not needed.
        samples (`int`, *optional*, defaults to 2048): how many.
        ridge (`float`, *optional*, defaults to 1e-3): the penalty on changes, as a share of the mean energy of what
            the layer reads.
        refine (`int`, *optional*, defaults to 0): how often the weights of all layers in a block, on both sides of the
            pruned units, are brought nearer together to what the dense block gives; in passes over the examples.
        rows (`Mapping[str, torch.Tensor]`, *optional*): by layer, which rows of the dense one it has; all by default.

    Returns:
        `dict[str, float]`: by layer (and refined block), the squared error that is left, as a share of that before.

    Raises:
        [`UnsupportedModelError`]: if the blocks do not form a chain.
    """
    left: dict[str, float] = {}
    models, batches = {"dense": dense, "pruned": pruned}, context.calibration(samples)
    with (
        tempfile.TemporaryDirectory(prefix="hf_compress-") as folder,
        closing(Streams(models, batches, Path(folder), "dense")) as streams,
    ):
        for block in context.progress(streams.blocks, "repair"):
            fits = find_fits(streams, block, layers)
            if fits:
                streams.look(block, "dense", {_place(fit) for fit in fits})
            for fit in fits:
                left[fit.layer] = _refit(streams, block, fit, ridge, (rows or {}).get(fit.layer))
            if fits and refine:
                kept = [index for name, index in (rows or {}).items() if name.startswith(f"{block}.")]
                left[block] = refine_block(streams, block, refine, context.seed, kept[-1] if kept else None)
            for _ in streams.play(block, keep=True):
                pass
    return left


class _Regression:
    """Sums for a ridge regression of rows `(count, m)` on rows `(count, n)`, with an intercept or without.

    Args:
        start (`torch.Tensor`): the coefficients at hand, `(n + 1, m)`, the intercept last.
        intercept (`bool`): whether it may change.
    """

    def __init__(self, start: Tensor, intercept: bool):
        self.start, self.intercept = start, intercept
        self.gram = start.new_zeros(len(start), len(start))
        self.cross, self.energy = torch.zeros_like(start), 0.0

    def add(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        x, y = torch.cat([x, x.new_ones(len(x), 1)], dim=1).float(), y.float()
        if weights is not None:
            x, y = (rows * weights.sqrt()[:, None] for rows in (x, y))
        self.gram += x.T @ x
        self.cross += x.T @ y
        self.energy += float(y.double().square().sum())

    def solve(self, ridge: float) -> tuple[Tensor, float]:
        """The coefficients, drawn towards those at hand, and the error that is left as a share of theirs."""
        free = len(self.start) if self.intercept else len(self.start) - 1
        penalty = torch.zeros_like(self.gram.diagonal())
        if len(penalty) > 1:  # a layer that reads nothing but zeros keeps its weights
            penalty[:-1] = (ridge * self.gram.diagonal()[:-1].mean()).clamp(min=1e-12)
        system, residual = self.gram + torch.diag(penalty), self.cross - self.gram @ self.start
        found = self.start.clone()
        found[:free] += torch.linalg.solve(system[:free, :free], residual[:free])
        before, after = self._error(self.start), self._error(found)
        return found, after / before if before > 0 else 1.0

    def _error(self, coefficients: Tensor) -> float:
        fitted = float((coefficients * (self.gram @ coefficients - 2 * self.cross)).sum())
        return max(0.0, self.energy + fitted)


def _refit(streams: Streams, block: str, fit: Fit, ridge: float, kept: Tensor | None) -> float:
    """Fit one layer, which has these rows of the dense one, in place; the error that is left, as a share."""
    pruned = streams.models["pruned"]
    layer, norm = pruned.get_submodule(fit.layer), fit.norm and pruned.get_submodule(fit.norm)
    scale = scale_of(norm) if norm is not None and fit.joint else torch.ones(1)
    usable = scale.abs() > SMALL * scale.abs().max()
    seen: dict[Place, Tensor] = {}
    place = _place(fit)
    places = {(fit.layer, "reads"), (fit.layer, "gives"), place}
    handles = [watch(pruned.get_submodule(name), (name, kind), seen) for name, kind in places]
    last = 1 if isinstance(layer, nn.Conv2d) else -1  # the dimension of the channels
    regression = None
    try:
        with closing(streams.play(block, ["pruned"])) as batches:
            for weights, dense in batches:
                gives, now, wanted = (
                    tensor.movedim(last, -1) for tensor in (seen[fit.layer, "gives"], seen[place], dense[place])
                )
                wanted = wanted if kept is None else wanted[..., kept.to(wanted.device)]
                # what the layer has to give for the sum to be that of the dense network; the other summands stay
                target = gives + (wanted - now) / torch.where(usable, scale, 1.0).to(gives)
                if weights is not None and target.shape[:2] != weights.shape:
                    weights = None  # no tokens
                mask = None if weights is None else (weights > 0).to(target.device)
                target = target.flatten(0, -2) if mask is None else target[mask]
                weights = None if mask is None else weights.to(target)[mask]
                if regression is None:
                    regression = _Regression(_coefficients(layer).cpu(), _has_intercept(layer, norm))
                for rows in (
                    input_rows(layer, seen[fit.layer, "reads"], mask)
                    if not isinstance(layer, Constant)
                    else [target[:, :0]]
                ):
                    regression.add(rows, target[: len(rows)], weights)
                    target = target[len(rows) :]  # tokens come all at once, patches of images some at a time
    finally:
        for handle in handles:
            handle.remove()
    if not (regression.gram.isfinite().all() and regression.cross.isfinite().all()):
        raise CompressionError(f"{fit.layer} reads, or is to give, values that are not finite; check the weights.")
    found, error = regression.solve(ridge)
    _set_coefficients(layer, norm, torch.where(usable.to(found.device), found, regression.start), scale)
    return error


def _place(fit: Fit) -> Place:
    """Where the sum of the layer's output and what joins it is read, or, without such a sum, where the output is."""
    return (fit.joint, "reads") if fit.joint else (fit.layer, "gives")


def _has_intercept(layer: nn.Module, norm: nn.Module | None) -> bool:
    return layer.bias is not None or (norm is not None and norm.bias is not None)


def _coefficients(layer: nn.Module) -> Tensor:
    """`(n + 1, m)`, the intercept last, in double precision."""
    if isinstance(layer, Constant):
        return layer.bias.detach().double()[None]
    weight = layer.weight.detach().flatten(1).T.double()
    bias = weight.new_zeros(1, weight.shape[1]) if layer.bias is None else layer.bias.detach().double()[None]
    return torch.cat([weight, bias])


@torch.no_grad()
def _set_coefficients(layer: nn.Module, norm: nn.Module | None, found: Tensor, scale: Tensor) -> None:
    if not isinstance(layer, Constant):
        layer.weight.copy_(found[:-1].T.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(found[-1])
    elif norm is not None and norm.bias is not None:
        norm.bias += found[-1].to(norm.bias) * scale_of(norm)
