"""Repair behind the last block: classifiers and convolutions that read pruned channels and are in no block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..measurement import evaluating
from .blocks import first_of, run
from .regression import Regression
from .streams import Place, watch


if TYPE_CHECKING:
    from ..registry import Batch

UNSEEN = 8  # one example in so many is not fitted to, but judges the fit


def refit_behind(
    models: Mapping[str, nn.Module],
    last: str,
    layers: Collection[str],
    examples: Callable[[], Iterable[Batch]],
    ridge: float,
    rows: Mapping[str, Tensor],
) -> dict[str, float]:
    """Fit the `layers` that run after a block so that they give what those of the dense network give, one after
    another; both networks run once on all examples for each.

    Args:
        models (`Mapping[str, nn.Module]`): `pruned`, whose layers are fitted in place, and `dense`.
        last (`str`): the last block.
        layers (`Collection[str]`): names; those that do not run after the block are left as they are.
        examples (`Callable`): gives the batches, the same every time.
        ridge (`float`): see [`Regression.fit`].
        rows (`Mapping[str, torch.Tensor]`): by layer, which rows of the dense one it has, where that is not all.

    Returns:
        `dict[str, float]`: by layer, the squared error that is left, as a share of that before; 1 where the layer
        stays as it is, for want of examples or because nothing helps those that it was not fitted to.
    """
    found = {}
    for name, norm in _running_after(models["pruned"], last, layers, next(iter(examples()))).items():
        layer = models["pruned"].get_submodule(name)
        # one row an example is few for a classifier of many inputs, so some examples tell whether it has learnt them
        fitted, unseen = Regression(name, layer, norm), Regression(name, layer, norm)
        seen: dict[Place, Tensor] = {}
        with ExitStack() as stack:
            for version, kind in (("pruned", "reads"), ("dense", "gives")):
                module = models[version].get_submodule(name)
                stack.callback(watch(module, (version, kind), seen).remove)
                stack.enter_context(evaluating(models[version]))
            number = 0
            for batch in examples():
                for model in models.values():
                    run(model, batch)
                wanted = seen["dense", "gives"].movedim(1 if isinstance(layer, nn.Conv2d) else -1, -1)
                wanted = wanted[..., rows[name]] if name in rows else wanted
                mask = batch.get("attention_mask")
                tokens = mask.float().cpu() if mask is not None and wanted.shape[:-1] == mask.shape else None
                judges = torch.arange(number, number + len(wanted)) % UNSEEN == UNSEEN - 1
                number += len(wanted)
                for regression, chosen in ((fitted, ~judges), (unseen, judges)):
                    if chosen.any():
                        weights = None if tokens is None else tokens[chosen]
                        regression.add(seen["pruned", "reads"][chosen], wanted[chosen], weights)
        found[name] = 1.0 if number < UNSEEN else fitted.fit(ridge, unseen=unseen)
    return found


def _running_after(model: nn.Module, last: str, layers: Collection[str], batch: Batch) -> dict[str, _BatchNorm | None]:
    """The layers that run after a block, in their order, each with the normalization that reads what it gives."""
    names = {module: name for name, module in model.named_modules()}
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    block = model.get_submodule(last)
    with ExitStack() as stack:
        for module in (block, *(m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | _BatchNorm))):
            handle = module.register_forward_hook(
                lambda module, args, output: calls.append((module, args[0], first_of(output)))
            )
            stack.callback(handle.remove)
        stack.enter_context(evaluating(model))
        run(model, {name: value[:1] for name, value in batch.items()})
    order = [module for module, _, _ in calls]
    after = calls[order.index(block) + 1 :]
    return {
        names[module]: next((m for m, reads, _ in after if isinstance(m, _BatchNorm) and reads is gives), None)
        for module, _, gives in after
        if names[module] in layers
    }
