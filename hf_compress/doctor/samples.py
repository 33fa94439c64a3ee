"""Data for a rehearsal: as much as some batches need, of the shapes and lengths of the task's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..tasks import Task, TaskData, TextDataset, published_sizes
from ..tasks.examples import ImageExamples, TextExamples
from ..tasks.selection import HOLDOUT_SHARE
from ..tasks.tokens import Tokens


EXAMPLES = 1024  # of each split, in a rehearsal
READ_AT_ONCE = 50 * 2**20  # bytes of image files up to which they are counted by reading them
PIXELS = (3, 32, 32)  # of an image as CIFAR-10 stores it


@dataclass(frozen=True)
class Sizes:
    """How many examples a recipe works on: trained on, watched meanwhile, and evaluated on over all splits."""

    train: int
    holdout: int
    evaluation: int

    @classmethod
    def of(cls, task: Task, splits: Mapping[str, int]) -> Sizes:
        """What the recipe's limits leave of splits of these sizes."""
        held = max(1, round(splits["train"] * HOLDOUT_SHARE)) if splits["train"] > 1 else 0
        free, limit = splits["train"] - held, task.spec.max_train_samples
        most = task.spec.max_eval_samples
        return cls(
            train=min(free, limit or free),
            holdout=held if limit is None else max(1, round(held * min(1, limit / free))),
            evaluation=sum(min(splits[name], most or splits[name]) for name in task.eval_splits),
        )


def sample(task: Task, processor: Any) -> tuple[TaskData, Sizes, str]:
    """Some examples for timing, how many there are in all, and what both rest on.

    Texts are the task's own where they are here, because their lengths decide; pixels are made up.
    """
    here = task.source != task.hub_dataset
    sizes = published_sizes(task.spec)
    if task.modality == "image":
        small_enough = here and _bytes(Path(task.source)) <= READ_AT_ONCE
        if small_enough:
            sizes = {split: len(examples.labels) for split, examples in task.read().items()}
        examples = {split: _images(task, min(size, EXAMPLES)) for split, size in sizes.items()}
        basis = f"made-up images, {'as many as there are' if small_enough else 'as many as were published'}"
        return _prepared(task, examples, processor), Sizes.of(task, sizes), basis
    if here and processor is not None:
        splits = task.read()
        sizes = {split: len(examples.labels) for split, examples in splits.items()}
        examples = {split: _some_texts(split_examples) for split, split_examples in splits.items()}
        basis = f"{EXAMPLES} of the task's own texts"
        return _prepared(task, examples, processor), Sizes.of(task, sizes), basis
    basis = f"made-up texts, all of {task.spec.max_length} tokens, because the task's own are not here"
    return _made_up_texts(task), Sizes.of(task, sizes), basis


def _prepared(task: Task, examples: dict, processor: Any) -> TaskData:
    unlimited = replace(task.spec, max_train_samples=None, max_eval_samples=None)
    return replace(task, spec=unlimited, read=lambda: examples).prepare(processor)


def _bytes(place: Path) -> int:
    files = [place] if place.is_file() else place.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _images(task: Task, count: int) -> ImageExamples:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, *PIXELS), dtype=torch.uint8, generator=generator)
    labels = np.arange(count, dtype=np.int64) % task.num_labels
    return ImageExamples(pixels.contiguous(memory_format=torch.channels_last), labels)


def _some_texts(examples: TextExamples) -> TextExamples:
    rows = np.random.default_rng(0).permutation(len(examples.labels))[:EXAMPLES]
    return TextExamples(tuple([column[row] for row in rows] for column in examples.columns), examples.labels[rows])


def _made_up_texts(task: Task) -> TaskData:
    length, generator = task.spec.max_length, np.random.default_rng(0)
    flat = {"input_ids": generator.integers(5, 1000, EXAMPLES * length, dtype=np.int32)}
    tokens = Tokens(flat, np.arange(EXAMPLES + 1, dtype=np.int64) * length, {"input_ids": 0})
    classes = torch.arange(EXAMPLES) % task.num_labels
    data = TextDataset(tokens, classes.float() if task.problem_type == "regression" else classes)
    return TaskData(data, data, dict.fromkeys(task.eval_splits, data), lambda predictions, references: {})
