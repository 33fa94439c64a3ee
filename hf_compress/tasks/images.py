"""Encoded images to pixels in memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import CompressionError
from .cache import cached_tensors
from .hashing import fingerprint


SUFFIXES = (".png", ".jpg", ".jpeg")
SIDE = 32
# decoding fewer takes less than a second, which is not worth a file in the cache
_WORTH_CACHING = 10_000


def decode(encoded: Sequence[bytes], where: Callable[[int], str]) -> torch.Tensor:
    """Decode PNG or JPEG files of 32 x 32 pixels; large sets are cached by content.

    Args:
        encoded (`Sequence[bytes]`): the files.
        where (`Callable[[int], str]`): names one of them, for messages.

    Returns:
        `torch.Tensor`: `uint8`, (N, 3, 32, 32) in channels-last memory format.

    Raises:
        `CompressionError`: if a file is damaged or of another size.
    """
    if len(encoded) < _WORTH_CACHING:
        return _decode(encoded, where).permute(0, 3, 1, 2)
    name = f"images-{fingerprint(*encoded)}"
    shape = (len(encoded), SIDE, SIDE, 3)

    def valid(tensors: dict[str, torch.Tensor]) -> bool:
        return "pixels" in tensors and tensors["pixels"].shape == shape and tensors["pixels"].dtype == torch.uint8

    return cached_tensors(name, lambda: {"pixels": _decode(encoded, where)}, valid)["pixels"].permute(0, 3, 1, 2)


def read_folder(folder: Path, names: Sequence[str]) -> tuple[torch.Tensor, np.ndarray]:
    """Read `folder/<class>/*.png|jpg`: pixels as `decode` gives them, and labels; by class, then by file name.

    Raises:
        `CompressionError`: if a class has no folder or no images, or a folder is no class.
    """
    found = {path.name.lower(): path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    missing = [name for name in names if name not in found]
    unknown = [name for name in found if name not in names]
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has the unknown {', '.join(unknown)}"
        raise CompressionError(f"{folder} {wrong}; there must be one folder for each of {', '.join(names)}.")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        images = sorted(path for path in found[name].iterdir() if path.suffix.lower() in SUFFIXES)
        if not images:
            raise CompressionError(f"{found[name]} holds no {', '.join(SUFFIXES)} files.")
        paths += images
        labels += [label] * len(images)
    return decode([_read(path) for path in paths], lambda index: str(paths[index])), np.array(labels, dtype=np.int64)


def _decode(encoded: Sequence[bytes], where: Callable[[int], str]) -> torch.Tensor:
    from PIL import Image

    pixels = np.empty((len(encoded), SIDE, SIDE, 3), dtype=np.uint8)
    for index, content in enumerate(encoded):
        try:
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                if image.size != (SIDE, SIDE):
                    raise CompressionError(
                        f"{where(index)} is {image.width} x {image.height}; CIFAR-10 images are {SIDE} x {SIDE}."
                    )
                pixels[index] = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # what PIL raises on damaged files
            if isinstance(error, CompressionError):
                raise
            raise CompressionError(f"{where(index)} is not a readable PNG or JPEG image ({error}).") from error
    return torch.from_numpy(pixels)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CompressionError(f"{path} cannot be read ({error}).") from error
