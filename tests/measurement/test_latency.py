from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from filelock import FileLock

from hf_compress.errors import CompressionError
from hf_compress.measurement import latency as measured
from hf_compress.measurement import timing_lock


latencies = importlib.import_module("hf_compress.measurement.latency")
pytestmark = pytest.mark.usefixtures("own_lock")


class Sleeper:
    def __init__(self, seconds, log=None, threads=None):
        self.seconds, self.log, self.threads, self.calls = seconds, log, threads, 0

    def __call__(self, inputs):
        self.calls += 1
        if self.log is not None:
            self.log.append((self.seconds, torch.get_num_threads()))
        time.sleep(self.seconds)


def test_times_are_those_of_each_candidate_and_statistics_of_all_rounds():
    slow, fast = Sleeper(0.02), Sleeper(0.002)
    found = measured({"slow": slow, "fast": fast}, {}, samples=12)
    assert found["slow"]["samples"] == found["fast"]["samples"] == 12
    assert 0.02 <= found["slow"]["p50"] <= found["slow"]["p90"]
    assert 0.002 <= found["fast"]["p50"] < found["slow"]["p50"]
    assert slow.calls == fast.calls == 3 + 2 * 12  # warm-up, then one settling call for each that counts
    assert measured({}, {}) == {}


def test_candidates_take_turns_in_a_rotating_order():
    log = []
    measured({"a": Sleeper(0.101, log), "b": Sleeper(0.102, log)}, {}, samples=3, warmup=1)
    assert [seconds for seconds, _ in log[2:]] == [0.101, 0.102, 0.102, 0.101, 0.101, 0.102]


def test_number_of_rounds_follows_the_budget():
    assert latencies._rounds(0.1, 5) == 50
    assert latencies._rounds(1e-6, 5) == latencies.MAX_ROUNDS
    assert latencies._rounds(2, 5) == 10  # at least ten, though they take longer
    assert latencies._rounds(6, 5) == 5  # but not many times the budget
    assert latencies._rounds(1000, 5) == 3
    quick = Sleeper(0.001)
    found = measured({"quick": quick}, {}, seconds=0.2)["quick"]
    assert 10 <= found["samples"] <= latencies.MAX_ROUNDS  # the clock on the wall would judge the machine
    with pytest.raises(CompressionError, match="samples"):
        measured({"quick": quick}, {}, samples=0)


def test_threads_and_garbage_collection_are_restored():
    log = []
    before = torch.get_num_threads()
    measured({"a": Sleeper(0.001, log, threads=3), "b": Sleeper(0.002, log, threads=2)}, {}, samples=2)
    assert set(log) == {(0.001, 3), (0.002, 2)}
    assert torch.get_num_threads() == before
    assert gc.isenabled()

    def fails(inputs):
        torch.set_num_threads(before + 1)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measured({"a": fails}, {})
    assert torch.get_num_threads() == before
    assert gc.isenabled()


def test_preparation_is_not_timed():
    class Prepared(Sleeper):
        def prepare(self, inputs):
            time.sleep(0.05)
            return {"twice": 2 * inputs["x"]}

        def __call__(self, inputs):
            assert inputs == {"twice": 6}
            super().__call__(inputs)

    assert measured({"a": Prepared(0.001)}, {"x": 3}, samples=3)["a"]["p50"] < 0.05


def test_lock_is_machine_wide_and_may_be_nested(own_lock):
    other = FileLock(own_lock)
    with timing_lock() as held:
        assert held
        with pytest.raises(TimeoutError):
            other.acquire(timeout=0)
        with timing_lock() as again:
            assert again
        with pytest.raises(TimeoutError):  # leaving the inner section frees nothing
            other.acquire(timeout=0)
    with other.acquire(timeout=0):
        with timing_lock(timeout=0.05) as held:
            assert not held  # in vain, with a warning
    with timing_lock() as held:
        assert held


def test_another_section_is_waited_for(own_lock):
    other = FileLock(own_lock, thread_local=False)
    other.acquire()
    threading.Timer(0.3, other.release).start()
    with timing_lock(timeout=60) as held:
        assert held and not other.is_locked


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process")
def test_lock_of_a_killed_owner_is_free(own_lock):
    program = (
        f"import time; from filelock import FileLock; lock = FileLock({str(own_lock)!r}); lock.acquire(); "
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline().strip() == "held"
        with timing_lock(timeout=0.05) as held:
            assert not held
        owner.kill()
        owner.wait()
    with timing_lock(timeout=5) as held:
        assert held


def test_lock_file_of_another_user(own_lock, monkeypatch):
    own_lock.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with timing_lock() as held:
        assert held
        assert sorted(path.name for path in own_lock.parent.iterdir()) == [
            own_lock.name,
            f"{own_lock.name}.{os.getuid()}",
        ]
