from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_compress.errors import CompressionError
from hf_compress.measurement import (
    PeakMemory,
    configure_threads,
    configured_threads,
    environment,
    has_fast_bf16,
    machine,
)
from hf_compress.measurement.machine import usable_cores, usable_memory


@pytest.fixture
def threads():
    """Leaves the threads as they were."""
    before, remembered = torch.get_num_threads(), machine._threads
    yield
    torch.set_num_threads(before)
    machine._threads = remembered


@pytest.fixture
def cpu_with(monkeypatch):
    """Lets the CPU have the given flags."""

    def pretend(flags):
        machine._instruction_sets.cache_clear()
        monkeypatch.setattr(machine, "_cpuinfo", lambda: {"model name": "Abacus", "flags": flags})

    yield pretend
    machine._instruction_sets.cache_clear()


def test_environment_is_plain_json_and_complete():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["cpu"]
    assert found["memory_bytes"] > 2**28
    assert 1 <= found["usable_cores"] <= found["logical_cores"]
    assert found["threads"] >= 1


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("fpu avx avx2 fma", False),
        ("fpu avx2 avx512f avx512_vnni amx_int8 amx_tile", False),
        ("fpu avx2 avx512f avx512_bf16", True),
        ("fpu avx2 amx_bf16 amx_tile", True),
    ],
)
def test_bf16_is_fast_where_the_cpu_has_it(cpu_with, flags, fast):
    cpu_with(flags)
    assert has_fast_bf16() is fast
    assert environment()["cpu"] == "Abacus"
    assert set(environment()["instruction_sets"]) == set(flags.split()) - {"fpu"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_cores_are_those_that_a_container_may_use(tmp_path, monkeypatch, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: range(8), raising=False)
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({}, (800, 500)),
        ({"memory.max": "max\n", "memory.current": "350\n", "memory.stat": "inactive_file 100\n"}, (800, 500)),
        ({"memory.max": "400\n", "memory.current": "350\n", "memory.stat": "anon 9\ninactive_file 100\n"}, (400, 150)),
        ({"memory.max": "700\n", "memory.current": "50\n", "memory.stat": "inactive_file 0\n"}, (700, 500)),
        ({"memory.max": "300\n", "memory.current": "350\n", "memory.stat": "inactive_file 0\n"}, (300, 0)),
        (
            {
                "memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
                "memory/memory.usage_in_bytes": "350\n",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 100\n",
            },
            (800, 500),
        ),
        (
            {
                "memory/memory.limit_in_bytes": "600\n",
                "memory/memory.usage_in_bytes": "350\n",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 100\n",
            },
            (600, 350),
        ),
    ],
)
def test_memory_is_what_a_container_may_have(tmp_path, monkeypatch, files, memory):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(total=800, available=500))
    assert usable_memory() == memory and environment()["memory_bytes"] == memory[0]


def test_threads_are_set_whatever_the_launcher_exported(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert configure_threads(3) == torch.get_num_threads() == configured_threads() == environment()["threads"] == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(usable_cores()))
    assert configure_threads() == torch.get_num_threads() == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert configure_threads() == usable_cores()


def test_more_threads_than_openmp_allows_are_refused(threads, monkeypatch):
    monkeypatch.setattr(machine, "_OMP_THREAD_LIMIT", "1")
    with pytest.raises(CompressionError, match=r"threads: got 2, and OMP_THREAD_LIMIT=1 .* or give 1"):
        configure_threads(2)
    assert configure_threads() == 1
    monkeypatch.setattr(machine, "_OMP_THREAD_LIMIT", "4")
    assert configure_threads(2) == 2


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "2"])
def test_impossible_threads_are_refused(value):
    with pytest.raises(CompressionError, match="threads"):
        configure_threads(value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak can be reset on Linux only")
def test_peak_memory_of_a_block_counts_for_those_around_it():
    megabyte = 2**20
    with PeakMemory() as outer:
        first = np.ones(200 * megabyte, dtype=np.uint8)
        del first
        with PeakMemory() as small:
            pass
        with PeakMemory() as inner:
            second = np.ones(50 * megabyte, dtype=np.uint8)
            del second
    assert outer.bytes - small.bytes >= 190 * megabyte
    assert 40 * megabyte <= inner.bytes - small.bytes <= 150 * megabyte
