"""Bytes on disk and in memory."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from ..errors import NotFoundError


WEIGHT_SUFFIXES = (".safetensors", ".bin", ".onnx", ".onnx_data", ".data", ".pt", ".pth")
# files of these suffixes that hold no weights of the model
OTHER_FILES = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scheduler.bin", "scaler.pt"}
OTHER_PREFIXES = ("openvino_tokenizer", "openvino_detokenizer", "rng_state")


def folder_size(folder: str | os.PathLike) -> int:
    """
    Bytes of the weight files in a saved model's folder: safetensors, OpenVINO's or PyTorch's `.bin`, ONNX.

    Tokenizers, configurations, a Trainer's own files and sub-folders are not counted.

    Raises:
        [`NotFoundError`]: where there are no weights.
    """
    files = weight_files(folder)
    if not files:
        raise NotFoundError(
            f"{folder}: no weight files found (looked for *{', *'.join(WEIGHT_SUFFIXES)}); give the folder that "
            "save_pretrained wrote."
        )
    return sum(file.stat().st_size for file in files)


def weight_files(folder: str | os.PathLike) -> list[Path]:
    """The files in `folder` that hold the model's weights, sorted by name."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file()
        and file.suffix in WEIGHT_SUFFIXES
        and file.name not in OTHER_FILES
        and not file.name.startswith(OTHER_PREFIXES)
    )


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers in memory, shared ones counted once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
