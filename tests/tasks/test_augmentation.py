from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_compress.tasks.augmentation import PADDING, crop_and_flip


def coordinates(count: int, size: int = 32) -> torch.Tensor:
    """Images whose pixels say where they were: (row + 1, column + 1, 255); black is outside."""
    rows, columns = torch.meshgrid(torch.arange(1, size + 1), torch.arange(1, size + 1), indexing="ij")
    image = torch.stack([rows, columns, torch.full_like(rows, 255)], dim=-1).to(torch.uint8)
    return image.expand(count, size, size, 3).contiguous()


def describe(image: torch.Tensor, size: int = 32) -> tuple[int, int, bool]:
    """The offsets and the flip that made `image` of `coordinates`, checked at every pixel."""
    places = {}
    for flip in (False, True):
        seen = (image.flip(1) if flip else image).to(torch.int64)
        inside = seen[..., 2] == 255
        rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        top, left = seen[..., 0] - 1 - rows, seen[..., 1] - 1 - columns
        if len(top[inside].unique()) == 1 and len(left[inside].unique()) == 1:
            top, left = int(top[inside][0]), int(left[inside][0])
            expected = (rows + top >= 0) & (rows + top < size) & (columns + left >= 0) & (columns + left < size)
            assert torch.equal(expected, inside)
            assert (seen[~inside] == 0).all()  # padding is black in all channels
            places[flip] = (top, left, flip)
    assert len(places) == 1
    return next(iter(places.values()))


def test_every_crop_and_flip_occurs_equally_often():
    count = 8100
    out = crop_and_flip(coordinates(count), np.arange(count), seed=0, epoch=0)
    found = [describe(image) for image in out[:500]]
    tops, lefts, flips = map(np.array, zip(*found, strict=True))
    assert set(tops) == set(lefts) == set(range(-PADDING, PADDING + 1))
    assert 0.42 < flips.mean() < 0.58
    # all 162 outcomes, read off a corner pixel that is inside for every crop
    corner = out[:, 8, 8, :2].to(torch.int64)
    outcomes, counts = torch.unique(corner, dim=0, return_counts=True)
    assert len(outcomes) == 162
    assert counts.min() > 20 and counts.max() < 90  # 50 each on average


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 49_999), min_size=1, max_size=16), st.integers(0, 2**31), st.integers(0, 500))
def test_an_image_is_the_same_in_any_batch(index, seed, epoch):
    index = np.array(index)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (len(index), 8, 10, 3), dtype=np.uint8))
    together = crop_and_flip(pixels, index, seed, epoch)
    for row in range(len(index)):
        assert torch.equal(together[row], crop_and_flip(pixels[row : row + 1], index[row : row + 1], seed, epoch)[0])


def test_epochs_and_seeds_differ_and_the_input_is_left_alone():
    pixels = coordinates(64)
    before, index = pixels.clone(), np.arange(64)
    first = crop_and_flip(pixels, index, 0, 0)
    assert torch.equal(pixels, before)
    assert torch.equal(first, crop_and_flip(pixels, index, 0, 0))
    for seed, epoch in ((0, 1), (1, 0)):
        changed = (crop_and_flip(pixels, index, seed, epoch) != first).flatten(1).any(1)
        assert changed.float().mean() > 0.9
