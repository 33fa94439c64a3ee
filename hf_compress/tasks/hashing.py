"""Randomness that depends on its key alone: an example gets the same draw in any batch, order or process."""

from __future__ import annotations

import hashlib

import numpy as np


_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def counter_hash(index: np.ndarray, *key: int) -> np.ndarray:
    """Hash integers under a key, 64 bits each.

    It is the output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014) with the index as the counter, and the key folded in the same way.

    Args:
        index (`np.ndarray`): integers of any shape.
        key (`int`): any number of integers, such as a seed, an epoch and a number for the purpose.

    Returns:
        `np.ndarray`: uniform `uint64` of the shape of `index`.
    """
    state = 0
    for part in key:
        state = _mix_int((state + _GAMMA + (part & _MASK)) & _MASK)
    with np.errstate(over="ignore"):  # wrapping is meant: all arithmetic is modulo 2 ** 64
        mixed = (np.asarray(index).astype(np.uint64) + np.uint64(1)) * np.uint64(_GAMMA) + np.uint64(state)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_FIRST)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_SECOND)
        return mixed ^ (mixed >> np.uint64(31))


def shuffled(n: int, *key: int) -> np.ndarray:
    """A permutation of `range(n)` that depends on the key alone."""
    return np.argsort(counter_hash(np.arange(n), *key), kind="stable")


def fingerprint(*parts: bytes | str | np.ndarray | memoryview) -> str:
    """A name for content, 32 hexadecimal digits. Every part goes in with its length, so parts cannot run together."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, str):
            part = part.encode("utf-8", "surrogatepass")
        elif isinstance(part, np.ndarray):
            part = np.ascontiguousarray(part).view(np.uint8).reshape(-1).data
        digest.update(memoryview(part).nbytes.to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _mix_int(value: int) -> int:
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)
