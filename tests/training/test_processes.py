from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .processes_worker import CASES, run


TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "training.processes_worker", str(folder)],
        cwd=TESTS,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_and_one_give_the_same_losses(tmp_path, two_processes, case):
    one = run(case, tmp_path, processes=1)
    for rank in (0, 1):
        two = json.loads((two_processes / f"results{rank}.json").read_text())[case]
        torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(one["losses"]), rtol=1e-5, atol=1e-6)
        assert two["weights"] == pytest.approx(one["weights"], rel=1e-3, abs=1e-4)


def test_only_the_first_process_writes(two_processes):
    assert (two_processes / "rank0" / "text" / "checkpoints" / "00").is_dir()
    assert not (two_processes / "rank1").exists()


def test_all_processes_refuse_together(two_processes):
    assert all(json.loads((two_processes / f"results{rank}.json").read_text())["refused"] for rank in (0, 1))
