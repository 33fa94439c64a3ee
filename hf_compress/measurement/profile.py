"""Where the time of a model goes: seconds of its modules, in the runtime that serves it."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .latency import timing_lock
from .runtimes import openvino_callable, torch_callable


if TYPE_CHECKING:
    from ..registry import Batch

WARM_UP = 3
_MODULE = re.compile(r"__module\.(.+?)/")


def module_seconds(
    model: Any, inputs: Batch, precision: str = "f32", threads: int | None = None, repeats: int = 20
) -> dict[str, float]:
    """
    Median seconds that each module of a model takes for a batch.

    Of a torch model its modules without children are timed. Of an exported one OpenVINO counts the time of what it
    made of the operations: what it fuses (a batch normalization, an activation, a sum) counts for the module of the
    operation that it went into.

    Args:
        model ([`~transformers.PreTrainedModel`], `OVModel` or `openvino.Model`):
            An exported model must carry the names of torch modules, see [`name_convolutions`].
        inputs (`dict[str, torch.Tensor]`):
            One batch.
        precision (`str`, *optional*, defaults to `"f32"`), threads (`int`, *optional*):
            As in [`openvino_callable`] and [`torch_callable`].
        repeats (`int`, *optional*, defaults to 20):
            Calls that count, after some that do not. They hold the machine's [`timing_lock`].

    Returns:
        `dict[str, float]`: by module name; `""` is what belongs to none.
    """
    timed = _torch_times if isinstance(model, nn.Module) else _openvino_times
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    with timing_lock():
        times = timed(model, inputs, precision, threads, repeats)
    return {name: float(np.median(values)) for name, values in times.items()}


def _openvino_times(model: Any, inputs: Batch, precision: str, threads: int | None, repeats: int) -> dict:
    call = openvino_callable(model, precision, threads, static_for=inputs, properties={"PERF_COUNT": True})
    own = call.prepare(inputs)
    times: dict[str, list[float]] = defaultdict(lambda: [0.0] * repeats)
    for number in range(-WARM_UP, repeats):
        call(own)
        if number >= 0:
            for name, seconds in call.profile():
                match = _MODULE.search(name)
                times[match[1] if match else ""][number] += seconds
    return times


def _torch_times(model: nn.Module, inputs: Batch, precision: str, threads: int | None, repeats: int) -> dict:
    call = torch_callable(model, precision, threads)
    own = call.prepare(inputs)
    times: dict[str, list[float]] = defaultdict(lambda: [0.0] * repeats)
    started: list[float] = []
    number = -WARM_UP

    def after(name: str):
        def add(module: nn.Module, args: tuple, output: Any) -> None:
            seconds = time.perf_counter() - started.pop()
            if number >= 0:
                times[name][number] += seconds

        return add

    handles = []
    for name, module in call.model.named_modules():
        if not any(True for _ in module.children()):
            handles.append(module.register_forward_pre_hook(lambda module, args: started.append(time.perf_counter())))
            handles.append(module.register_forward_hook(after(name)))
    before = torch.get_num_threads()
    torch.set_num_threads(call.threads)
    try:
        for number in range(-WARM_UP, repeats):  # noqa: B007  (the hooks read it)
            call(own)
    finally:
        torch.set_num_threads(before)
        for handle in handles:
            handle.remove()
    return times
