from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tqdm.auto import tqdm


SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_training.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def threads_as_before(monkeypatch):
    monkeypatch.setattr("hf_compress.measurement.machine._threads", None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def contestant(log: list, name: str, steps: int):
    def run(turn):
        for _ in range(steps):
            log.append(name)
            turn()

    return run


def test_contestants_take_turns_and_only_one_runs_at_a_time(script):
    log: list[str] = []
    turns = script.Turns(["a", "b", "c"], 2, tqdm(disable=True))
    turns.run({"a": contestant(log, "a", 5), "b": contestant(log, "b", 5), "c": contestant(log, "c", 3)}, threads=1)
    assert "".join(log) == "aabbccaabbcab"
    assert {name: len(seconds) for name, seconds in turns.seconds.items()} == {"a": 3, "b": 3, "c": 2}
    assert turns.wall_seconds == pytest.approx(sum(sum(seconds) for seconds in turns.seconds.values()))


def test_an_error_of_one_contestant_ends_the_benchmark(script):
    def fails(turn):
        turn()
        raise ValueError("no data")

    log: list[str] = []
    turns = script.Turns(["a", "b"], 1, tqdm(disable=True))
    with pytest.raises(ValueError, match="no data"):
        turns.run({"a": fails, "b": contestant(log, "b", 3)}, threads=1)


def test_the_benchmark_measures_all_three(script, tmp_path, capsys):
    arguments = ["--data_dir", "sample", "--steps", "4", "--turn", "1", "--batch", "8", "--threads", "1"]
    assert script.main([*arguments, "--precision", "fp32", "--output", str(tmp_path / "out" / "results.json")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["steps"] == 4 and not results["settings"]["whole_epoch"]
    assert set(results["seconds"]) == {"hf_compress", "trainer", "bare"}
    assert all(value > 0 for value in results["ratios"].values())
    assert 0 < results["ratios"]["input pipeline / step"] < 1
    assert "hf_compress / bare" in capsys.readouterr().out
    assert results["environment"]["threads"] == 1


def test_wrong_options_are_refused(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--steps", "0"])
    assert "--steps: got 0" in capsys.readouterr().err
    assert script.main(["--data_dir", "/nowhere", "--steps", "1"]) == 1
