"""What a model predicts, and how good that is."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import default_data_collator

from ..errors import CompressionError
from .states import device_of, evaluating


LABELS = ("labels", "label", "label_ids")  # what the collators of Transformers turn into `labels`


def predict(
    model: Any,
    dataset: Any,
    batch_size: int = 64,
    *,
    collate_fn: Callable | None = None,
    autocast: torch.dtype | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """
    Logits of every example, in the order of the data set.

    Args:
        model ([`~transformers.PreTrainedModel`] or `OVModel`):
            Anything whose `model(**batch)` has `logits`. Training flags are left as they were.
        dataset ([`~tasks.BatchDataset`], `datasets.Dataset` or a map-style data set):
            Of a `datasets.Dataset`, columns that the model does not take are left out.
        batch_size (`int`, *optional*, defaults to 64):
            Examples at once.
        collate_fn (`Callable`, *optional*):
            Makes a batch of a list of examples, where the data set does not by itself; by default that of
            Transformers, which needs examples of one length.
        autocast (`torch.dtype`, *optional*):
            Run a torch model under autocast in this type; by default it runs as it is.
        progress (`bool`, *optional*, defaults to `False`):
            Show a bar.

    Returns:
        `tuple[np.ndarray, np.ndarray | None]`: float32 logits of shape `(examples, classes)`, and the labels, if the
        data have any.

    Raises:
        [`CompressionError`]: for an empty data set, or outputs without logits.
    """
    if batch_size < 1:
        raise CompressionError(f"batch_size: got {batch_size}; give at least 1.")
    total = len(dataset)
    if total == 0:
        raise CompressionError("The data set is empty, so there is nothing to predict.")
    torch_model = isinstance(model, nn.Module)
    device = device_of(model)
    logits = labels = None
    with (
        evaluating(model) if torch_model else nullcontext(),
        torch.inference_mode(),
        torch.autocast(device.type, autocast) if torch_model and autocast is not None else nullcontext(),
        tqdm(total=total, desc="predict", leave=False, disable=not progress) as bar,
    ):
        for positions, batch in _batches(model, dataset, batch_size, collate_fn):
            answers = batch.pop("labels", None)
            output = model(**{name: tensor.to(device) for name, tensor in batch.items()})
            found = _logits_of(output, model).float().numpy(force=True)
            if logits is None:
                logits = np.empty((total, *found.shape[1:]), dtype=np.float32)
            logits[positions] = found
            if answers is not None:
                answers = torch.as_tensor(answers).numpy(force=True)
                if labels is None:
                    labels = np.empty((total, *answers.shape[1:]), dtype=answers.dtype)
                labels[positions] = answers
            bar.update(len(found))
    return logits, labels


@dataclass(frozen=True)
class Evaluation:
    """
    A model on one split.

    Attributes:
        metrics (`dict[str, float]`): by full name.
        logits (`np.ndarray`): float32, of shape `(examples, classes)`.
    """

    metrics: dict[str, float]
    logits: np.ndarray

    def fingerprint(self) -> dict[str, Any]:
        """What tells a reloaded model: `examples`, `sha256` of all logits, and the logits of the `first` two."""
        digest = hashlib.sha256(np.ascontiguousarray(self.logits).tobytes()).hexdigest()
        first = self.logits[:2].astype(object)
        first[~np.isfinite(self.logits[:2])] = None  # what JSON has for them
        return {"examples": len(self.logits), "sha256": digest, "first": first.tolist()}


def evaluate(
    model: Any,
    data: Any,
    batch_size: int = 64,
    *,
    autocast: torch.dtype | None = None,
    progress: bool = False,
) -> dict[str, Evaluation]:
    """
    A model on each evaluation split of a task.

    Args:
        model ([`~transformers.PreTrainedModel`] or `OVModel`):
            See [`predict`].
        data ([`~tasks.TaskData`]):
            Has `evaluation`, the data sets by split, and `compute_metrics(logits, labels)`.
        batch_size, autocast, progress (*optional*):
            See [`predict`].

    Returns:
        `dict[str, Evaluation]`: by split.
    """
    found = {}
    for split, dataset in data.evaluation.items():
        logits, labels = predict(model, dataset, batch_size, autocast=autocast, progress=progress)
        if labels is None:
            raise CompressionError(f"The split {split!r} has no labels, so a model cannot be evaluated on it.")
        metrics = {name: float(value) for name, value in data.compute_metrics(logits, labels).items()}
        found[split] = Evaluation(metrics, logits)
    return found


def plain_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`accuracy` of a classifier; `pearson` and `mean_squared_error` where there is one logit an example."""
    if logits.ndim == 2 and logits.shape[1] > 1:
        return {"accuracy": float((logits.argmax(axis=1) == labels).mean())}
    values, labels = logits.reshape(-1).astype(np.float64), labels.reshape(-1).astype(np.float64)
    metrics = {"mean_squared_error": float(np.square(values - labels).mean())}
    if len(values) > 1 and values.std() > 0 and labels.std() > 0:
        metrics = {"pearson": float(np.corrcoef(values, labels)[0, 1]), **metrics}
    return metrics


def agreement(logits: np.ndarray, reference: np.ndarray) -> float:
    """
    The share of examples for which two classifiers name the same class.

    Args:
        logits, reference (`np.ndarray` of shape `(examples, classes)`):
            Predictions of the same examples in the same order.
    """
    if logits.shape != reference.shape or logits.ndim != 2 or logits.shape[1] < 2:
        raise CompressionError(
            f"agreement: got logits of the shapes {logits.shape} and {reference.shape}; both must be (examples, "
            "classes), with two classes or more."
        )
    return float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean())


def _batches(
    model: Any, dataset: Any, batch_size: int, collate_fn: Callable | None
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Pairs of positions and batch, that between them name every example once."""
    if hasattr(dataset, "batches") and collate_fn is None:
        for positions, batch in dataset.batches(batch_size):
            yield positions, dict(batch)
        return
    if isinstance(dataset, datasets.Dataset):
        dataset = _known_columns(model, dataset)
    collate = collate_fn or default_data_collator
    for start in range(0, len(dataset), batch_size):
        positions = np.arange(start, min(start + batch_size, len(dataset)))
        batch = collate([dataset[int(position)] for position in positions])
        if not isinstance(batch, Mapping):
            raise CompressionError(f"collate_fn: got {type(batch).__name__} from it; a batch must be a mapping.")
        yield positions, dict(batch)


def _known_columns(model: Any, dataset: datasets.Dataset) -> datasets.Dataset:
    """Without the columns that the model does not take, which collators stumble over (texts, indices)."""
    if dataset.format["type"] == "custom":  # set_transform makes the columns when asked
        return dataset
    if isinstance(model, nn.Module):
        names = set(inspect.signature(model.forward).parameters)
    else:
        names = set(model.input_names)
    kept = [name for name in dataset.column_names if name in names or name in LABELS]
    if not set(kept) - set(LABELS):
        raise CompressionError(
            f"The data set has the columns {', '.join(dataset.column_names)}, none of which {type(model).__name__} "
            f"takes ({', '.join(sorted(names - {'self', 'kwargs', 'args'}))}); tokenize or preprocess it first, or "
            "with set_transform."
        )
    return dataset.select_columns(kept)


def _logits_of(output: Any, model: Any) -> torch.Tensor:
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple) and output:
        logits = output[0]
    if logits is None:
        raise CompressionError(f"{type(model).__name__} gives no logits; use a model with a classification head.")
    return torch.as_tensor(logits)
