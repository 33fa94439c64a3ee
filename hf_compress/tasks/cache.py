"""Arrays that are costly to make, kept by the fingerprint of what they were made from."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import torch


logger = logging.getLogger(__name__)

_STALE_SECONDS = 24 * 3600


def cache_directory() -> Path:
    """`HF_HOME/hf_compress`: with the other caches of the ecosystem, not with the data, which may be read-only."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "hf_compress"


def cached_tensors(
    name: str, compute: Callable[[], dict[str, torch.Tensor]], valid: Callable[[dict[str, torch.Tensor]], bool]
) -> dict[str, torch.Tensor]:
    """The tensors kept under `name`, or those that `compute` returns, which are then kept.

    A file appears under its name only when it is whole. Processes that ask at the same time wait for the one that
    computes; one that was killed leaves its lock and a side file that the next writer sweeps up. A damaged file is
    replaced. Where the cache cannot be written (full or read-only disk), a warning says so and nothing is kept.

    Args:
        name (`str`): names the content, such as `"tokens-<fingerprint>"`.
        compute (`Callable`): makes the tensors.
        valid (`Callable`): whether tensors read from the disk are what `compute` would have returned.
    """
    path = cache_directory() / f"{name}.safetensors"
    found = _read(path, valid)
    if found is not None:
        return found
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    except OSError as error:
        logger.warning("%s cannot be written (%s); the tensors are made again next time.", path.parent, error)
        return compute()
    try:
        found = _read(path, valid)
        if found is None:
            found = compute()
            _write(path, found)
        return found
    finally:
        lock.release()


def _read(path: Path, valid: Callable[[dict[str, torch.Tensor]], bool]) -> dict[str, torch.Tensor] | None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(path.read_bytes())  # a copy: nothing that happens to the file later can reach it
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError) as error:
        logger.warning("%s is damaged (%s); it is made again.", path, error)
        return None
    if valid(tensors):
        return tensors
    logger.warning("%s does not hold what its name says; it is made again.", path)
    return None


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    _sweep(path.parent)
    aside = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.partial")
    try:
        save_file(tensors, aside)
        os.replace(aside, path)
    except (SafetensorError, OSError) as error:
        logger.warning("%s could not be written (%s); the tensors are made again next time.", path, error)
    finally:
        aside.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove side files of writers that were killed."""
    for leftover in folder.glob(".*.partial"):
        try:
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()
        except OSError:
            continue  # another process swept it first
