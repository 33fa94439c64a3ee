"""Depth pruning: whole residual blocks, or whole layers of a Transformer, leave the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from torch import nn

from ..errors import UnsupportedModelError
from ..registry import StepContext, register_method
from ..structure import Removed
from .blocks import removable, without
from .inventory import find_units
from .iteration import check_reach
from .options import RepairOptions
from .preconditions import check_repair
from .repair import pruned_readers, repairing
from .sensitivity import Reference
from .units import UnitGroup


@dataclass(frozen=True)
class DepthOptions(RepairOptions):
    """Options of `prune: depth`: those of the repair, and

    Args:
        probe_samples (`int`, *optional*, defaults to 256): training examples on which blocks are tried out.
    """

    probe_samples: int = 256

    def __post_init__(self):
        super().__post_init__()
        self._at_least_one("probe_samples")


@register_method(
    "prune",
    "depth",
    options=DepthOptions,
    needs=("calibration",),
    targets=("macs", "params"),
    paper="https://arxiv.org/abs/2403.03853",
    supports=("conv", "bert", "timm"),
)
def prune_depth(model: nn.Module, options: DepthOptions, context: StepContext) -> None:
    """Remove the blocks without which the predictions move least, one after another."""
    reference = Reference(model, context.calibration(options.probe_samples))
    check_repair(model, options, context)
    blocks, kept = removable(model, reference.batches[0])
    target, budget = context.target, context.budget
    now = context.cost(model).of(target)
    saved = {}
    for name in blocks:
        with without(model, [name]):
            saved[name] = now - context.cost(model).of(target)
    check_reach(target, budget, now, now - sum(saved.values()), context.baseline_cost.of(target), advice="")
    readers = partial(pruned_readers, model, groups=_groups(model) if options.repair else [])
    gone = _choose(model, blocks, saved, now - budget, reference, context)
    with repairing(model, readers, options, context) if options.repair else nullcontext():
        for name in gone:
            model.set_submodule(name, Removed.replacing(model.get_submodule(name)))
    context.note(layers={name: {"kept": int(name not in gone), "of": 1} for name in blocks})
    if kept:
        context.note(kept=kept)
    _close_up(model, gone)


def _choose(
    model: nn.Module,
    blocks: Sequence[str],
    saved: Mapping[str, float],
    wanted: float,
    reference: Reference,
    context: StepContext,
) -> list[str]:
    """The blocks to take out so that at least `wanted` is saved: the one that costs the predictions least for what it
    saves, again and again; in the end those stay that are not needed."""
    gone: list[str] = []
    before = 0.0
    for _ in context.progress(blocks, "blocks"):
        if math.fsum(saved[name] for name in gone) >= wanted:
            break
        losses = {}
        for name in blocks:
            if name not in gone:
                with without(model, [*gone, name]):
                    losses[name] = reference.divergence(model)
        if not gone:
            context.note(sensitivity={name: [{"kept": 0.0, "loss": round(loss, 6)}] for name, loss in losses.items()})
        costs = {name: (loss - before) / saved[name] if saved[name] > 0 else math.inf for name, loss in losses.items()}
        gone.append(min(costs, key=costs.get))
        before = losses[gone[-1]]
    for name in reversed(gone.copy()):
        if math.fsum(saved[other] for other in gone if other != name) >= wanted:
            gone.remove(name)
    return gone


def _groups(model: nn.Module) -> list[UnitGroup]:
    """The units whose readers are fitted behind a gap."""
    try:
        return find_units(model).groups
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"repair: which layers make up for a missing block is not known here ({error}) Give repair: false, and "
            "blocks leave all the same."
        ) from error


def _close_up(model: nn.Module, gone: Sequence[str]) -> None:
    """Let the layers of an encoder close up, which its configuration can say, so that it loads anywhere."""
    path, _, index = gone[0].rpartition(".")
    container = model.get_submodule(path)
    left = [layer for layer in container if not isinstance(layer, Removed)] if index.isdigit() else []
    if not left or len(container) != getattr(model.config, "num_hidden_layers", None):
        return
    model.set_submodule(path, nn.ModuleList(left))
    if kinds := getattr(model.config, "layer_types", None):  # of attention, one a layer
        model.config.layer_types = [
            kind for kind, layer in zip(kinds, container, strict=True) if not isinstance(layer, Removed)
        ]
    model.config.num_hidden_layers = len(left)
    parent = model.get_submodule(path.rpartition(".")[0])
    if hasattr(parent, "n_layers"):  # DistilBERT counts them there too
        parent.n_layers = len(left)
    for position, layer in enumerate(left):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = position
