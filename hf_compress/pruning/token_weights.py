"""What each token counts in a block: how far the predictions move with what the block gives there.

A classifier that reads one token (`[CLS]`) needs nothing else of its last block, and little of some tokens before it.
Errors of a block are therefore weighted by the squared derivative of the logits with respect to its output at a token:
the diagonal of the Gauss-Newton matrix (Schraudolph 2002, https://doi.org/10.1162/08997660260028683), of one
projection of the logits (which for two classes is all of it). The tokens of every example count 1 in the mean: few
examples that the model is not sure of would take most of the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..measurement import evaluating, frozen
from .blocks import first_of, run
from .gradients import MicroBatches
from .speed import quick_texts


if TYPE_CHECKING:
    from ..registry import Batch

FLOOR = 0.1  # the least that a token counts, as a share of the mean


def token_weights(
    model: nn.Module, blocks: Sequence[str], batch: Batch, parts: MicroBatches | None = None
) -> dict[str, Tensor]:
    """By block, what its output counts at every token, `(examples, length)`: 1 in the mean of each example, 0 at
    padding.

    Args:
        model ([`~transformers.PreTrainedModel`]): run in eval mode and left as it was.
        blocks (`Sequence[str]`): names of its blocks, see [`chain`].
        batch (`Batch`): inputs; labels are not needed.
        parts ([`MicroBatches`], *optional*): of this model, if many batches are to come.

    Returns:
        `dict[str, torch.Tensor]`: empty where blocks do not give tokens (`(examples, length, features)`), or where the
        model gives no logits.
    """
    parts = parts or MicroBatches(model)
    found = []
    for part in parts.of(batch):
        found.append(_weights(model, blocks, part, parts))
        if not found[0]:
            return {}
    return {name: torch.cat([weights[name] for weights in found]) for name in found[0]}


def _weights(model: nn.Module, blocks: Sequence[str], batch: Batch, parts: MicroBatches) -> dict[str, Tensor]:
    mask = batch.get("attention_mask")
    mask = mask if mask is None or mask.ndim == 2 else None
    outputs: dict[str, Tensor] = {}

    def start(module: nn.Module, args: tuple) -> tuple:
        return (args[0].detach().requires_grad_(True), *args[1:])

    def keeper(name: str):
        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            outputs[name] = first_of(output)
            if outputs[name].dim() != 3:
                raise _NoTokens

        return keep

    handles = [model.get_submodule(blocks[0]).register_forward_pre_hook(start)]
    handles += [model.get_submodule(name).register_forward_hook(keeper(name)) for name in blocks]
    try:
        with evaluating(model), frozen(model), torch.enable_grad():
            with parts.watched(batch), quick_texts(model, batch):
                logits = getattr(run(model, batch), "logits", None)
            if logits is None:
                return {}
            logits = without_padding(logits.float(), mask)
            moves = (logits * _direction(logits.shape[-1]).to(logits)).sum()
            gradients = torch.autograd.grad(moves, list(outputs.values()), allow_unused=True)
    except _NoTokens:
        return {}
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for (name, output), gradient in zip(outputs.items(), gradients, strict=True):
        counts = torch.ones(output.shape[:2]) if mask is None else mask.float().cpu()
        energy = counts if gradient is None else gradient.float().square().sum(-1).cpu() * counts
        mean = energy.sum(1, keepdim=True) / counts.sum(1, keepdim=True)
        share = torch.where(mean > 0, energy / mean, counts)
        found[name] = counts * FLOOR + (1 - FLOOR) * share
    return found


def without_padding(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Of a classifier of tokens, `(examples, length, classes)`, the logits of those that there are, `(tokens,
    classes)`; those of other classifiers as they are."""
    if mask is None or logits.dim() != 3 or logits.shape[:2] != mask.shape:
        return logits
    return logits[mask.to(logits.device) > 0]


class _NoTokens(Exception):
    """Ends a forward whose blocks give something else."""


def _direction(classes: int) -> Tensor:
    """A direction in the logits, of length 1; shifting all of them changes no prediction, so they sum up to zero."""
    if classes == 1:
        return torch.ones(1)
    direction = torch.randn(classes, generator=torch.Generator().manual_seed(0))
    direction -= direction.mean()
    return direction / direction.norm()
