"""Which of several models nobody beats in both cost and metric."""

from __future__ import annotations

from collections.abc import Sequence


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other dominates, that is, is as cheap and as good and better in one of the two.

    Args:
        points (`Sequence[tuple[float, float]]`): (cost, metric), of which less and more are better.

    Returns:
        `list[int]`: their indices, from the cheapest to the dearest; of equal points the first only.
    """
    kept, best = [], float("-inf")
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1], index)):
        if points[index][1] > best:
            kept.append(index)
            best = points[index][1]
    return kept
