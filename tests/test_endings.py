from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


PACKAGE = str(Path(__file__).parents[1] / "hf_compress")
SLEEPER = """
import sys, tempfile, time
sys.path.insert(0, sys.argv[2])  # alone, without the package around it
import endings
endings.GRACE = 0.5
{before}
with endings.ending_cleanly(), tempfile.TemporaryDirectory(dir=sys.argv[1]):
    {inside}
    open(sys.argv[1] + "/ready", "w").close()
    time.sleep(60)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def start(folder: Path, before: str = "", inside: str = "pass", launcher: bool = False, **environment):
    """A process that sleeps in a block with a temporary folder in `folder`, or the one that has started it."""
    script = SLEEPER.format(before=before, inside=inside)
    process = subprocess.Popen(
        [sys.executable, "-c", *([LAUNCHER] if launcher else []), script, str(folder), PACKAGE],
        env={**os.environ, **environment},
    )
    wait_until(lambda: (folder / "ready").exists())
    return process


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def left(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


@pytest.mark.skipif(sys.platform == "win32", reason="there a process that is told to end ends at once")
def test_a_process_that_is_told_to_end_clears_its_folders_away(tmp_path):
    process = start(tmp_path)
    assert left(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM and not left(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="there a process that is told to end ends at once")
@pytest.mark.parametrize("deaf", [False, True])
def test_a_process_ends_after_something_even_if_it_does_not_listen(tmp_path, deaf):
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" if deaf else "pass"
    process = start(tmp_path, inside=f"{ignore}; endings.end_after(lambda: time.sleep(1))")
    assert process.wait(60) == (1 if deaf else 128 + signal.SIGTERM)
    assert bool(left(tmp_path)) is deaf


@pytest.mark.skipif(sys.platform == "win32", reason="there a process that is told to end ends at once")
@pytest.mark.parametrize("launched", [None, "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"])
def test_a_process_ends_with_its_launcher_and_with_nobody_else(tmp_path, launched):
    environment = {launched: "none"} if launched else {}
    pid = "print(__import__('os').getpid(), file=open(sys.argv[1] + '/pid', 'w'))"
    process = start(tmp_path, before=f"endings.end_with_launcher(); {pid}", launcher=True, **environment)
    process.kill()
    process.wait()
    if launched:
        wait_until(lambda: not left(tmp_path))
    else:
        time.sleep(2)
        assert left(tmp_path)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
        wait_until(lambda: not left(tmp_path))
