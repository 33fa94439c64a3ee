from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_compress.tasks.selection import first_of_shuffle, holdout_mask, take


@pytest.mark.parametrize("n", [2, 19, 20, 635, 50_000])
def test_holdout_is_one_in_twenty(n):
    mask = holdout_mask(n)
    assert mask.sum() == max(1, round(n / 20))
    assert np.array_equal(mask, holdout_mask(n))


def test_holdout_is_spread_over_the_split():
    positions = np.flatnonzero(holdout_mask(50_000))
    assert np.abs(np.histogram(positions, bins=10, range=(0, 50_000))[0] - 250).max() < 80


def test_holdout_of_one_example_is_empty():
    assert holdout_mask(1).sum() == holdout_mask(0).sum() == 0


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=200),
    st.integers(1, 250),
    st.integers(0, 5),
    st.booleans(),
)
def test_take_keeps_the_shares_of_the_classes(labels, n, seed, classes):
    labels = np.array(labels)
    rows = np.flatnonzero(~holdout_mask(len(labels)))
    taken = take(rows, n, seed, labels if classes else None)
    assert len(taken) == min(n, len(rows))
    assert np.array_equal(taken, np.unique(taken)) and np.isin(taken, rows).all()
    assert np.array_equal(taken, take(rows[::-1], n, seed, labels if classes else None))
    if classes and n < len(rows):
        share = n * np.bincount(labels) / len(labels)
        available = np.bincount(labels[rows], minlength=labels.max() + 1)
        got = np.bincount(labels[taken], minlength=labels.max() + 1)
        # a class that the holdout left too few of cannot have its share; then others have more
        assert (got >= np.minimum(np.floor(share), available)).all()
        if (available >= np.ceil(share)).all():
            assert (got <= np.ceil(share)).all()


def test_take_of_balanced_classes_is_balanced_after_the_holdout():
    labels = np.arange(5000) % 10
    rows = np.flatnonzero(~holdout_mask(5000))
    assert np.bincount(labels[take(rows, 1000, 3, labels)]).tolist() == [100] * 10


def test_take_depends_on_the_seed():
    assert not np.array_equal(take(np.arange(1000), 100, 0), take(np.arange(1000), 100, 1))


def test_take_all():
    assert take(np.arange(7), None, 0).tolist() == take(np.arange(7), 9, 0).tolist() == list(range(7))


@given(st.integers(1, 100), st.integers(0, 100), st.integers(0, 100), st.integers(0, 3))
def test_a_larger_shuffle_goes_on_where_a_smaller_one_ended(size, first, more, seed):
    smaller, larger = first_of_shuffle(size, first, seed), first_of_shuffle(size, first + more, seed)
    assert np.array_equal(larger[: len(smaller)], smaller)
    assert len(np.unique(larger)) == len(larger) == min(size, first + more)
