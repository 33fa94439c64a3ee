"""What training, calibration and the checks before them need of data, whatever it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from transformers import default_data_collator

from ..errors import CompressionError
from .order import SortedByLength, lengths_of


LABEL_COLUMNS = ("label", "label_ids", "labels")  # the names that the collators of Transformers turn into `labels`


@dataclass
class TrainingData:
    """A training split, how its examples become a batch, and what to watch meanwhile.

    Args:
        train: a data set of this package's tasks, a `datasets.Dataset`, or any data set with a length and an index.
        collate (`Callable`): makes a batch of what the data set gives for some indices.
        holdout (*optional*): examples kept out of `train`, for the curve and for every choice.
        compute_metrics (`Callable`, *optional*): `(logits, labels) -> dict[str, float]`, both `np.ndarray`.
    """

    train: Any
    collate: Callable = default_data_collator
    holdout: Any = None
    compute_metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]] | None = None

    @classmethod
    def of(cls, data: Any, collate_fn: Callable | None = None) -> TrainingData:
        """Read a task's data (with `train`, `holdout`, `collate`), a data set, or an instance of this class.

        Raises:
            `CompressionError`: if `data` is empty, or has no length or no index.
        """
        if hasattr(data, "train") and hasattr(data, "collate"):
            if len(data.train) == 0:
                raise CompressionError("data: the training split is empty.")
            if isinstance(data, cls):
                return data
            return cls(data.train, collate_fn or data.collate, data.holdout, data.compute_metrics)
        if isinstance(data, Mapping):  # a datasets.DatasetDict, most likely
            raise CompressionError(f"data: got the splits {', '.join(map(str, data))}; give one of them.")
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, str):
            raise CompressionError(
                f"data: got {type(data).__name__}; give a datasets.Dataset or another data set with a length and an "
                "index. A stream can be cut with list(itertools.islice(stream, n))."
            )
        if len(data) == 0:
            raise CompressionError("data: the data set is empty.")
        return cls(data, collate_fn or getattr(data, "collate", None) or default_data_collator)

    @property
    def has_labels(self) -> bool:
        """Whether examples of the training split come with labels (-1 stands for a hidden one)."""
        few = list(range(min(8, len(self.train))))
        if isinstance(self.train, datasets.Dataset) and self.train.format["type"] != "custom":
            # without the collator, which raw columns may not fit; a transform may make labels of any column
            column = next((name for name in LABEL_COLUMNS if name in self.train.column_names), None)
            labels = None if column is None else self.train.with_format(None).select(few)[column]
            return labels is not None and any(np.any(np.not_equal(label, -1)) for label in labels if label is not None)
        labels = next(batches(self.train, self.collate, few, len(few), columns=None)).get("labels")
        return labels is not None and bool((torch.as_tensor(labels) != -1).any())

    def calibration(
        self, n: int, seed: int, batch_size: int, columns: Iterable[str] | None
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of the first `n` examples of a seeded shuffle of the training split, without augmentation."""
        if hasattr(self.train, "plain"):
            chosen = self.train.plain(n, seed)
            indices = np.arange(len(chosen))
        else:
            chosen = self.train
            indices = np.random.default_rng((seed, 0x63616C)).permutation(len(chosen))[:n]
        lengths = lengths_of(chosen)
        if lengths is not None:
            indices = indices[np.argsort(-lengths[indices], kind="stable")]
        yield from batches(chosen, self.collate, indices.tolist(), batch_size, columns)

    def watched(self) -> Any:
        """The holdout in an order that wastes little on padding; metrics do not depend on it."""
        if self.holdout is None or len(self.holdout) == 0:
            return None
        lengths = lengths_of(self.holdout)
        if lengths is None:
            return self.holdout
        if isinstance(self.holdout, datasets.Dataset):
            return self.holdout.select(np.argsort(-lengths, kind="stable"))
        return SortedByLength(self.holdout, lengths)


def batches(
    dataset: Any,
    collate: Callable,
    indices: list[int],
    batch_size: int,
    columns: Iterable[str] | None,
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of the examples `indices`, in their order.

    Args:
        columns (`Iterable[str]`, *optional*): the inputs that the model takes; others are left out, see
            [`unused_columns`].
    """
    if columns is not None:
        collate = ModelInputs(collate, columns)
        if unused := unused_columns(dataset, columns):
            dataset = dataset.remove_columns(unused)
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        if hasattr(dataset, "__getitems__"):
            examples = dataset.__getitems__(chosen)
        else:
            examples = [dataset[index] for index in chosen]
        yield dict(collate(examples))


class ModelInputs:
    """A collator that leaves out what the model does not take, such as an example's number."""

    def __init__(self, collate: Callable, columns: Iterable[str]):
        self.collate, self.columns = collate, frozenset(columns)

    def __call__(self, examples: Any) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self.collate(examples).items() if name in self.columns}


def unused_columns(dataset: Any, columns: Iterable[str]) -> list[str]:
    """The columns of a `datasets.Dataset` that a collator should not see, because the model does not take them.

    `Trainer` leaves them out as well. None are left out if the model takes none of the columns, or if a transform
    makes the examples: then the inputs are made of the raw columns.
    """
    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return []
    known = set(columns) - set(LABEL_COLUMNS)
    if known.isdisjoint(dataset.column_names):
        return []
    return [name for name in dataset.column_names if name not in known and name not in LABEL_COLUMNS]


def forward_columns(model: nn.Module) -> list[str]:
    """The names of the inputs that `model` takes."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return list(inspect.signature(base.forward).parameters)


def to_device(batch: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """`batch` where the parameters of `model` are."""
    device = next(model.parameters()).device
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
