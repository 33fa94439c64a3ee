"""Files and folders that appear whole or not at all, and what to tell when the disk has no room for them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CompressionError, DiskFullError


NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
FULL = 2**20  # bytes: a disk with fewer is full


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` aside, flush it to the disk and rename it to `path`; a reader sees the old file or the new one.

    Half of a surrogate pair, which JSON and the names of files can hold and UTF-8 cannot, is written as JSON would.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.partial")
    try:
        with open(aside, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike, value) -> None:
    """Write `value` as indented JSON, whole or not at all. Non-finite numbers are refused: no JSON reader has them."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike):
    """Read a JSON file.

    Raises:
        `CompressionError`: if the file is missing, cannot be read or is not whole JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CompressionError(f"{path} does not exist.") from None
    except OSError as error:
        raise CompressionError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8, and integers of thousands of digits
        raise CompressionError(f"{path} is not valid JSON ({error}); it was truncated or edited by hand.") from None


@contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Give a folder beside `path` to fill; it takes the name `path` when the block ends without an error.

    What a killed process left under the side name is removed first; on an error the side folder is removed.

    Raises:
        `DiskFullError`: see [`explain_full_disk`].
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with explain_full_disk(path):  # looks at the disk before the files that fill it are removed
            yield aside
            shutil.rmtree(path, ignore_errors=True)
            os.replace(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


@contextmanager
def explain_full_disk(folder: str | os.PathLike, needed: int = 0) -> Iterator[None]:
    """Raise one clear error in place of the many that libraries raise when the disk of `folder` is full.

    Python's own errors have an `errno`, those of libraries in Rust quote the system's message. Libraries in C++
    (PyTorch, OpenVINO) raise a `RuntimeError` that gives no reason: there the room that is left decides. An error that
    is a `CompressionError` already is left as it is.

    Args:
        folder (`str` or `os.PathLike`): where the block writes; it need not exist.
        needed (`int`, *optional*, defaults to 0): bytes that the block writes, for a library in C++ that removes what
            it has written before it raises.

    Raises:
        `DiskFullError`: from the original error.
    """
    try:
        yield
    except CompressionError:
        raise
    except Exception as error:
        folder = Path(folder).absolute()
        free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
        if _says_no_room(error) or (isinstance(error, RuntimeError) and free < FULL + needed):
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DiskFullError(
                f"{folder}: its disk is full or a quota used up: {free / 1e6:.1f} MB are free ({reason}). Make room "
                "there, or give another output_dir. A run keeps its finished stages when the same command is given "
                "again."
            ) from error
        raise


def _says_no_room(error: BaseException | None) -> bool:
    """Whether the system's word for a full disk or a used-up quota is in the error, or in one that led to it."""
    while error is not None:
        if getattr(error, "errno", None) in NO_ROOM or any(os.strerror(code) in str(error) for code in NO_ROOM):
            return True
        error = error.__cause__ or error.__context__
    return False
