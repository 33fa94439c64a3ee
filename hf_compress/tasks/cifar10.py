"""CIFAR-10: 50,000 + 10,000 colour images of 32 x 32 pixels in ten classes (Krizhevsky, 2009)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import CompressionError, NotFoundError
from . import batches, images, parquet
from .examples import ImageExamples, checked_labels


if TYPE_CHECKING:
    import pyarrow

HUB_ID = "uoft-cs/cifar10"
HUB_CONFIG = "plain_text"
LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZES = {"train": 50_000, "test": 10_000}
SPLITS = tuple(SIZES)
SAMPLE = Path(__file__).parents[1] / "data" / "cifar10_sample"
FORMS = (
    f"the Hub's parquet ({HUB_CONFIG}/train-00000-of-00001.parquet, {HUB_CONFIG}/test-…)",
    f"{batches.ARCHIVE}, or its folder {batches.FOLDER}",
    "image folders (train/airplane/*.png, test/truck/*.jpg …)",
)
_COLUMNS = ("img", "label")

Reader = Callable[[], dict[str, ImageExamples]]


def find(place: Path) -> Reader | None:
    """How to read the CIFAR-10 at `place`; `None` if none of the known forms is there. Nothing is read yet."""
    if place.is_file():
        return functools.partial(_read_archive, place) if place.name.endswith((".tar.gz", ".tgz", ".tar")) else None
    for folder in (place / HUB_CONFIG, place):
        if any(parquet.has_split(folder, split) for split in SPLITS):
            return functools.partial(_read_parquet, folder)
    for folder in (place / batches.FOLDER, place):
        if any((folder / name).is_file() for names in batches.FILES.values() for name in names):
            return functools.partial(_read_batches, folder)
    if (place / batches.ARCHIVE).is_file():
        return functools.partial(_read_archive, place / batches.ARCHIVE)
    if any((place / split / LABELS[0]).is_dir() for split in SPLITS):
        return functools.partial(_read_folders, place)
    return None


def read_hub() -> dict[str, ImageExamples]:
    tables = parquet.read_hub(HUB_ID, HUB_CONFIG, SPLITS, _COLUMNS)
    return {split: _from_table(table, f"{HUB_ID} ({split})") for split, table in tables.items()}


def _read_parquet(folder: Path) -> dict[str, ImageExamples]:
    tables = {split: parquet.read_split(folder, split, _COLUMNS) for split in SPLITS}
    return {split: _from_table(table, f"{folder} ({split})") for split, table in tables.items()}


def _read_batches(folder: Path) -> dict[str, ImageExamples]:
    return _from_batches(batches.read_folder(folder), str(folder))


def _read_archive(path: Path) -> dict[str, ImageExamples]:
    return _from_batches(batches.read_archive(path), str(path))


def _read_folders(place: Path) -> dict[str, ImageExamples]:
    missing = [split for split in SPLITS if not (place / split).is_dir()]
    if missing:
        raise NotFoundError(f"{place} has no folder {missing[0]!r}; both {' and '.join(SPLITS)} are needed.")
    return {split: ImageExamples(*images.read_folder(place / split, LABELS)) for split in SPLITS}


def _from_batches(splits: dict[str, tuple[np.ndarray, np.ndarray]], where: str) -> dict[str, ImageExamples]:
    return {
        split: ImageExamples(
            torch.from_numpy(pixels).contiguous(memory_format=torch.channels_last),
            checked_labels(labels, LABELS, f"{where} ({split})"),
        )
        for split, (pixels, labels) in splits.items()
    }


def _from_table(table: pyarrow.Table, where: str) -> ImageExamples:
    import pyarrow as pa
    import pyarrow.compute as pc

    labels = checked_labels(parquet.class_numbers(table, "label", LABELS, where), LABELS, where)
    column = parquet.column(table, "img", where)
    if not pa.types.is_struct(column.type) or "bytes" not in [field.name for field in column.type]:
        raise CompressionError(f"{where}: 'img' is {column.type}, not encoded images. It is not this data set.")
    encoded = pc.struct_field(column, "bytes")
    if encoded.null_count:
        raise CompressionError(f"{where}: {encoded.null_count} images are stored as paths only. Fetch the data again.")
    return ImageExamples(images.decode(encoded.to_pylist(), lambda index: f"{where}, image {index}"), labels)
