"""Splits in the Hub's parquet layout, from a local folder or from the Hub itself."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import CompressionError, NotFoundError


if TYPE_CHECKING:
    import pyarrow

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
_LFS = b"version https://git-lfs"


def find_shards(folder: Path, split: str) -> list[Path]:
    """The parquet files of `split` in `folder`, in order: `split.parquet` or `split-00000-of-00002.parquet` …

    Raises:
        `CompressionError`: if a shard that another one's name promises is missing.
    """
    whole = folder / f"{split}.parquet"
    if whole.is_file():
        return [whole]
    shards = sorted(folder.glob(f"{split}-*-of-*.parquet"))
    shards = [shard for shard in shards if _SHARD.sub("", shard.stem) == split]
    if not shards:
        return []
    total = max(int(_SHARD.search(shard.stem)[2]) for shard in shards)
    expected = [folder / f"{split}-{number:05d}-of-{total:05d}.parquet" for number in range(total)]
    missing = [path.name for path in expected if path not in shards]
    if missing:
        raise CompressionError(f"{folder} lacks {', '.join(missing)}. Fetch the data set again.")
    return expected


def has_split(folder: Path, split: str) -> bool:
    return (folder / f"{split}.parquet").is_file() or any(folder.glob(f"{split}-*-of-*.parquet"))


def read_split(folder: Path, split: str, columns: Sequence[str]) -> pyarrow.Table:
    """Read `columns` of a split.

    Raises:
        `NotFoundError`: if there is no file of this split.
        `CompressionError`: if one is truncated, damaged or of other columns; the message names it.
    """
    import pyarrow as pa

    shards = find_shards(folder, split)
    if not shards:
        raise NotFoundError(
            f"{folder} has no {split}-*.parquet, which this task needs; it holds {_listing(folder)}. "
            "Fetch the data set again."
        )
    tables = [_read_file(shard, columns) for shard in shards]
    schemas = {str(table.schema.remove_metadata()) for table in tables}
    if len(schemas) > 1:
        raise CompressionError(f"The shards of {split} in {folder} differ in their columns. Fetch the data set again.")
    return pa.concat_tables(tables)


def _read_file(path: Path, columns: Sequence[str]) -> pyarrow.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(path, "rb") as file:
            if file.read(len(_LFS)) == _LFS:
                raise CompressionError(f"{path} is a Git LFS pointer, not the data. Run `git lfs pull` in its folder.")
        names = pq.read_schema(path).names
        missing = [column for column in columns if column not in names]
        if missing:
            raise CompressionError(
                f"{path} has the columns {', '.join(names)}, without {', '.join(missing)}; it is not this data set."
            )
        return pq.read_table(path, columns=list(columns), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise CompressionError(
            f"{path} cannot be read ({error}); it is truncated or damaged. Fetch the file again."
        ) from error


def read_hub(dataset: str, config: str, splits: Sequence[str], columns: Sequence[str]) -> dict[str, pyarrow.Table]:
    """Load splits from the Hub, or from the cache of `datasets`. `HF_ENDPOINT` and `HF_HUB_OFFLINE` are honoured."""
    import datasets

    loaded = datasets.load_dataset(dataset, config, split=list(splits))
    tables = {}
    for split, part in zip(splits, loaded, strict=True):
        missing = [column for column in columns if column not in part.column_names]
        if missing:
            raise CompressionError(
                f"{dataset} ({config}) has the columns {', '.join(part.column_names)}, without {', '.join(missing)}."
            )
        table = part.select_columns(list(columns)).with_format("arrow")[:]
        tables[split] = table.replace_schema_metadata(part.features.arrow_schema.metadata)
    return tables


def column(table: pyarrow.Table, name: str, where: str) -> pyarrow.ChunkedArray:
    """A column that has a value in every row."""
    values = table[name]
    if values.null_count:
        raise CompressionError(f"{where}: {values.null_count} examples have no {name}. Fetch the data set again.")
    return values


def class_numbers(table: pyarrow.Table, name: str, names: Sequence[str], where: str) -> np.ndarray:
    """Labels in the order of `names`, even if the file was written with another order of the same classes.

    Raises:
        `CompressionError`: if the file names other classes.
    """
    import pyarrow as pa

    labels = column(table, name, where)
    if not pa.types.is_integer(labels.type):
        raise CompressionError(f"{where}: the labels are {labels.type}, not class numbers. It is not this data set.")
    numbers = labels.to_numpy()
    stored = _stored_names(table, name)
    if stored is None or stored == list(names):
        return numbers
    if sorted(stored) != sorted(names):
        raise CompressionError(f"{where} has the classes {', '.join(stored)}; this task has {', '.join(names)}.")
    inside = (numbers >= 0) & (numbers < len(stored))
    order = np.array([list(names).index(label) for label in stored])
    return np.where(inside, order[np.where(inside, numbers, 0)], numbers)


def _stored_names(table: pyarrow.Table, name: str) -> list[str] | None:
    """The class names that `datasets` keeps in a file's metadata."""
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    try:
        feature = json.loads(metadata)["info"]["features"][name]
    except (ValueError, KeyError, TypeError):
        return None  # not written by datasets, or by a version that keeps other facts
    return feature.get("names")


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "nothing"
