from __future__ import annotations

import datasets
import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_compress.training.order import GlobalBatchSampler, SortedByLength, epoch_order, lengths_of


sizes = st.integers(1, 300)
batches = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)
epochs = st.integers(0, 50)


@settings(deadline=None)
@given(sizes, batches, seeds, epochs, st.booleans())
def test_an_epoch_visits_every_example_and_fills_its_batches(examples, batch, seed, epoch, by_length):
    lengths = np.random.default_rng(0).integers(1, 60, examples) if by_length else None
    order = epoch_order(examples, batch, seed=seed, epoch=epoch, lengths=lengths)
    assert order.shape == (-(-examples // batch), batch)
    counts = np.bincount(order.ravel(), minlength=examples)
    assert len(counts) == examples
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1  # what fills up the last batch is spread evenly


@settings(deadline=None)
@given(sizes, batches, seeds, epochs)
def test_with_drop_last_no_example_comes_twice(examples, batch, seed, epoch):
    order = epoch_order(examples, batch, seed=seed, epoch=epoch, drop_last=True)
    if examples >= batch:
        assert order.shape == (examples // batch, batch)
        assert len(set(order.ravel().tolist())) == order.size


def test_the_order_is_a_function_of_seed_and_epoch():
    first = epoch_order(200, 16, seed=3, epoch=2)
    np.random.seed(99)  # the global generators have no say
    assert np.array_equal(first, epoch_order(200, 16, seed=3, epoch=2))
    assert not np.array_equal(first, epoch_order(200, 16, seed=3, epoch=3))
    assert not np.array_equal(first, epoch_order(200, 16, seed=4, epoch=2))


@settings(deadline=None)
@given(
    sizes, st.sampled_from([(8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 4, 2), (2, 4, 1)]), seeds, st.booleans()
)
def test_processes_and_accumulation_split_the_same_global_batches(examples, split, seed, by_length):
    batch_size, processes, accumulation = split
    lengths = np.random.default_rng(1).integers(1, 60, examples) if by_length else None
    reference = epoch_order(examples, 8, seed=seed, epoch=5, lengths=lengths)
    shards = []
    for rank in range(processes):
        sampler = GlobalBatchSampler(examples, batch_size, parts=processes * accumulation, seed=seed, lengths=lengths)
        sampler.set_epoch(5)
        shard = BatchSamplerShard(sampler, processes, rank) if processes > 1 else sampler
        shards.append(list(shard))
        assert len(shards[-1]) == len(shard) == sampler.steps * accumulation
    for step, expected in enumerate(reference):
        seen = [
            index
            for shard in shards
            for part in shard[step * accumulation : (step + 1) * accumulation]
            for index in part
        ]
        assert sorted(seen) == sorted(expected.tolist())


def test_batching_by_length_pads_little_and_still_shuffles():
    lengths = np.random.default_rng(0).integers(3, 120, 5000)

    def padded(order):
        return (lengths[order].max(axis=1, keepdims=True) - lengths[order]).sum() / lengths.sum()

    plain = epoch_order(5000, 32, seed=0, epoch=0)
    grouped = epoch_order(5000, 32, seed=0, epoch=0, lengths=lengths)
    assert padded(grouped) < 0.05 < 0.5 < padded(plain)
    means = lengths[grouped].mean(axis=1)
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.3  # the model does not see long ones first


def test_lengths_are_read_through_views_of_a_dataset():
    dataset = datasets.Dataset.from_dict({"input_ids": [[1], [1, 2, 3], [1, 2]]})
    assert lengths_of(dataset).tolist() == [1, 3, 2]
    assert lengths_of(dataset.select([2, 0])).tolist() == [2, 1]
    assert lengths_of(datasets.Dataset.from_dict({"length": [4, 2], "x": [0, 0]})).tolist() == [4, 2]


@pytest.mark.parametrize("columns", [{"pixel_values": [[1.0], [2.0]]}, {"input_ids": [[1, 2], [3, 4]]}])
def test_unknown_or_equal_lengths_group_nothing(columns):
    assert lengths_of(datasets.Dataset.from_dict(columns)) is None


def test_the_view_by_length_is_a_permutation():
    view = SortedByLength(["a", "ccc", "bb"], np.array([1, 3, 2]))
    assert [view[index] for index in range(len(view))] == ["ccc", "bb", "a"]
    assert view.__getitems__([0, 2]) == ["ccc", "a"]
