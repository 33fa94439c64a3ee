"""GLUE: nine subsets of sentences and pairs of sentences (Wang et al., ICLR 2019)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import CompressionError, NotFoundError
from . import parquet, tsv
from .examples import TextExamples, checked_labels, checked_scores


logger = logging.getLogger(__name__)

HUB_ID = "nyu-mll/glue"
FORMS = (
    "the Hub's parquet (sst2/train-00000-of-00001.parquet, sst2/validation-…)",
    "the original folders (SST-2/train.tsv, SST-2/dev.tsv)",
    "a zip of them (glue_data.zip, SST-2.zip), or a folder with such zips",
)

Files = tsv.FolderFiles | tsv.ZipFiles
Reader = Callable[[], dict[str, TextExamples]]


@dataclass(frozen=True)
class Subset:
    """What is particular about one subset.

    Args:
        name (`str`): the Hub's name.
        folder (`str`): the name of its original folder.
        columns (`tuple[str, ...]`): its one or two texts in the Hub's files.
        tsv_columns (`tuple[str, ...]`): the same in the original files, then the label.
        labels (`tuple[str, ...]`): the classes in the Hub's order; none for a regression.
        main_metric (`str`): the one that a table has room for.
        sizes (`dict[str, int]`): examples of each split that is used.
    """

    name: str
    folder: str
    columns: tuple[str, ...]
    tsv_columns: tuple[str, ...]
    labels: tuple[str, ...]
    main_metric: str
    sizes: dict[str, int]

    @property
    def eval_splits(self) -> tuple[str, ...]:
        return tuple(self.sizes)[1:]

    def tsv_name(self, split: str) -> str:
        return f"{split.replace('validation', 'dev')}.tsv"


def _sizes(train: int, validation: int) -> dict[str, int]:
    return {"train": train, "validation": validation}


_ONE, _PAIR = ("sentence",), ("sentence1", "sentence2")
_ASKED, _ANSWER = ("question1", "question2"), ("question", "sentence")
_MRPC_COLUMNS = ("#1 String", "#2 String", "Quality")
_ACCEPTABLE = ("unacceptable", "acceptable")
_DUPLICATE = ("not_duplicate", "duplicate")
_YES_NO = ("entailment", "not_entailment")
_THREE = ("entailment", "neutral", "contradiction")
_MNLI_SIZES = {"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832}

_SUBSETS = (
    Subset("cola", "CoLA", _ONE, (), _ACCEPTABLE, "matthews_correlation", _sizes(8551, 1043)),
    Subset("sst2", "SST-2", _ONE, (*_ONE, "label"), ("negative", "positive"), "accuracy", _sizes(67349, 872)),
    Subset("mrpc", "MRPC", _PAIR, _MRPC_COLUMNS, ("not_equivalent", "equivalent"), "f1", _sizes(3668, 408)),
    Subset("qqp", "QQP", _ASKED, (*_ASKED, "is_duplicate"), _DUPLICATE, "f1", _sizes(363846, 40430)),
    Subset("stsb", "STS-B", _PAIR, (*_PAIR, "score"), (), "pearson", _sizes(5749, 1500)),
    Subset("mnli", "MNLI", ("premise", "hypothesis"), (*_PAIR, "gold_label"), _THREE, "accuracy", _MNLI_SIZES),
    Subset("qnli", "QNLI", _ANSWER, (*_ANSWER, "label"), _YES_NO, "accuracy", _sizes(104743, 5463)),
    Subset("rte", "RTE", _PAIR, (*_PAIR, "label"), _YES_NO, "accuracy", _sizes(2490, 277)),
    Subset("wnli", "WNLI", _PAIR, (*_PAIR, "label"), _YES_NO[::-1], "accuracy", _sizes(635, 71)),
)
SUBSETS = {subset.name: subset for subset in _SUBSETS}

# MRPC as Microsoft ships it: one training file, and the pairs of it that GLUE evaluates on
_MRPC_ORIGINAL, _MRPC_DEV_IDS = "msr_paraphrase_train.txt", "dev_ids.tsv"
_COLA_LABEL, _COLA_SENTENCE = 1, 3


def find(place: Path, subset: Subset) -> Reader | None:
    """How to read `subset` at `place`; `None` if none of the known forms is there. No examples are read yet."""
    if place.is_file():
        files = tsv.find_in_zip(place, subset.folder) if place.suffix.lower() == ".zip" else None
        return functools.partial(_read_files, files, subset) if files else None
    if not place.is_dir():
        return None
    folders = [path for path in sorted(place.iterdir()) if path.is_dir() and tsv.same_name(path.name, subset.name)]
    for folder in (*folders, place):
        if any(parquet.has_split(folder, split) for split in subset.sizes) and (folder != place or _is(place, subset)):
            return functools.partial(_read_parquet, folder, subset)
    for folder in (*folders, place):
        files = tsv.FolderFiles(folder)
        if _has_texts(files, subset) and (folder != place or _is(place, subset)):
            return functools.partial(_read_files, files, subset)
    for archive in sorted(place.glob("*.zip"), key=lambda path: (not tsv.same_name(path.stem, subset.name), path)):
        files = tsv.find_in_zip(archive, subset.folder)
        if files is not None:
            return functools.partial(_read_files, files, subset)
    return None


def read_hub(subset: Subset) -> dict[str, TextExamples]:
    tables = parquet.read_hub(HUB_ID, subset.name, tuple(subset.sizes), (*subset.columns, "label"))
    return {split: _from_table(table, subset, f"{HUB_ID} ({subset.name}, {split})") for split, table in tables.items()}


def _is(place: Path, subset: Subset) -> bool:
    """Files that lie right in `place` belong to the subset it is named after."""
    return tsv.same_name(place.resolve().name, subset.name)


def _has_texts(files: Files, subset: Subset) -> bool:
    names = [subset.tsv_name(split) for split in subset.sizes]
    return any(files.has(name) for name in (*names, *([_MRPC_ORIGINAL] if subset.name == "mrpc" else [])))


def _read_parquet(folder: Path, subset: Subset) -> dict[str, TextExamples]:
    examples = {}
    for split in subset.sizes:
        table = parquet.read_split(folder, split, (*subset.columns, "label"))
        examples[split] = _from_table(table, subset, f"{folder} ({split})")
        _check_size(examples[split], subset, split, str(folder))
    return examples


def _from_table(table, subset: Subset, where: str) -> TextExamples:
    import pyarrow as pa

    columns = tuple(parquet.column(table, name, where) for name in subset.columns)
    if not all(pa.types.is_string(column.type) or pa.types.is_large_string(column.type) for column in columns):
        raise CompressionError(f"{where}: {', '.join(subset.columns)} are not texts. It is not this subset.")
    if subset.labels:
        numbers = parquet.class_numbers(table, "label", subset.labels, where)
        labels = checked_labels(numbers, subset.labels, where)
    else:
        labels = checked_scores(parquet.column(table, "label", where).to_numpy(), where)
    return TextExamples(tuple(column.to_pylist() for column in columns), labels)


def _read_files(files: Files, subset: Subset) -> dict[str, TextExamples]:
    original_mrpc = subset.name == "mrpc" and not files.has("train.tsv") and files.has(_MRPC_ORIGINAL)
    examples = {}
    for split in subset.sizes:
        name = _MRPC_ORIGINAL if original_mrpc else subset.tsv_name(split)
        if not files.has(name):
            raise NotFoundError(
                f"{files.where(name)} is missing, which holds the {split} split; there are "
                f"{', '.join(files.names()[:8]) or 'no files'}. Fetch GLUE again."
            )
        columns = _mrpc_columns(files, subset, split) if original_mrpc else _tsv_columns(files, subset, name)
        where = files.where(name)
        examples[split] = TextExamples(tuple(columns[:-1]), _parse_labels(columns[-1], subset, where))
        _check_size(examples[split], subset, split, where)
    return examples


def _tsv_columns(files: Files, subset: Subset, name: str) -> list[list[str]]:
    where, content = files.where(name), files.read(name)
    if subset.name == "cola":  # its files have no header
        return tsv.pick_fields(tsv.read_rows(content, where), (_COLA_SENTENCE, _COLA_LABEL), where)
    # a few lines of QQP are cut short in the original itself
    return tsv.read_columns(content, subset.tsv_columns, where, drop_short=subset.name == "qqp")


def _mrpc_columns(files: Files, subset: Subset, split: str) -> list[list[str]]:
    where = files.where(_MRPC_ORIGINAL)
    if not files.has(_MRPC_DEV_IDS):
        raise NotFoundError(
            f"{files.where(_MRPC_DEV_IDS)} is missing; it says which pairs of {_MRPC_ORIGINAL} are for validation. "
            "Fetch GLUE's MRPC/dev_ids.tsv, or MRPC as train.tsv and dev.tsv."
        )
    rows = tsv.read_rows(files.read(_MRPC_DEV_IDS), files.where(_MRPC_DEV_IDS))
    held = set(zip(*tsv.pick_fields(rows, (0, 1), files.where(_MRPC_DEV_IDS)), strict=True))
    first, second, *columns = tsv.read_columns(
        files.read(_MRPC_ORIGINAL), ("#1 ID", "#2 ID", *subset.tsv_columns), where
    )
    wanted = [(pair in held) == (split != "train") for pair in zip(first, second, strict=True)]
    return [[value for value, keep in zip(column, wanted, strict=True) if keep] for column in columns]


def _parse_labels(values: list[str], subset: Subset, where: str) -> np.ndarray:
    """Labels as the original writes them: numbers, or the names of the classes."""
    numbers = {name: index for index, name in enumerate(subset.labels)}
    numbers |= {str(index): index for index in range(len(subset.labels))}
    try:
        if not subset.labels:
            return checked_scores([float(value) for value in values], where)
        return checked_labels([numbers[value] for value in values], subset.labels, where)
    except (KeyError, ValueError) as error:
        if isinstance(error, CompressionError):
            raise
        allowed = ", ".join(numbers) or "numbers from 0 to 5"
        raise CompressionError(
            f"{where}: a label is not valid ({error}); allowed are {allowed}. The file is damaged; fetch it again."
        ) from error


def _check_size(examples: TextExamples, subset: Subset, split: str, where: str) -> None:
    """A file cut at the end of a line looks whole; its length tells."""
    if len(examples.labels) != subset.sizes[split]:
        logger.warning(
            "%s: %d examples; the published %s split of %s has %d. The file may be incomplete.",
            *(where, len(examples.labels), split, subset.name, subset.sizes[split]),
        )
