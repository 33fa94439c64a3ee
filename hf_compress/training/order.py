"""The order of training examples, as a function of (seed, epoch) over global batches.

A global batch is what one optimizer step sees: examples per device x processes x accumulation steps. It is drawn first
and split afterwards, so one process, several processes and accumulation see the same global batches, and a training
that goes on from a checkpoint sees the ones an uninterrupted training sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import datasets
import numpy as np
from torch.utils.data import BatchSampler, Dataset


MEGA_CHUNK = 50  # global batches that are sorted by length together: less padding, still a different mix every epoch


def epoch_order(
    examples: int,
    global_batch: int,
    *,
    seed: int,
    epoch: int,
    lengths: np.ndarray | None = None,
    drop_last: bool = False,
) -> np.ndarray:
    """The examples of one epoch, a row a global batch.

    The last global batch is filled up from the beginning of the epoch's shuffle (with `drop_last`, dropped), because
    unequal parts of a batch would weigh unequally once processes average their gradients.

    Args:
        examples (`int`): size of the data set, at least 1.
        global_batch (`int`): examples of one optimizer step.
        seed (`int`), epoch (`int`): all that the shuffle depends on.
        lengths (`np.ndarray` of shape `(examples,)`, *optional*): tokens of each example; given, examples of a like
            length share a batch.

    Returns:
        `np.ndarray` of shape `(steps, global_batch)`: indices of examples.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(examples)
    steps = examples // global_batch if drop_last and examples >= global_batch else -(-examples // global_batch)
    order = np.resize(order, steps * global_batch)  # repeats from the beginning, or cuts
    if lengths is None:
        return order.reshape(steps, global_batch)
    size = MEGA_CHUNK * global_batch
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    order = np.concatenate([chunk[np.argsort(-lengths[chunk], kind="stable")] for chunk in chunks])
    return order.reshape(steps, global_batch)[generator.permutation(steps)]


class GlobalBatchSampler(BatchSampler):
    """Batch sampler over the parts of global batches, in the order in which processes and accumulation take them.

    Accelerate hands batch `i` to process `i % processes`, so part `a * processes + r` of a global batch is
    accumulation step `a` of process `r`. The number of batches is always a multiple of `parts`.

    Args:
        examples (`int`): size of the data set.
        batch_size (`int`): examples of one forward pass of one process.
        parts (`int`): processes x accumulation steps.
        seed (`int`), lengths, drop_last: as in [`epoch_order`].
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        *,
        parts: int = 1,
        seed: int = 0,
        lengths: np.ndarray | None = None,
        drop_last: bool = False,
    ):
        self.examples = examples
        self.batch_size = batch_size
        self.parts = parts
        self.seed = seed
        self.lengths = lengths
        self.drop_last = drop_last
        self.epoch = 0

    @property
    def steps(self) -> int:
        """Optimizer steps in one epoch."""
        size = self.batch_size * self.parts
        if self.drop_last and self.examples >= size:
            return self.examples // size
        return -(-self.examples // size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(
            self.examples,
            self.batch_size * self.parts,
            seed=self.seed,
            epoch=self.epoch,
            lengths=self.lengths,
            drop_last=self.drop_last,
        )
        for batch in order.reshape(-1, self.batch_size):
            yield batch.tolist()


def lengths_of(dataset: Dataset, length_column: str = "length") -> np.ndarray | None:
    """Tokens of each example where they are known without reading every example, else `None`.

    Taken from the attribute `lengths`, or from the columns `length` or `input_ids` of a `datasets.Dataset`. Examples
    that are all equally long, such as those padded to a fixed length, count as unknown: there is nothing to gain.
    """
    lengths: Sequence[int] | None = getattr(dataset, "lengths", None)
    if lengths is None and isinstance(dataset, datasets.Dataset):
        column = next((name for name in (length_column, "input_ids") if name in dataset.column_names), None)
        if column is not None:
            values = dataset.select_columns([column]).with_format("arrow")[:][column]
            if column == "input_ids":
                import pyarrow.compute

                values = pyarrow.compute.list_value_length(values)
            lengths = values.to_numpy()
    if lengths is None or len(lengths) == 0:
        return None
    lengths = np.asarray(lengths)
    return None if (lengths == lengths[0]).all() else lengths


class SortedByLength(Dataset):
    """A view of a data set in which like lengths are neighbours, for evaluation: less padding, the same metrics."""

    def __init__(self, dataset: Dataset, lengths: np.ndarray):
        self.dataset = dataset
        self.order = np.argsort(-lengths, kind="stable").tolist()

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int):
        return self.dataset[self.order[index]]

    def __getitems__(self, indices: Sequence[int]):
        chosen = [self.order[index] for index in indices]
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(chosen)
        return [self.dataset[index] for index in chosen]
