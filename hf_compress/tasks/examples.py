"""Examples as they are read, whatever they were stored as: inputs in memory, labels in the Hub's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import CompressionError


@dataclass(frozen=True)
class TextExamples:
    """`columns`: one or two lists of texts, of equal length. `labels`: `int64` classes or `float32` scores."""

    columns: tuple[list[str], ...]
    labels: np.ndarray


@dataclass(frozen=True)
class ImageExamples:
    """`pixels`: `uint8`, (N, 3, H, W). `labels`: `int64`."""

    pixels: torch.Tensor
    labels: np.ndarray


def checked_labels(labels: Sequence[int] | np.ndarray, names: Sequence[str], where: str) -> np.ndarray:
    """Class numbers as `int64`.

    Raises:
        `CompressionError`: if there are none, or one is outside `range(len(names))`, as in test splits of GLUE.
    """
    labels = np.asarray(labels, dtype=np.int64)
    if not len(labels):
        raise CompressionError(f"{where} holds no examples. Fetch the file again.")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(wrong):
        raise CompressionError(
            f"{where}: example {wrong[0]} has the label {labels[wrong[0]]}; allowed are 0 to {len(names) - 1} "
            f"({', '.join(names)}). A split without labels cannot be used."
        )
    return labels


def checked_scores(scores: Sequence[float] | np.ndarray, where: str) -> np.ndarray:
    """Similarity scores as `float32`, all in 0 … 5."""
    scores = np.asarray(scores, dtype=np.float32)
    if not len(scores):
        raise CompressionError(f"{where} holds no examples. Fetch the file again.")
    wrong = np.flatnonzero(~((scores >= 0) & (scores <= 5)))
    if len(wrong):
        raise CompressionError(
            f"{where}: example {wrong[0]} has the score {scores[wrong[0]]}; allowed are 0 to 5. "
            "A split without scores cannot be used."
        )
    return scores
