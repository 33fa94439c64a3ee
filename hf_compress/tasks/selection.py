"""Which examples are held out, which ones a smaller run takes."""

from __future__ import annotations

import numpy as np

from .hashing import counter_hash, shuffled


HOLDOUT_SHARE = 0.05
# every purpose draws from a stream of its own
_HOLDOUT, _SUBSET = 0x686F6C64, 0x73756273


def holdout_mask(n: int) -> np.ndarray:
    """The examples of a training split of `n` that training never sees: the 5 % whose indices have the lowest hashes.

    They are the same for every seed, so what is chosen on them in one run stays unseen in the next.
    """
    mask = np.zeros(n, dtype=bool)
    if n > 1:
        hashes = counter_hash(np.arange(n), _HOLDOUT)
        mask[np.argsort(hashes, kind="stable")[: max(1, round(n * HOLDOUT_SHARE))]] = True
    return mask


def take(rows: np.ndarray, n: int | None, seed: int, labels: np.ndarray | None = None) -> np.ndarray:
    """A seeded choice of `n` of the examples `rows`, in ascending order; all of them where `n` is `None` or more.

    Args:
        rows (`np.ndarray`): indices into a split.
        n (`int`, *optional*): how many to take.
        seed (`int`): another seed takes other examples.
        labels (`np.ndarray`, *optional*): the classes of the *whole* split, non-negative integers. With them every
            class keeps the share that it has in the split, to within one example, so CIFAR-10 stays balanced and the
            F1 of MRPC stays comparable. Without them (regression) the choice is plain.
    """
    if n is None or n >= len(rows):
        return np.sort(rows)
    order = rows[np.argsort(counter_hash(rows, seed, _SUBSET), kind="stable")]
    if labels is None:
        return np.sort(order[:n])
    classes = labels[order]
    quotas = _quotas(np.bincount(labels), np.bincount(classes, minlength=labels.max() + 1), n)
    chosen = [order[classes == label][:quota] for label, quota in enumerate(quotas)]
    return np.sort(np.concatenate(chosen))


def first_of_shuffle(size: int, n: int | None, seed: int) -> np.ndarray:
    """Positions of the first `n` examples of a seeded shuffle: a larger `n` goes on where a smaller one ended."""
    return shuffled(size, seed, 0x63616C69)[: size if n is None else n]


def _quotas(counts: np.ndarray, available: np.ndarray, n: int) -> np.ndarray:
    """`n` seats shared out by largest remainder, no class getting more than it has."""
    exact = n * counts / counts.sum()
    quotas = np.minimum(np.floor(exact + 1e-9).astype(np.int64), available)
    for label in np.argsort(-(exact - quotas), kind="stable"):
        if quotas.sum() < n and quotas[label] < available[label]:
            quotas[label] += 1
    while quotas.sum() < n:  # some class had too few: the others fill up
        quotas[np.argmax(available - quotas)] += 1
    return quotas
