"""The machine: what it is, what it can do fast, and how many threads this process may use of it."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from functools import cache
from pathlib import Path

import psutil
import torch

from ..errors import CompressionError


PACKAGES = (
    "hf_compress",
    "torch",
    "transformers",
    "timm",
    "accelerate",
    "datasets",
    "evaluate",
    "torch-pruning",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "optimum",
    "optimum-intel",
    "openvino",
    "nncf",
    "onnxruntime",
    "peft",
)
# of an x86 CPU's flags, those that decide how fast a network runs, slowest first
INSTRUCTION_SETS = (
    "sse4_2",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
)
CGROUP = Path("/sys/fs/cgroup")
FAST_BF16 = {"avx512_bf16", "amx_bf16"}

_OMP_THREAD_LIMIT = os.environ.get("OMP_THREAD_LIMIT", "").strip()
_threads: int | None = None


def environment() -> dict:
    """
    What results depend on besides the recipe, as plain JSON.

    Returns:
        `dict`: `versions` (of each package that matters, `None` where it is not installed), `python`, `os`, `cpu`,
        `instruction_sets`, `fast_bf16`, `cores` (physical), `logical_cores`, `usable_cores` (that this process may
        run on), `threads` (of PyTorch), `memory_bytes` (that this process may have).
    """
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "os": platform.platform(),
        "cpu": cpu_name(),
        "instruction_sets": instruction_sets(),
        "fast_bf16": has_fast_bf16(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": usable_cores(),
        "threads": configured_threads(),
        "memory_bytes": usable_memory()[0],
    }


def has_fast_bf16() -> bool:
    """Whether the CPU computes in bfloat16 itself (AVX512-BF16 or AMX). Elsewhere it is emulated, 100 times slower."""
    return not FAST_BF16.isdisjoint(instruction_sets())


def instruction_sets() -> list[str]:
    """Of `INSTRUCTION_SETS`, those of this CPU; empty on other architectures than x86."""
    return list(_instruction_sets())


def cpu_name() -> str:
    """The CPU's own name, such as "Intel(R) Xeon(R) Platinum 8488C"."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on; where a container has a quota of their time, as many as that comes to."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, _cpu_quota())))


def _cpu_quota() -> float:
    """Seconds of CPU time that the control group, of version 2 or 1, gives a second; infinity without a limit."""
    try:
        if (file := CGROUP / "cpu.max").exists():
            quota, period = file.read_text().split()
        else:
            quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # no such files, or "max"
        return math.inf


def usable_memory() -> tuple[int, int]:
    """Bytes of memory that this process may have, and those of them that are free: the machine's, or where a container
    is allowed less, its own."""
    machine, (limit, used) = psutil.virtual_memory(), _memory_limit()
    return int(min(machine.total, limit)), int(max(0, min(machine.available, limit - used)))


def _memory_limit() -> tuple[float, int]:
    """Bytes that the control group, of version 2 or 1, allows, and those in use without files that were read long ago;
    infinity and 0 without a limit."""
    new = (CGROUP / "memory.max").exists()
    folder = CGROUP if new else CGROUP / "memory"
    names = ("memory.max", "memory.current") if new else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    try:
        limit, used = (int((folder / name).read_text()) for name in names)
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return limit, used - int(facts["inactive_file" if new else "total_inactive_file"])
    except (OSError, ValueError, KeyError):  # no such files, or "max"
        return math.inf, 0


def default_threads() -> int:
    """The cores that this process may run on, divided by the local processes of a distributed run; at most what
    `OMP_THREAD_LIMIT` allows."""
    return min(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))), _thread_limit())


def _thread_limit() -> float:
    """`OMP_THREAD_LIMIT` of the time when PyTorch was loaded, which is when OpenMP reads it; infinity without one."""
    return int(_OMP_THREAD_LIMIT) if _OMP_THREAD_LIMIT.isdecimal() and int(_OMP_THREAD_LIMIT) > 0 else math.inf


def configure_threads(threads: int | None = None) -> int:
    """
    Set the threads of PyTorch, and remember them for OpenVINO.

    Args:
        threads (`int`, *optional*): by default [`default_threads`]. What a launcher put into `OMP_NUM_THREADS` is
            overruled.

    Returns:
        `int`: the threads set.
    """
    global _threads
    if threads is None:
        threads = default_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise CompressionError(f"threads: got {threads!r}; give a whole number of at least 1, or null for all cores.")
    if (limit := _thread_limit()) < threads:
        raise CompressionError(
            f"threads: got {threads}, and OMP_THREAD_LIMIT={limit} gives PyTorch fewer without its knowing, which "
            f"makes results wrong; start Python without OMP_THREAD_LIMIT, or give {limit}."
        )
    torch.set_num_threads(threads)
    _threads = threads
    return threads


def configured_threads() -> int:
    """What `configure_threads` set last, otherwise what PyTorch uses."""
    return torch.get_num_threads() if _threads is None else _threads


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's entries in `/proc/cpuinfo`; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


@cache
def _instruction_sets() -> tuple[str, ...]:
    flags = set(_cpuinfo().get("flags", "").split())
    if not flags and hasattr(torch.cpu, "get_capabilities"):  # not Linux
        renamed = {"fma3": "fma", "avx512_f": "avx512f"}
        flags = {renamed.get(name, name) for name, present in torch.cpu.get_capabilities().items() if present is True}
    return tuple(name for name in INSTRUCTION_SETS if name in flags)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
