"""`measure`: what a model costs and what it is worth, beside another one, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..errors import CompressionError
from .accuracy import agreement, plain_metrics, predict
from .comparison import latency_rows
from .macs import count
from .openvino_export import require_openvino
from .runtimes import TORCH_PRECISIONS, arithmetic, openvino_model, stored_bytes, stored_precision
from .size import folder_size, parameter_bytes


if TYPE_CHECKING:
    from ..registry import Batch


@dataclass
class Measurement:
    """
    What [`measure`] found; `print` shows it as a table, `to_dict` gives it as plain JSON.

    Attributes:
        name (`str`): the class of the model.
        params, nonzero_params, macs, encoder_params, encoder_macs (`int`, *optional*): see [`~registry.Cost`]; `None`
            for an exported model.
        size_bytes (`int`): of the weights: in memory for a torch model, as stored for an exported one.
        metrics (`dict[str, dict[str, float]]`): by split, then by metric.
        precision (`str`, *optional*): in which the metrics were computed: `"fp32"` or `"bf16"` in PyTorch, `"f32"`,
            `"bf16"` or such as `"int8 (rest bf16)"` in OpenVINO, where an exported model without an `ov_config`
            computes in what the CPU is fastest at.
        examples (`int`, *optional*): that the metrics are of.
        agreement (`float`, *optional*): share of examples given the same class as by the model compared with.
        logit_difference (`float`, *optional*): mean absolute difference to its logits.
        latency (`list[dict]`): rows as in `results.json`; see [`latency_rows`].
        against ([`Measurement`], *optional*): the model compared with.
    """

    name: str
    size_bytes: int
    params: int | None = None
    nonzero_params: int | None = None
    macs: int | None = None
    encoder_params: int | None = None
    encoder_macs: int | None = None
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    precision: str | None = None
    examples: int | None = None
    agreement: float | None = None
    logit_difference: float | None = None
    latency: list[dict[str, Any]] = field(default_factory=list)
    against: Measurement | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        plain = {name: value for name, value in vars(self).items() if name != "against"}
        return {**plain, "against": None if self.against is None else self.against.to_dict()}

    def __str__(self) -> str:
        other = self.against
        title = self.name if other is None or other.name == self.name else f"{self.name} against {other.name}"
        header = ["", "model"] if other is None else ["", "model", "against", "ratio or Δ"]
        lines = [header]
        for label, attribute, show in COLUMNS:
            lines += _line(label, getattr(self, attribute), other and getattr(other, attribute), show)
        for split, metrics in self.metrics.items():
            dense = {} if other is None else other.metrics.get(split, {})
            for metric, value in metrics.items():
                lines += _line(f"{metric} ({split})", value, dense.get(metric), "{:.4f}".format, difference=True)
        lines += _line("computed in", self.precision, other and other.precision, str, compare=False)
        lines += _line("same class", self.agreement, None, "{:.4f}".format)
        lines += _line("mean |Δ logit|", self.logit_difference, None, "{:.4g}".format)
        lines += _line("examples", self.examples, None, "{:,}".format)
        return "\n".join([title, _aligned(lines, len(header)), *_latency_lines(self.latency)])


def measure(
    model: Any,
    data: Any = None,
    collate_fn: Callable | None = None,
    against: Any = None,
    batch: int | Sequence[int] = 1,
    length: int | None = None,
    runtimes: Iterable[str] = ("torch",),
    *,
    inputs: Batch | None = None,
    compute_metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]] | None = None,
    batch_size: int = 64,
    threads: int | None = None,
    samples: int | None = None,
    seconds: float = 5.0,
    progress: bool = False,
) -> Measurement:
    """
    Measure a model: parameters, MACs, size, latency and, with data, accuracy; beside another one if given.

    Args:
        model ([`~transformers.PreTrainedModel`], `OVModel`, or the folder of an exported model):
            Left as it was. A bare folder can be timed and weighed, not evaluated. An exported model is evaluated as
            its `ov_config` says; [`openvino_config`] makes one for a stated precision.
        data ([`~tasks.TaskData`], [`~tasks.BatchDataset`], `datasets.Dataset` or another data set, *optional*):
            What to evaluate on: of a task's data all evaluation splits, of another data set all of it.
        collate_fn (`Callable`, *optional*):
            Makes batches of `data`; see [`predict`].
        against (*optional*):
            The dense model. It is measured alike, timed in turn with `model`, and its predictions are compared.
        batch (`int` or `Sequence[int]`, *optional*, defaults to 1), length (`int`, *optional*):
            Examples in a timed batch, or in each of several, and tokens of the example that is timed and whose MACs
            are counted.
        runtimes (`Iterable[str]`, *optional*, defaults to `("torch",)`):
            Of `"torch"` and `"openvino"`; none for no timing. Exported models run in OpenVINO only: quantized ones
            are timed as they were evaluated, others in f32 and bf16.
        inputs (`dict[str, torch.Tensor]`, *optional*):
            The batch to time, instead of one made from the configuration.
        compute_metrics (`Callable`, *optional*):
            `(logits, labels) -> dict`; by default a task's own metrics, accuracy, or those of a regression.
        batch_size (`int`, *optional*, defaults to 64):
            For the evaluation.
        threads, samples, seconds, progress (*optional*):
            See [`latency_rows`].

    Returns:
        [`Measurement`].

    Raises:
        [`BackendUnavailableError`]: for the runtime `"openvino"` where it is not installed.

    Example:

    ```python
    report = hc.measure(pruned, data=test, against=dense, batch=32)
    print(report)
    report.macs / report.against.macs
    ```
    """
    runtimes = tuple(runtimes)
    if "openvino" in runtimes:
        require_openvino()
    found = _costs(model, length)
    if against is not None:
        found.against = _costs(against, length)
    if data is not None:
        options = {"collate_fn": collate_fn, "batch_size": batch_size, "progress": progress}
        _judge(found, model, against, data, compute_metrics, options)
    if runtimes:
        found.latency = latency_rows(
            model,
            against,
            batch=batch,
            length=length,
            threads=threads,
            runtimes=runtimes,
            inputs=inputs,
            samples=samples,
            seconds=seconds,
            progress=progress,
        )
    return found


def _costs(model: Any, length: int | None) -> Measurement:
    if isinstance(model, nn.Module):
        cost = count(model, length=length)
        names = ("params", "nonzero_params", "macs", "encoder_params", "encoder_macs")
        figures = {name: getattr(cost, name) for name in names}
        return Measurement(type(model).__name__, parameter_bytes(model), **figures)
    if isinstance(model, str | Path):
        return Measurement(Path(model).name, folder_size(model))
    return Measurement(type(model).__name__, stored_bytes(openvino_model(model)))


def _judge(
    found: Measurement, model: Any, against: Any, data: Any, compute_metrics: Callable | None, options: dict
) -> None:
    """Fill in metrics of both models, and how far they agree."""
    for candidate in (model, against):
        if isinstance(candidate, str | Path):
            raise CompressionError(
                f"{candidate}: a folder cannot be evaluated; load it (from_pretrained) and give the model."
            )
    splits = data.evaluation if hasattr(data, "evaluation") else {"data": data}
    compute_metrics = compute_metrics or getattr(data, "compute_metrics", plain_metrics)
    same, differences, found.examples = [], [], 0
    for split, dataset in splits.items():
        logits, labels = predict(model, dataset, **options)
        found.examples += len(logits)
        if labels is not None:
            found.metrics[split] = _floats(compute_metrics(logits, labels))
        if against is None:
            continue
        reference, _ = predict(against, dataset, **options)
        if labels is not None:
            found.against.metrics[split] = _floats(compute_metrics(reference, labels))
        if reference.shape == logits.shape:
            differences.append((len(logits), float(np.abs(logits - reference).mean())))
            if logits.ndim == 2 and logits.shape[1] > 1:
                same.append((len(logits), agreement(logits, reference)))
    found.agreement, found.logit_difference = _mean(same), _mean(differences)
    found.precision = _precision(model)
    if found.against is not None:
        found.against.examples, found.against.precision = found.examples, _precision(against)


def _precision(model: Any) -> str:
    if hasattr(model, "ov_config"):
        stored, rest = stored_precision(openvino_model(model)), arithmetic(model)["INFERENCE_PRECISION_HINT"]
        return rest if stored == "f32" else f"{stored} (rest {rest})"
    dtype = getattr(model, "dtype", torch.float32)
    return next((name for name, known in TORCH_PRECISIONS.items() if known == dtype), str(dtype))


def _mean(values: list[tuple[int, float]]) -> float | None:
    """Mean of values, each weighted by a number of examples."""
    total = sum(weight for weight, _ in values)
    return sum(weight * value for weight, value in values) / total if total else None


def _floats(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _bytes(value: float) -> str:
    return f"{value / 1e6:,.2f} MB"


COLUMNS = (
    ("parameters", "params", "{:,}".format),
    ("  not zero", "nonzero_params", "{:,}".format),
    ("  in the encoder", "encoder_params", "{:,}".format),
    ("MACs an example", "macs", "{:,}".format),
    ("  in the encoder", "encoder_macs", "{:,}".format),
    ("weights", "size_bytes", _bytes),
)


def _line(
    label: str, value: Any, other: Any, show: Callable, difference: bool = False, compare: bool = True
) -> list[list[str]]:
    if value is None and other is None:
        return []
    line = [label] + ["" if figure is None else show(figure) for figure in (value, other)]
    if compare and value is not None and other is not None:
        line.append(f"{value - other:+.4f}" if difference else f"{value / other:.3f}" if other else "–")
    return [line]


def _aligned(lines: list[list[str]], columns: int) -> str:
    lines = [(line + [""] * columns)[:columns] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(columns)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _latency_lines(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [["latency", "batch", "length", "threads", "p50 ms", "p90 ms", "samples"]]
    for row in rows:
        role = {"stage": "model", "baseline": "against"}[row["role"]]
        settings = [str(row["batch"]), str(row["length"] or "–"), str(row["threads"])]
        if "skipped" in row:
            figures = ["–", "–", "–"]
        else:
            figures = [f"{1000 * row['p50']:.2f}", f"{1000 * row['p90']:.2f}", str(row["samples"])]
        rest = f" (rest {row['rest']})" if "rest" in row else ""
        lines.append([f"{role} {row['runtime']} {row['precision']}{rest}", *settings, *figures])
    reasons = dict.fromkeys(
        f"{row['runtime']} {row['precision']} was not timed: {row['skipped']}" for row in rows if "skipped" in row
    )
    return ["", _aligned(lines, len(lines[0])), *reasons]
