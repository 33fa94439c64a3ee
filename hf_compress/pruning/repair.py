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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..measurement import twin, unshare
from ..structure import Constant, Removed
from .behind import refit_behind
from .blocks import chain
from .fits import Fit, find_fits, scale_of
from .normalization import reestimate
from .refinement import refine_block
from .regression import Regression
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


def pruned_readers(pruned: nn.Module, dense: nn.Module, groups: Sequence[UnitGroup]) -> list[str]:
    """The layers of `pruned` to fit: those that read fewer of the `groups`' units than in `dense`, the constants that
    stand for such layers, and what makes up for blocks that have left, see [`_behind_gap`]."""
    names = {part.module for group in groups for part in group.consumers}
    found = {_standing(pruned, name) for name in names} - {None}
    narrower = {name for name in found if _reads_less(pruned, dense, name)}
    inner, behind = _behind_gap(pruned, dense, groups)
    return sorted(narrower | (inner & found) | behind)


def _behind_gap(pruned: nn.Module, dense: nn.Module, groups: Sequence[UnitGroup]) -> tuple[set[str], set[str]]:
    """What makes up for blocks that are in `dense` and not in `pruned`: in the blocks behind the first of them, the
    layers that read what their block makes itself, for they add to the stream; and, if no such layer is behind the
    last of them, every plain layer that is."""
    blocks = [name for name in chain(dense) if not _is_removed(dense, name)]
    gone = [name for name in blocks if _is_removed(pruned, name)]
    if not gone:
        return set(), set()

    def inside(names: Sequence[str]) -> set[str]:
        homes = [f"{name}." for name in names]
        readers = ((group.name, part.module) for group in groups for part in group.consumers)
        return {
            reader
            for group, reader in readers
            if any(group.startswith(home) and reader.startswith(home) for home in homes)
        }

    standing = [name for name in blocks[blocks.index(gone[0]) :] if name not in gone]
    if inside([name for name in standing if blocks.index(name) > blocks.index(gone[-1])]):
        return inside(standing), set()
    names = [name for name, _ in pruned.named_modules()]
    return inside(standing), {name for name in names[names.index(gone[-1]) :] if _is_plain(pruned, name)}


def _is_plain(model: nn.Module, name: str) -> bool:
    """Whether a layer gives its weights times what it reads, and no other layer has the same weights."""
    module = model.get_submodule(name)
    if type(module) not in (nn.Linear, nn.Conv2d) or getattr(module, "groups", 1) != 1:
        return False
    return sum(each is module.weight for _, each in model.named_parameters(remove_duplicate=False)) == 1


def _is_removed(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), Removed)


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
    samples: int = 1024,
    ridge: float = 1e-3,
    refine: int = 0,
    rows: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Fit the `layers` of `pruned`, in place, so that its blocks give what those of `dense` give.

    Args:
        pruned ([`~transformers.PreTrainedModel`]): after the surgery; run in eval mode.
        dense ([`~transformers.PreTrainedModel`]): before it, with the same blocks.
        layers (`Sequence[str]`): names of the `Linear` and `Conv2d` to fit, in the blocks or behind the last one, see
            [`pruned_readers`]. Others are left as they are, which is noted as `unrepaired`.
        context ([`StepContext`]): gives the examples; labels are not needed.
        samples (`int`, *optional*, defaults to 1024): how many.
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
    outside = [name for name in layers if not any(name.startswith(f"{block}.") for block in streams.blocks)]
    if outside:
        examples = partial(context.calibration, samples)
        left |= refit_behind(models, streams.blocks[-1], outside, examples, ridge, rows or {})
    if others := sorted(set(outside) - set(left)):
        context.note(unrepaired=dict.fromkeys(others, "it is in no block, and does not run behind the last one"))
    return left


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
    regression = Regression(fit.layer, layer, norm)
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
                regression.add(seen[fit.layer, "reads"], target, weights)
    finally:
        for handle in handles:
            handle.remove()
    return regression.fit(ridge, usable)


def _place(fit: Fit) -> Place:
    """Where the sum of the layer's output and what joins it is read or given, or, without one, where the output is."""
    return fit.joint or (fit.layer, "gives")
