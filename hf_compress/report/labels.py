"""Where to write labels beside points so that they cover neither points nor one another."""

from __future__ import annotations

import math
from collections.abc import Sequence


DISTANCES = (1.0, 1.6, 2.4, 3.4, 4.6, 6.0)  # in heights of a label
DIRECTIONS = (45, 135, 315, 225, 90, 270, 0, 180)  # degrees; above and to the right first


def place(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    obstacles: Sequence[tuple[float, float]],
    bounds: tuple[float, float, float, float],
    radius: float,
) -> list[tuple[float, float]]:
    """The middles of labels, each as near its anchor as there is room.

    Args:
        anchors (`Sequence[tuple[float, float]]`): the points that have a label, in pixels.
        sizes (`Sequence[tuple[float, float]]`): width and height of their labels.
        obstacles (`Sequence[tuple[float, float]]`): all points, of `radius`.
        bounds (`tuple[float, float, float, float]`): left, bottom, right and top of the room.
        radius (`float`): of a point.

    Returns:
        `list[tuple[float, float]]`: where there is no free place, the one that covers least.
    """
    taken: list[tuple[float, float, float, float]] = [(x, y, 2 * radius, 2 * radius) for x, y in obstacles]
    placed = []
    for anchor, size in zip(anchors, sizes, strict=True):
        best, least = anchor, math.inf
        for middle in _around(anchor, size, radius):
            box = (*middle, *size)
            covered = sum(_overlap(box, other) for other in taken) + _outside(box, bounds)
            if covered < least:
                best, least = middle, covered
            if not covered:
                break
        placed.append(best)
        taken.append((*best, *size))
    return placed


def _around(anchor: tuple[float, float], size: tuple[float, float], radius: float):
    for distance in DISTANCES:
        for direction in DIRECTIONS:
            angle = math.radians(direction)
            reach = radius + distance * size[1] / 2
            yield (
                anchor[0] + math.cos(angle) * (reach + size[0] / 2),
                anchor[1] + math.sin(angle) * (reach + size[1] / 2),
            )


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    width = (one[2] + other[2]) / 2 - abs(one[0] - other[0])
    height = (one[3] + other[3]) / 2 - abs(one[1] - other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: tuple[float, float, float, float], bounds: tuple[float, float, float, float]) -> float:
    x, y, width, height = box
    left, bottom, right, top = bounds
    over = max(0.0, left - x + width / 2) + max(0.0, x + width / 2 - right)
    return 10 * (over + max(0.0, bottom - y + height / 2) + max(0.0, y + height / 2 - top))
