"""Crop and flip of whole batches of uint8 images."""

from __future__ import annotations

import numpy as np
import torch

from .hashing import counter_hash


PADDING = 4
_CROP_AND_FLIP = 0x63726F70


def crop_and_flip(pixels: torch.Tensor, index: np.ndarray, seed: int, epoch: int) -> torch.Tensor:
    """Pad with 4 black pixels on every side, crop at a random place and flip horizontally half the time.

    What an image becomes is a function of (`seed`, `epoch`, its `index`) alone, so it does not matter which batch or
    process it is in, nor where a run was resumed. The recipe is that of He et al., "Deep residual learning for image
    recognition" (2016), section 4.2.

    Args:
        pixels (`torch.Tensor`): `uint8`, (batch, height, width, channels).
        index (`np.ndarray`): (batch,), the number of each example in its training split.
        seed, epoch (`int`): of the run.

    Returns:
        `torch.Tensor`: a new tensor of the shape of `pixels`.
    """
    batch, height, width, channels = pixels.shape
    draws = counter_hash(index, seed, epoch, _CROP_AND_FLIP)
    top, left, flip = _draws(draws)
    rows = top[:, None] + np.arange(height)
    columns = left[:, None] + np.arange(width)
    columns = np.where(flip[:, None], columns[:, ::-1], columns)
    padded = torch.nn.functional.pad(pixels, (0, 0, PADDING, PADDING, PADDING, PADDING)).numpy()
    # one gather of whole pixels from the flattened batch
    starts = np.arange(batch)[:, None] * padded.shape[1] + rows
    flat = starts[:, :, None] * padded.shape[2] + columns[:, None, :]
    return torch.from_numpy(padded.reshape(-1, channels).take(flat.reshape(-1), axis=0)).view(pixels.shape)


def _draws(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets in [0, 2 * PADDING] and a coin, from disjoint bits of each hash."""
    positions = np.uint64(2 * PADDING + 1)
    low = (hashes & np.uint64(0xFFFFFFFF)) * positions >> np.uint64(32)
    high = (hashes >> np.uint64(32) & np.uint64(0x7FFFFFFF)) * positions >> np.uint64(31)
    return low.astype(np.int64), high.astype(np.int64), hashes >> np.uint64(63) != 0
