"""Calibration examples in the form that static quantization wants: one at a time, without padding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import CompressionError


if TYPE_CHECKING:
    from ..registry import Batch, StepContext

Example = dict[str, np.ndarray]


class Calibration:
    """The calibration examples of a step, as often as they are iterated over.

    Each pass draws them anew, so that they are never held in memory together and the step's context times every pass.
    An example has a batch of one, because activation ranges are averages over examples, and no padding behind the
    text, because padding would widen the ranges.

    Args:
        context ([`StepContext`]): where the batches come from.
        samples (`int`): how many examples.
        inputs (`Mapping[str, np.dtype]`): names and types of the model's inputs, the main one first.

    Attributes:
        seen (`int`): examples of the last pass.
        fingerprint (`str`): hash of the examples of the last pass.
    """

    def __init__(self, context: StepContext, samples: int, inputs: Mapping[str, np.dtype]):
        self.context, self.samples, self.inputs = context, samples, dict(inputs)
        self.seen, self.fingerprint = 0, ""
        self._passes = 0

    def __iter__(self) -> Iterator[Example]:
        self._passes += 1
        digest, seen, waiting = hashlib.sha256(), 0, None
        # closed explicitly: an engine that stops early must not leave the context's clock running
        batches = self.context.calibration(self.samples)
        try:
            for example in self.context.progress(self._examples(batches), self._description(), self.samples):
                for name, value in example.items():
                    digest.update(f"{name}{value.shape}".encode())
                    digest.update(value.tobytes())
                seen += 1
                self.seen, self.fingerprint = seen, digest.hexdigest()[:16]
                if waiting is not None:
                    yield waiting
                waiting = example  # one behind: an engine that counts to `samples` itself never asks for the end
        finally:
            if hasattr(batches, "close"):
                batches.close()
        if waiting is None:
            raise CompressionError("calibration: the data has no example to calibrate with; give at least one.")
        yield waiting

    def _description(self) -> str:
        return "Calibrating" if self._passes == 1 else f"Calibrating (pass {self._passes})"

    def _examples(self, batches) -> Iterator[Example]:
        left = self.samples
        for batch in batches:
            columns = model_inputs(batch, self.inputs)
            for index in range(min(left, len(next(iter(columns.values()))))):
                yield trim({name: value[index : index + 1] for name, value in columns.items()})
                left -= 1
            if not left:
                return


def model_inputs(batch: Batch, inputs: Mapping[str, np.dtype]) -> Example:
    """The columns of `batch` that the model takes, in its types; masks and segments that are missing are made.

    Raises:
        [`CompressionError`]: if the main input is missing.
    """
    main = next(iter(inputs))
    if main not in batch:
        columns = ", ".join(batch) or "no column that the model takes"
        raise CompressionError(
            f"calibration: the examples have {columns}, and the model needs "
            f"{main}; give data prepared with its tokenizer or image processor, or a collate_fn that prepares it."
        )
    shape = tuple(batch[main].shape)
    columns = {}
    for name, dtype in inputs.items():
        if name in batch:
            columns[name] = _array(batch[name], dtype)
        elif name in ("attention_mask", "token_type_ids"):
            columns[name] = np.full(shape, name == "attention_mask", dtype=dtype)
        else:
            raise CompressionError(f"calibration: the model needs {name}, which the examples do not have.")
    return columns


def trim(example: Example) -> Example:
    """Cut the padding behind the tokens of one example."""
    mask = example.get("attention_mask")
    if mask is None or not mask.any():
        return example
    length = int(np.flatnonzero(mask[0])[-1]) + 1
    return {name: value[:, :length] if value.shape == mask.shape else value for name, value in example.items()}


def _array(value: torch.Tensor | np.ndarray | Sequence, dtype: np.dtype) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    return np.ascontiguousarray(value, dtype=dtype)
