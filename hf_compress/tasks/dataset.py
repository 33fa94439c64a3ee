"""Data sets that hand out whole batches: images as `uint8` in memory, texts as token numbers in one flat array."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .augmentation import crop_and_flip
from .preprocessing import ImageSettings
from .selection import first_of_shuffle


Batch = dict[str, torch.Tensor]


class BatchDataset(Dataset):
    """A map-style data set whose `__getitems__` returns a finished batch.

    A `DataLoader` with a `collate_fn` that passes a batch through (such as [`TaskData.collate`]) therefore does no
    work an example. A batch holds a model's inputs and `labels`, nothing else, so `model(**batch)` works.

    Subclasses hold the data, shared between all views of it; a view is a list of rows.

    Attributes:
        rows (`np.ndarray`): the index of each example in its split of the source.
        labels (`torch.Tensor`): (len,), `int64` classes or `float32` values.
        lengths (`np.ndarray`, *optional*): tokens per example, `None` for images; for batching by length.
        epoch (`int`): see `set_epoch`.
    """

    def __init__(self, labels: torch.Tensor, rows: np.ndarray | None = None):
        self.rows = np.arange(len(labels)) if rows is None else np.asarray(rows, dtype=np.int64)
        self.labels = labels[torch.from_numpy(self.rows)]
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        positions = self._positions(indices)
        batch = self._inputs(self.rows[positions])
        batch["labels"] = self.labels[torch.from_numpy(positions)]
        return batch

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One example, without the batch dimension."""
        return {name: tensor[0] for name, tensor in self.__getitems__([index]).items()}

    @property
    def lengths(self) -> np.ndarray | None:
        return None

    def set_epoch(self, epoch: int) -> None:
        """Tell which epoch the next batches belong to. Worker processes that persist over epochs do not hear of it."""
        self.epoch = epoch

    def subset(self, positions: Sequence[int] | np.ndarray) -> BatchDataset:
        """A view of some of the examples, in the order given."""
        positions = self._positions(positions)
        view = copy.copy(self)
        view.rows, view.labels = self.rows[positions], self.labels[torch.from_numpy(positions)]
        return view

    def plain(self, n: int | None = None, seed: int = 0) -> BatchDataset:
        """An un-augmented view: of every example in order, or of the first `n` of a seeded shuffle.

        A larger `n` holds the examples of a smaller one; where `n` exceeds the data, all of it is used.
        """
        view = self.subset(np.arange(len(self)) if n is None else first_of_shuffle(len(self), n, seed))
        view._stop_augmenting()
        return view

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """All examples once, as pairs of positions and batch.

        Texts come by length, the longest first, so that little is padded and a batch that does not fit into memory
        shows at once; write what a model returns to `out[positions]` to have it in order. Images come in order.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}; give at least 1.")
        order = np.arange(len(self))
        if self.lengths is not None:
            order = np.argsort(-self.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            positions = order[start : start + batch_size]
            yield positions, self.__getitems__(positions)

    def collate(self, examples: Batch | Sequence[dict[str, torch.Tensor]]) -> Batch:
        """Pass a finished batch through, or make one of a list of examples."""
        if isinstance(examples, dict):
            return examples
        return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}

    def _positions(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        positions = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(positions) and not (-len(self) <= positions.min() and positions.max() < len(self)):
            raise IndexError(f"index out of range: there are {len(self)} examples.")
        return np.where(positions < 0, positions + len(self), positions)

    def _stop_augmenting(self) -> None:
        """Nothing to do where nothing is augmented."""

    def _inputs(self, rows: np.ndarray) -> Batch:
        raise NotImplementedError


class ImageDataset(BatchDataset):
    """Images, decoded once, augmented and normalized as whole batches.

    Args:
        pixels (`torch.Tensor`): `uint8`, (examples, 3, height, width), best in channels-last memory format.
        labels (`torch.Tensor`): (examples,).
        settings ([`ImageSettings`]): what the model wants to see.
        rows (`np.ndarray`, *optional*): the examples of this view.
        augment (`bool`, *optional*, defaults to `False`): crop and flip, as a function of (seed, epoch, row).
        seed (`int`, *optional*, defaults to 0): of the augmentation.

    A batch is `{"pixel_values": float32 (batch, 3, H, W), channels-last, "labels": int64 (batch,)}`.
    """

    def __init__(
        self,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        settings: ImageSettings,
        rows: np.ndarray | None = None,
        augment: bool = False,
        seed: int = 0,
    ):
        super().__init__(labels, rows)
        self.settings, self.augment, self.seed = settings, augment, seed
        self._pixels = pixels.permute(0, 2, 3, 1).contiguous()  # no copy where the memory is channels-last

    def _stop_augmenting(self) -> None:
        self.augment = False

    def _inputs(self, rows: np.ndarray) -> Batch:
        pixels = self._pixels.index_select(0, torch.from_numpy(rows))
        if self.augment:
            pixels = crop_and_flip(pixels, rows, self.seed, self.epoch)
        return {"pixel_values": self.settings.apply(pixels)}


class TextDataset(BatchDataset):
    """Texts, tokenized once, padded by batch.

    Args:
        tokens ([`Tokens`]): the token numbers of every text of the split.
        labels (`torch.Tensor`): (texts,).
        rows (`np.ndarray`, *optional*): the examples of this view.

    A batch is `{"input_ids", "attention_mask", … int64 (batch, longest), "labels" (batch,)}`; one example alone is not
    padded.
    """

    def __init__(self, tokens: Any, labels: torch.Tensor, rows: np.ndarray | None = None):
        super().__init__(labels, rows)
        self._tokens = tokens

    @property
    def lengths(self) -> np.ndarray:
        return self._tokens.lengths[self.rows]

    def collate(self, examples: Batch | Sequence[dict[str, torch.Tensor]]) -> Batch:
        if isinstance(examples, dict):
            return examples
        batch = self._tokens.pad([{k: v for k, v in example.items() if k != "labels"} for example in examples])
        batch["labels"] = torch.stack([example["labels"] for example in examples])
        return batch

    def _inputs(self, rows: np.ndarray) -> Batch:
        return self._tokens.batch(rows)
