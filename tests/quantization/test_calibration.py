from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_compress.errors import CompressionError
from hf_compress.quantization.calibration import Calibration, model_inputs, trim


INT, FLOAT = np.dtype("int64"), np.dtype("float32")
TEXT = {"input_ids": INT, "attention_mask": INT, "token_type_ids": INT}


class Batches:
    """A step's context as far as calibration knows it, which counts the passes that were ended."""

    def __init__(self, batches):
        self.batches, self.ended = batches, 0

    def calibration(self, n):
        try:
            yield from self.batches
        finally:
            self.ended += 1

    def progress(self, iterable, description, total=None):
        return iterable


def text_batches(lengths, width, batch_size):
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(lengths), batch_size):
        part = torch.tensor(lengths[start : start + batch_size])
        mask = (torch.arange(width) < part[:, None]).long()
        yield {"input_ids": torch.randint(1, 50, mask.shape, generator=generator) * mask, "attention_mask": mask}


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    batch_size=st.integers(1, 5),
    samples=st.integers(1, 15),
)
def test_examples_come_one_by_one_and_without_padding(lengths, batch_size, samples):
    batches = list(text_batches(lengths, 9, batch_size))
    calibration = Calibration(Batches(batches), samples, TEXT)
    examples = list(calibration)
    assert [example["input_ids"].shape for example in examples] == [(1, length) for length in lengths[:samples]]
    every = torch.cat([batch["input_ids"] for batch in batches])
    for example, tokens, length in zip(examples, every, lengths, strict=False):
        assert example["input_ids"][0].tolist() == tokens[:length].tolist()
        assert example["attention_mask"].all()
        assert not example["token_type_ids"].any() and example["token_type_ids"].shape == (1, length)
        assert all(value.dtype == INT for value in example.values())
    assert calibration.seen == min(samples, len(lengths))


def test_passes_repeat_and_the_fingerprint_tells_data_apart():
    calibration = Calibration(Batches(list(text_batches([4, 2, 7], 9, 2))), 10, TEXT)
    first = [example["input_ids"].tolist() for example in calibration]
    fingerprint = calibration.fingerprint
    assert [example["input_ids"].tolist() for example in calibration] == first
    assert calibration.fingerprint == fingerprint
    other = Calibration(Batches(list(text_batches([4, 2, 6], 9, 2))), 10, TEXT)
    list(other)
    assert other.fingerprint != fingerprint


def test_a_pass_that_stops_early_ends_the_context_s_pass():
    context = Batches(list(text_batches([4, 2, 7], 9, 1)))
    for _ in Calibration(context, 10, TEXT):
        break
    assert context.ended == 1


def test_images_keep_their_shape_and_become_float32():
    images = torch.randn(3, 3, 8, 8).bfloat16()
    examples = list(
        Calibration(Batches([{"pixel_values": images, "labels": torch.zeros(3)}]), 2, {"pixel_values": FLOAT})
    )
    assert [example["pixel_values"].shape for example in examples] == [(1, 3, 8, 8)] * 2
    assert examples[0].keys() == {"pixel_values"}
    np.testing.assert_array_equal(examples[1]["pixel_values"][0], images[1].float().numpy())


def test_no_examples_is_an_error():
    with pytest.raises(CompressionError, match="no example to calibrate with"):
        list(Calibration(Batches([]), 2, TEXT))


def test_columns_that_do_not_fit_are_named():
    with pytest.raises(CompressionError, match=r"have sentence, labels, and the model needs input_ids"):
        model_inputs({"sentence": ["a"], "labels": torch.zeros(1)}, TEXT)
    with pytest.raises(CompressionError, match="the model needs bbox"):
        model_inputs({"input_ids": torch.ones(1, 2)}, {"input_ids": INT, "bbox": INT})


def test_padding_in_front_is_kept_because_it_shifts_the_positions():
    mask = np.array([[0, 0, 1, 1, 0]])
    example = trim({"input_ids": np.array([[0, 0, 7, 8, 0]]), "attention_mask": mask})
    assert example["input_ids"].tolist() == [[0, 0, 7, 8]]
