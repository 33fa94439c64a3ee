"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CompressionError


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` aside, flush it to the disk and rename it to `path`; a reader sees the old file or the new one."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.partial")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def write_json(path: str | os.PathLike, value) -> None:
    """Write `value` as indented JSON, whole or not at all. Non-finite numbers are refused: no JSON reader has them."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike):
    """Read a JSON file.

    Raises:
        `CompressionError`: if the file is missing or is not whole JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CompressionError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CompressionError(f"{path} is not valid JSON ({error}); it was truncated or edited by hand.") from None


@contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Give a folder beside `path` to fill; it takes the name `path` when the block ends without an error.

    What a killed process left under the side name is removed first; on an error the side folder is removed.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        shutil.rmtree(path, ignore_errors=True)
        os.replace(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
