"""Latency of several models side by side."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ..errors import CompressionError


if TYPE_CHECKING:
    from ..registry import Batch

logger = logging.getLogger(__name__)

MIN_ROUNDS, MAX_ROUNDS = 10, 200
FEWEST_ROUNDS = 3  # of models so slow that 10 rounds would take many times the budget
PATIENCE = 6  # how many times the budget 10 rounds may take
SETTLED = 0.1  # seconds; a shorter call is preceded by one of the same candidate that does not count
LOCK_NAME = "hf_compress_timing.lock"
QUANTILES = 21  # kept of the times: the shortest, every twentieth, the longest

_locks = threading.local()


def latency(
    candidates: Mapping[str, Callable[[Batch], Any]],
    inputs: Batch,
    *,
    samples: int | None = None,
    warmup: int = 3,
    seconds: float = 5.0,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """
    Time candidates in turn, so that what else the machine does meets all of them alike.

    In each round every candidate is timed once, in an order that rotates from round to round. A short call comes right
    after an uncounted one of the same candidate, because the threads of one runtime may still spin when the next
    starts. The timed part holds the machine's [`timing_lock`].

    Args:
        candidates (`Mapping[str, Callable]`):
            By name, what takes the inputs; see [`torch_callable`] and [`openvino_callable`]. Where a candidate has
            `prepare(inputs)`, it gets once, untimed, the inputs in its own form; where it has `threads`, PyTorch uses
            so many while it runs.
        inputs (`dict[str, torch.Tensor]`):
            One batch.
        samples (`int`, *optional*):
            Rounds. By default as many as fit into `seconds`, from 10 to 200; fewer, but at least 3, where 10 would
            take longer than six times that.
        warmup (`int`, *optional*, defaults to 3):
            Calls of each candidate beforehand; after a second of them the rest is left out.
        seconds (`float`, *optional*, defaults to 5):
            About how long to measure, for all candidates together.
        progress (`bool`, *optional*, defaults to `False`):
            Show a bar.

    Returns:
        `dict[str, dict]`: for each candidate `p50`, `p90`, `mean` (seconds a batch), `samples`, and `quantiles`: 21,
        evenly spaced from the shortest time to the longest, with four digits.
    """
    if samples is not None and samples < 1:
        raise CompressionError(f"samples: got {samples}; give the number of rounds, at least 1.")
    if not candidates:
        return {}
    threads = torch.get_num_threads()
    collecting = gc.isenabled()
    with timing_lock():
        try:
            ready = {name: _prepared(candidate, inputs) for name, candidate in candidates.items()}
            gc.collect()
            gc.disable()
            estimates = {name: _warm_up(call, warmup) for name, call in ready.items()}
            rounds = samples or _rounds(sum(_cost(seconds) for seconds in estimates.values()), seconds)
            times = _timed_rounds(ready, estimates, rounds, progress)
        finally:
            torch.set_num_threads(threads)
            if collecting:
                gc.enable()
    return {name: _summary(values) for name, values in times.items()}


@contextmanager
def timing_lock(timeout: float = 900.0) -> Iterator[bool]:
    """
    Hold the machine-wide lock of timed sections, so that two processes do not disturb each other's timings.

    The system frees the lock when its owner dies. The lock may be taken again inside itself.

    Args:
        timeout (`float`, *optional*, defaults to 900):
            Seconds to wait for others. Then, with a warning, the section runs without the lock.

    Yields:
        `bool`: whether the lock is held.
    """
    lock = _lock()
    held = False
    try:
        try:
            lock.acquire(timeout=0)
            held = True
        except Timeout:
            logger.info("Waiting for another process to finish its timings (%s).", lock.lock_file)
            lock.acquire(timeout=timeout)
            held = True
    except Timeout:
        logger.warning("%s is held for more than %.0f s; timing beside its owner.", lock.lock_file, timeout)
    except OSError as error:
        logger.warning("%s cannot be locked (%s); timing without a lock.", lock.lock_file, error)
    try:
        yield held
    finally:
        if held:
            lock.release()


def _lock() -> FileLock:
    """This thread's lock object, one for each temporary folder; taking it twice is counted, not waited for."""
    path = Path(tempfile.gettempdir()) / LOCK_NAME
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        # another user's, made with a narrow mask; better a lock among one's own processes than none
        logger.warning("%s belongs to another user and is not writable; their timings are not waited for.", path)
        path = path.with_name(f"{LOCK_NAME}.{os.getuid() if hasattr(os, 'getuid') else 'own'}")
    locks = _locks.__dict__.setdefault("by_path", {})
    if path not in locks:
        locks[path] = FileLock(path, mode=0o666)
    return locks[path]


def _prepared(candidate: Callable, inputs: Batch) -> Callable[[], float]:
    """A call of `candidate` that returns its own seconds."""
    own = candidate.prepare(inputs) if hasattr(candidate, "prepare") else inputs
    threads = getattr(candidate, "threads", None)

    def timed() -> float:
        if threads is not None and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        start = time.perf_counter()
        candidate(own)
        return time.perf_counter() - start

    return timed


def _warm_up(call: Callable[[], float], times: int) -> float:
    """The shortest of up to `times` calls, at least one, of a second altogether."""
    taken = [call()]
    while len(taken) < times and sum(taken) < 1:
        taken.append(call())
    return min(taken)


def _cost(estimate: float) -> float:
    return estimate if estimate > SETTLED else 2 * estimate


def _rounds(round_seconds: float, budget: float) -> int:
    fitting = int(budget / max(round_seconds, 1e-9))
    if fitting >= MIN_ROUNDS:
        return min(fitting, MAX_ROUNDS)
    return min(MIN_ROUNDS, max(FEWEST_ROUNDS, int(PATIENCE * budget / round_seconds)))


def expected_seconds(estimates: Iterable[float], seconds: float) -> float:
    """About how long [`latency`] takes for candidates whose calls take `estimates` seconds, warm-up included."""
    estimates = list(estimates)
    a_round = sum(map(_cost, estimates))
    warm_up = sum(estimate * min(3, ceil(1 / max(estimate, 1e-9))) for estimate in estimates)
    return warm_up + _rounds(a_round, seconds) * a_round


def _timed_rounds(
    calls: Mapping[str, Callable[[], float]], estimates: Mapping[str, float], rounds: int, progress: bool
) -> dict[str, list[float]]:
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in tqdm(range(rounds), desc="latency", leave=False, disable=not progress):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if estimates[name] <= SETTLED:
                calls[name]()
            times[name].append(calls[name]())
    return times


def _summary(times: list[float]) -> dict[str, Any]:
    return {
        "p50": float(np.median(times)),
        "p90": float(np.percentile(times, 90)),
        "mean": float(np.mean(times)),
        "samples": len(times),
        "quantiles": [float(f"{value:.4g}") for value in np.quantile(times, np.linspace(0, 1, QUANTILES))],
    }
