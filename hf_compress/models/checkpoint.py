"""The weight files of a model folder: that they are there, and whole."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from ..errors import CompressionError, NotFoundError, UnsupportedModelError


# in the order in which transformers looks for them
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_LFS_POINTER = b"version https://git-lfs"


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of the model in `folder`; the shards, where an index lists some.

    Raises:
        `NotFoundError`: if there are none.
        `UnsupportedModelError`: if the folder holds an exported model instead.
    """
    for name in WEIGHTS:
        path = folder / name
        if path.is_file():
            return _shards(path) if name.endswith(".index.json") else [path]
    exported = sorted(path.name for pattern in ("*.xml", "*.onnx") for path in folder.glob(pattern))
    if exported:
        raise UnsupportedModelError(
            f"{folder} holds an exported model ({exported[0]}), which no step can go on from. Give the folder of a "
            "PyTorch stage; exported models load with the OVModelFor... and ORTModelFor... classes of Optimum."
        )
    raise NotFoundError(
        f"{folder} has a config.json but no weights; expected {WEIGHTS[0]} (or {', '.join(WEIGHTS[1:])}). Fetch the "
        "file, or set `from_config: true` for random weights."
    )


def check_weights(folder: Path) -> None:
    """Make sure that the weight files in `folder` are there and not cut off, reading their headers only.

    Raises:
        `CompressionError`: the message names the file.
    """
    for path in weight_files(folder):
        if not path.is_file():
            raise NotFoundError(f"{path} is missing, though the index beside it lists it. Fetch the folder again.")
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise CompressionError(
                f"{path} is a Git LFS pointer, not the weights themselves. Run `git lfs pull` in its repository, or "
                "fetch it with `hf download`."
            )
        if path.suffix == ".safetensors":
            _check_safetensors(path)
        elif start[:2] == b"PK" and not zipfile.is_zipfile(path):
            raise _broken(path, "its end is missing")


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _broken(index, f"it is not an index of weights ({error})") from error
    return [index.parent / name for name in sorted(names)]


def _check_safetensors(path: Path) -> None:
    """The format is an 8-byte length, a JSON header with the offsets of every tensor, and the tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _broken(path, f"it has {size:,} bytes, fewer than its header takes")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
            raise _broken(path, "its header cannot be read") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise _broken(path, f"it has {size:,} bytes where its header says {expected:,}")


def _broken(path: Path, what: str) -> CompressionError:
    return CompressionError(f"{path} is truncated or damaged: {what}. Fetch the file again.")
