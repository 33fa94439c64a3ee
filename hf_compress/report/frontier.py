"""Which points of a trade-off no other point beats."""

from __future__ import annotations

import math
from collections.abc import Sequence


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other dominates: at least as good in both, and better in one.

    Args:
        points (`Sequence[tuple[float, float]]`): cost, of which less is better, and metric, of which more is.

    Returns:
        `list[int]`: their indices, by rising cost and metric; equal points are all there, those with a number that is
        not finite never.
    """
    finite = [index for index, point in enumerate(points) if all(map(math.isfinite, point))]
    kept: list[int] = []
    for index in sorted(finite, key=lambda index: (points[index][0], -points[index][1])):
        if not kept or points[index][1] > points[kept[-1]][1] or tuple(points[index]) == tuple(points[kept[-1]]):
            kept.append(index)
    return kept
