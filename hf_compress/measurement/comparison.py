"""The latency rows of `results.json`: a compressed model beside the dense one, in each runtime and precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import BackendUnavailableError, CompressionError, UnsupportedModelError
from .inputs import example_inputs
from .latency import latency
from .machine import configured_threads, has_fast_bf16
from .openvino_export import to_openvino
from .runtimes import (
    arithmetic,
    openvino_callable,
    openvino_config,
    openvino_model,
    stored_precision,
    torch_callable,
)


if TYPE_CHECKING:
    from ..registry import Batch

RUNTIMES = ("torch", "openvino")
NO_BF16 = "this CPU only emulates bfloat16 (it has neither AVX512-BF16 nor AMX)"


@dataclass
class _Row:
    """`make` builds the candidate; `skipped` says why there is none; `rest` is the type of what is not quantized."""

    role: str
    runtime: str
    precision: str
    make: Callable[[], Callable]
    rest: str | None = None
    skipped: str | None = None
    candidate: Callable | None = None

    @property
    def key(self) -> str:
        return f"{self.role}/{self.runtime}/{self.precision}"


def latency_rows(
    stage: Any,
    baseline: Any = None,
    *,
    batch: int | Sequence[int] = 1,
    length: int | None = None,
    threads: int | None = None,
    runtimes: Iterable[str] = RUNTIMES,
    precisions: Iterable[str] | None = None,
    inputs: Batch | None = None,
    samples: int | None = None,
    seconds: float = 10.0,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """
    Time a model beside the dense one, all runtimes and precisions interleaved in one session.

    A torch model is timed in PyTorch (fp32 and bf16; channels-last if it takes images) and, converted, in OpenVINO
    (f32 and bf16), and so is an exported model without integers. A quantized one is timed as it would compute if it
    were called: what its `ov_config` leaves open, and all of a bare folder, is up to OpenVINO (see
    [`openvino_callable`]).

    Args:
        stage ([`~transformers.PreTrainedModel`], `OVModel`, `openvino.Model`, `str` or `os.PathLike`):
            The model, or the folder of an exported one.
        baseline (*optional*):
            The dense model, of any of these kinds; none where `stage` itself is it.
        batch (`int` or `Sequence[int]`, *optional*, defaults to 1), length (`int`, *optional*):
            Of the example inputs; see [`example_inputs`]. Several batch sizes are timed one after the other, with
            the models converted and compiled once.
        threads (`int`, *optional*):
            For both runtimes; by default what [`configure_threads`] set.
        runtimes (`Iterable[str]`, *optional*):
            Of `"torch"` and `"openvino"`.
        precisions (`Iterable[str]`, *optional*):
            Keep only these, of `"fp32"`, `"f32"`, `"bf16"`, `"int8"`, `"int4"`.
        inputs (`dict[str, torch.Tensor]`, *optional*):
            One batch to use instead of example inputs.
        samples (`int`, *optional*), seconds (`float`, *optional*, defaults to 10), progress (`bool`, *optional*):
            As in [`latency`], for each batch size.

    Returns:
        `list[dict]`: rows with `role` ("stage" or "baseline"), `runtime`, `precision`, `batch`, `length` (`None` for
        images), `threads`, `rest` (of a quantized model, the type in which all else was computed), and `p50`, `p90`,
        `mean` (seconds a batch), `samples`, `quantiles`; or `skipped`, the reason why the row could not be measured
        here: bf16 on a CPU that emulates it, OpenVINO not installed or unable to convert.
    """
    runtimes = tuple(runtimes)
    unknown = [name for name in runtimes if name not in RUNTIMES]
    if unknown:
        raise CompressionError(f"runtimes: got {unknown[0]!r}; allowed are {', '.join(RUNTIMES)}.")
    threads = threads or configured_threads()
    sizes = [batch] if isinstance(batch, int) else list(batch)
    batches = [inputs] if inputs else [_inputs_of(stage, baseline, size, length) for size in sizes]
    rows = _rows("stage", stage, runtimes, threads)
    if baseline is not None:
        rows += _rows("baseline", baseline, runtimes, threads)
    if precisions is not None:
        kept = set(precisions)
        rows = [row for row in rows if row.precision in kept]
    for row in rows:
        _build(row)
    options = {"samples": samples, "seconds": seconds, "progress": progress}
    return [record for batch in batches for record in _timed(rows, batch, threads, options)]


def _timed(rows: list[_Row], inputs: Batch, threads: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    inputs = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    candidates = {row.key: row.candidate for row in rows if row.candidate is not None}
    measured = latency(candidates, inputs, **options)
    first = next(iter(inputs.values()))
    settings = {"batch": len(first), "length": first.shape[1] if "input_ids" in inputs else None, "threads": threads}
    return [
        {
            "role": row.role,
            "runtime": row.runtime,
            "precision": row.precision,
            **settings,
            **({} if row.rest is None else {"rest": row.rest}),
            **(measured[row.key] if row.candidate is not None else {"skipped": row.skipped}),
        }
        for row in rows
    ]


def _rows(role: str, model: Any, runtimes: tuple[str, ...], threads: int) -> list[_Row]:
    rows = []
    if isinstance(model, nn.Module):
        if "torch" in runtimes:
            rows += [
                _Row(role, "torch", precision, _maker(torch_callable, lambda: model, precision, threads))
                for precision in ("fp32", "bf16")
            ]
        stored, load = "f32", _once(lambda: to_openvino(model, share_weights=True))
    else:
        exported = openvino_model(model)
        stored, load = stored_precision(exported), lambda: exported
    if "openvino" in runtimes and stored == "f32":
        rows += [
            _Row(role, "openvino", precision, _maker(openvino_callable, load, precision, threads))
            for precision in ("f32", "bf16")
        ]
    elif "openvino" in runtimes:
        # what is timed is what would be evaluated
        properties = arithmetic(model) if hasattr(model, "ov_config") else openvino_config(stored, threads)
        make = _maker(partial(openvino_callable, properties=properties), load, stored, threads)
        rows.append(_Row(role, "openvino", stored, make, rest=properties["INFERENCE_PRECISION_HINT"]))
    for row in rows:
        if row.precision == "bf16" and not has_fast_bf16():
            row.skipped = NO_BF16
    return rows


def _maker(function: Callable, load: Callable[[], Any], precision: str, threads: int) -> Callable[[], Callable]:
    return lambda: function(load(), precision, threads)


def _once(load: Callable[[], Any]) -> Callable[[], Any]:
    """Load when first asked, for all precisions of a model; a failure too is kept."""
    kept: list[Any] = []

    def get() -> Any:
        if not kept:
            try:
                kept.append(load())
            except (BackendUnavailableError, UnsupportedModelError) as error:
                kept.append(error)
        if isinstance(kept[0], Exception):
            raise kept[0]
        return kept[0]

    return get


def _build(row: _Row) -> None:
    if row.skipped is not None:
        return
    try:
        row.candidate = row.make()
    except (BackendUnavailableError, UnsupportedModelError) as error:
        row.skipped = str(error)


def _inputs_of(stage: Any, baseline: Any, batch: int, length: int | None) -> Batch:
    for model in (baseline, stage):
        if hasattr(model, "config"):  # a torch model or one of Optimum's
            return example_inputs(model, batch, length)
    raise CompressionError(
        "An exported model without its configuration says nothing of its inputs; give `inputs`, or a `baseline`."
    )
