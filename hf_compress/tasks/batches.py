"""The official `cifar-10-python.tar.gz`, or the folder in it: pickles, read without trusting them."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import CompressionError


ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
FILES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_BYTES_PER_IMAGE = 3 * 32 * 32

# all that an array needs; the module moved in NumPy 2
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}
_BROKEN_PICKLE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
)


class ArrayUnpickler(pickle.Unpickler):
    """Reads plain Python values and NumPy arrays of numbers; whatever else a pickle asks for is refused."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file needs")
        if name == "_reconstruct":
            return _empty_array
        return getattr(np, name)


def _empty_array(kind: type, shape: tuple, code: bytes) -> np.ndarray:
    """What NumPy's own helper does, for plain arrays only."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError("it makes something else than a plain array")
    return np.empty(0, dtype=np.uint8)


def read_folder(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read the unpacked folder: pixels `uint8` (N, 3, 32, 32) and labels, for "train" and "test"."""
    contents = {}
    for name in _names():
        path = folder / name
        try:
            contents[name] = path.read_bytes()
        except FileNotFoundError:
            raise CompressionError(f"{path} is missing. Unpack {ARCHIVE} again.") from None
        except OSError as error:
            raise CompressionError(f"{path} cannot be read ({error}). Unpack {ARCHIVE} again.") from error
    return _splits(contents, str(folder))


def read_archive(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read the archive as it is; nothing is extracted to the disk."""
    contents = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.isfile() and name in _names():
                    contents[name] = archive.extractfile(member).read()
            # the checksum stands behind the padding of the tar, which nothing has read yet
            while archive.fileobj.read(1 << 20):
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise CompressionError(
            f"{path} cannot be read ({error}); it is truncated or damaged. Fetch it again from "
            f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}."
        ) from error
    missing = [name for name in _names() if name not in contents]
    if missing:
        raise CompressionError(f"{path} holds no {', '.join(missing)}; it is not {ARCHIVE}, or incomplete.")
    return _splits(contents, str(path))


def _names() -> Iterator[str]:
    return (name for files in FILES.values() for name in files)


def _splits(contents: dict[str, bytes], where: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    splits = {}
    for split, names in FILES.items():
        parts = [_read_batch(contents[name], f"{where}/{name}") for name in names]
        splits[split] = tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return splits


def _read_batch(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except _BROKEN_PICKLE as error:
        raise CompressionError(
            f"{where} is refused: {error}. It is damaged, or not the official CIFAR-10; fetch {ARCHIVE} again."
        ) from error
    data, labels = _entry(batch, "data", where), _entry(batch, "labels", where)
    shaped = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2
    if not shaped or data.shape[1] != _BYTES_PER_IMAGE:
        raise CompressionError(f"{where}: 'data' is not a uint8 array of {_BYTES_PER_IMAGE} bytes an image.")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(label) is int for label in labels):
        raise CompressionError(f"{where}: 'labels' is not a list of {len(data)} numbers, one for each image.")
    return data.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def _entry(batch: object, name: str, where: str):
    """Python 2 wrote the keys as bytes; copies made since have text."""
    if isinstance(batch, dict):
        for key in (name.encode(), name):
            if key in batch:
                return batch[key]
    raise CompressionError(f"{where} has no {name!r}; it is not a batch of CIFAR-10 (is it CIFAR-100?).")
