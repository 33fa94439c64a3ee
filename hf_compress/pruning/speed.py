"""What makes passes through a network faster on a CPU, where precision and memory allow it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from ..measurement import device_of, has_fast_bf16


if TYPE_CHECKING:
    from ..registry import Batch

SHORT = 128  # tokens


def bf16_where_fast(model: nn.Module) -> torch.autocast:
    """Autocast to bfloat16 within, where that is faster: on a CPU that computes in it itself."""
    return torch.autocast("cpu", torch.bfloat16, enabled=device_of(model).type == "cpu" and has_fast_bf16())


@contextmanager
def quick_texts(model: nn.Module, batch: Batch) -> Iterator[None]:
    """Whatever is faster for texts within; images go in float32.

    In bfloat16 the predictions of a deep convolutional network move as far as they do without its least important
    channels; those of a BERT hardly move.
    """
    with bf16_where_fast(model) if "input_ids" in batch else nullcontext(), plain_attention(model, batch):
        yield


@contextmanager
def plain_attention(model: nn.Module, batch: Batch) -> Iterator[None]:
    """Attention as products of matrices within, where that is faster: on a CPU, if the texts of `batch` are short.

    There gradients through the fused attention of PyTorch take several times as long. With longer texts the scores of
    all pairs of tokens take more room than they are worth.
    """
    tokens = batch.get("input_ids")
    if (
        tokens is None
        or tokens.shape[-1] > SHORT
        or device_of(model).type != "cpu"
        or not isinstance(model, PreTrainedModel)
        or model.config._attn_implementation != "sdpa"
        or not model._can_set_attn_implementation()
    ):
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
