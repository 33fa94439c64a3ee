from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hf_compress.tasks.hashing import counter_hash, fingerprint, shuffled


def test_counter_hash_is_splitmix64():
    # the first outputs of the published generator with the seed 0
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert counter_hash(np.arange(3)).tolist() == expected


@given(st.integers(0, 2**63), st.integers(0, 1000), st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_a_draw_depends_on_its_index_and_the_key_alone(seed, epoch, indices):
    together = counter_hash(np.array(indices), seed, epoch)
    alone = [int(counter_hash(np.array([index]), seed, epoch)[0]) for index in indices]
    assert together.tolist() == alone
    assert not np.array_equal(together, counter_hash(np.array(indices), seed + 1, epoch))
    assert not np.array_equal(together, counter_hash(np.array(indices), seed, epoch + 1))
    assert not np.array_equal(together, counter_hash(np.array(indices), epoch + 1, seed))


def test_every_bit_is_fair_and_keys_do_not_correlate():
    first, second = (counter_hash(np.arange(20_000), seed, 0) for seed in (0, 1))
    bits = np.arange(64, dtype=np.uint64)
    for hashes in (first, first ^ second):
        share = (hashes[:, None] >> bits & np.uint64(1)).mean(axis=0)
        assert np.abs(share - 0.5).max() < 0.02  # more than five standard deviations


@given(st.integers(0, 300), st.integers(0, 10))
def test_shuffled_is_a_permutation(n, seed):
    assert sorted(shuffled(n, seed)) == list(range(n))


def test_fingerprint_keeps_parts_apart():
    names = [
        fingerprint("ab", "c"),
        fingerprint("a", "bc"),
        fingerprint("abc"),
        fingerprint(np.arange(3)),
        fingerprint(np.arange(4)),
    ]
    assert len(set(names)) == len(names)
    assert fingerprint("é") == fingerprint("é".encode())
