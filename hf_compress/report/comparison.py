"""Everything that a report on many runs consists of, written into one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import CompressionError
from ..storage import whole_folder, write_text
from .document import experiment_document
from .evaluate_records import save_evaluate_records
from .runs import RunRecord, comparison_csv, comparison_table, rows


DOCUMENTS = {"en": "experiment.md", "zh": "experiment.zh.md"}

Pictures = Callable[[Sequence[RunRecord], Mapping[str, str], Path, str], Sequence[Path]]


def write_comparison(
    records: Sequence[RunRecord],
    problems: Mapping[str, str],
    output: str | Path,
    lang: str = "en",
    pictures: Pictures | None = None,
) -> list[Path]:
    """Write `comparison.md`, `comparison.csv`, `evaluate/` and the document (`experiment.md`, or `experiment.zh.md`).

    Each file, and `evaluate/` as a whole, is written aside and takes its name when it is complete; other files in
    `output` stay.

    Args:
        records (`Sequence[RunRecord]`): the finished runs, at least one.
        problems (`Mapping[str, str]`): the folders of the other runs, each with the reason.
        output (`str` or `Path`): the folder, made if it does not exist.
        lang (`str`, *optional*, defaults to `"en"`): "en" or "zh", the language of the document.
        pictures (`Callable`, *optional*): draws into `output` what the document shows, given all of the above, and
            returns the files.

    Returns:
        `list[Path]`: the files written.

    Raises:
        `CompressionError`: for another language, and if `output/evaluate` holds what no report has written.
    """
    if lang not in DOCUMENTS:
        raise CompressionError(f"lang: got {lang!r}; allowed are {', '.join(DOCUMENTS)}.")
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    collected = output / "evaluate"
    _refuse_foreign(collected)
    table = rows(records)
    texts = {"comparison.md": comparison_table(table), "comparison.csv": comparison_csv(table)}
    drawn = list(pictures(records, problems, output, lang)) if pictures else []
    relative = [Path(path).relative_to(output) for path in drawn]
    texts[DOCUMENTS[lang]] = experiment_document(records, problems, relative, lang)
    with whole_folder(collected) as aside:
        names = [path.name for path in save_evaluate_records(records, aside)]
    for name, text in texts.items():
        write_text(output / name, text)
    return [*(output / name for name in texts), *(collected / name for name in names), *drawn]


def _refuse_foreign(folder: Path) -> None:
    """`folder` is replaced as a whole: someone's own folder of that name must not be."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise CompressionError(f"{folder} is in the way; give another --output.")
    foreign = next((path for path in folder.glob("*") if path.suffix != ".json" or not path.is_file()), None)
    if foreign is not None:
        raise CompressionError(f"{foreign} was not written by a report; give another --output.")
