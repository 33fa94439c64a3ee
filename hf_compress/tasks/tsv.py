"""The original GLUE files: tab-separated texts in a folder for each subset, or a zip of such folders."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import CompressionError


logger = logging.getLogger(__name__)


def same_name(first: str, second: str) -> bool:
    """Whether two names of a subset are the same but for case, hyphens and underscores, such as "SST-2" and "sst2"."""
    return _plain(first) == _plain(second)


@dataclass(frozen=True)
class FolderFiles:
    """The files of one subset in a folder."""

    folder: Path

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def where(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise CompressionError(f"{self.where(name)} cannot be read ({error}). Fetch the file again.") from error

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@dataclass(frozen=True)
class ZipFiles:
    """The files of one subset in a zip. They are read into memory; nothing is ever extracted to the disk."""

    path: Path
    folder: str
    members: dict[str, str]

    def has(self, name: str) -> bool:
        return name in self.members

    def where(self, name: str) -> str:
        return f"{self.path} ({self.members.get(name, f'{self.folder}/{name}')})"

    def read(self, name: str) -> bytes:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.members[name])
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise CompressionError(
                f"{self.where(name)} cannot be read ({error}); the zip is truncated or damaged. Fetch it again."
            ) from error
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or a method that zipfile does not know
            raise CompressionError(f"{self.where(name)} cannot be read: {error}.") from error

    def names(self) -> list[str]:
        return sorted(self.members)


def find_in_zip(path: Path, folder: str) -> ZipFiles | None:
    """The subset `folder` of a zip: the folder of that name nearest to the root, or the root of a zip of that name."""
    found: dict[PurePosixPath, dict[str, str]] = {}
    for member in _members(path):
        parts = PurePosixPath(member.replace("\\", "/"))
        if parts.parts[0] != "__MACOSX":
            found.setdefault(parts.parent, {})[parts.name] = member
    matching = [place for place in found if same_name(place.name, folder)]
    if matching:
        place = min(matching, key=lambda place: (len(place.parts), str(place)))
        return ZipFiles(path, str(place), found[place])
    root = PurePosixPath(".")
    if same_name(path.stem, folder) and root in found:
        return ZipFiles(path, path.stem, found[root])
    return None


def read_rows(content: bytes, where: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers (from 1) and fields. Quotes mean nothing, and only a line feed ends a line, as in the Hub's copy.

    Raises:
        `CompressionError`: if the file is not UTF-8.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CompressionError(
            f"{where}, line {line}: not UTF-8 ({error.reason}); the file is damaged. Fetch it again."
        ) from error
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if line:
            yield number, line.split("\t")


def read_columns(content: bytes, columns: tuple[str, ...], where: str, drop_short: bool = False) -> list[list[str]]:
    """The named columns of a file with a header line.

    Args:
        columns (`tuple[str, ...]`): their names in the header.
        drop_short (`bool`, *optional*, defaults to `False`): leave out lines that lack one of them, and log how many.

    Raises:
        `CompressionError`: if the header lacks a column, or a line is too short.
    """
    rows = read_rows(content, where)
    _, header = next(rows, (0, []))
    missing = [name for name in columns if name not in header]
    if missing:
        raise CompressionError(
            f"{where} has the columns {', '.join(header) or 'none'}, without {', '.join(missing)}; it is truncated, "
            "or not a file of this subset."
        )
    return pick_fields(rows, tuple(header.index(name) for name in columns), where, drop_short)


def pick_fields(
    rows: Iterator[tuple[int, list[str]]], places: tuple[int, ...], where: str, drop_short: bool = False
) -> list[list[str]]:
    """The fields at `places` of every line, as columns."""
    needed, dropped = max(places) + 1, 0
    columns: list[list[str]] = [[] for _ in places]
    for number, fields in rows:
        if len(fields) < needed:
            if not drop_short:
                raise CompressionError(
                    f"{where}, line {number}: {len(fields)} fields, at least {needed} are needed; the file is "
                    "truncated or damaged. Fetch it again."
                )
            dropped += 1
            continue
        for column, place in zip(columns, places, strict=True):
            column.append(fields[place])
    if dropped:
        logger.warning("%s: %d incomplete lines are left out, as in the Hub's copy.", where, dropped)
    return columns


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [member.filename for member in archive.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise CompressionError(
            f"{path} cannot be read ({error}); the zip is truncated or damaged. Fetch it again."
        ) from error


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
