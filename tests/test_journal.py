from __future__ import annotations

import importlib.util
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import psutil
import pytest
from small_runs import image_recipe

import hf_compress as hc
from hf_compress import journal
from hf_compress.errors import CompressionError
from hf_compress.journal import Clock, Journal, peak_memory, reset_peak_memory
from hf_compress.report.timeline import read_timeline
from hf_compress.storage import read_json, whole_folder, write_json


def test_an_operation_records_its_time_status_and_notes(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    with journal.operation("surgery", "01_prune", layers=3) as notes:
        notes["kept"] = 2
    with pytest.raises(RuntimeError, match="boom"), journal.operation("save", "01_prune"):
        raise RuntimeError("boom")
    events = journal.events()
    assert [(event["operation"], event["status"]) for event in events] == [
        ("surgery", "started"),
        ("surgery", "done"),
        ("save", "started"),
        ("save", "failed"),
    ]
    assert events[1]["notes"] == {"layers": 3, "kept": 2}
    assert events[1]["peak_bytes"] > 0 and events[1]["wall_seconds"] >= 0
    assert "RuntimeError: boom" in events[3]["notes"]["error"]
    assert set(journal.seconds("01_prune")) == {"surgery", "save"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_is_stopped_has_not_failed(tmp_path, stop):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(operation="run", status="started")
    with pytest.raises(stop), journal.operation("train", "02_distill"):
        raise stop
    assert [event["status"] for event in journal.events("train")] == ["started", "interrupted"]
    timeline = read_timeline(tmp_path)
    assert (timeline.interruptions, timeline.failures) == (1, 0)
    assert [operation.status for operation in timeline.operations] == ["interrupted"]


def test_of_a_killed_training_the_time_until_its_last_checkpoint_counts(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")

    def train(status, seconds=None):
        journal.append(
            operation="train", stage="02_distill", status=status, **({"wall_seconds": seconds} if seconds else {})
        )

    for attempt in (["started"], ["started", 3.0, 7.0], ["started", 2.0, "interrupted"], ["started", 1.0, "done"]):
        journal.append(operation="run", status="started")
        for event in attempt:
            if isinstance(event, float):
                train("saved", event)
            else:
                train(event, {"interrupted": 2.5, "done": 1.5}.get(event))
    assert journal.seconds("02_distill") == {"train": 7.0 + 2.5 + 1.5}
    found = read_timeline(tmp_path).operations
    assert [operation.seconds for operation in found] == [0.0, 7.0, 2.5, 1.5]
    assert [operation.status for operation in found] == ["interrupted"] * 3 + ["done"]
    train("started")
    train("saved", 4.0)
    assert journal.seconds("02_distill") == {"train": 15.0}


def test_an_unfinished_line_is_skipped_and_swallows_nothing(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append(operation="a")
    with open(path, "a") as file:
        file.write('{"operation": "b", "wall_se')
    journal.append(operation="c")
    assert [event["operation"] for event in journal.events()] == ["a", "c"]


def test_a_disabled_journal_writes_nothing(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", enabled=False)
    with journal.operation("train"):
        pass
    assert not journal.path.exists()


@pytest.mark.parametrize(("minutes", "kind"), [(0, "reading"), (-1, "reading"), (float("nan"), "reading"), (5, "nap")])
def test_human_time_is_checked(tmp_path, minutes, kind):
    with pytest.raises(CompressionError, match="got"):
        Journal(tmp_path / "journal.jsonl").add_human(minutes, kind)


def work(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_an_operation_in_another_one_takes_its_time_and_leaves_its_peak(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    with journal.operation("surgery"):
        block = bytearray(64 << 20)
        block[:] = b"1" * len(block)
        del block
        with journal.operation("train"):
            work(0.5)
    train, surgery = (event for event in journal.events() if event["status"] == "done")
    assert train["cpu_seconds"] > 0.4 > surgery["cpu_seconds"]
    assert train["wall_seconds"] > 0.4 and surgery["wall_seconds"] + train["wall_seconds"] > 0.49
    if sys.platform.startswith("linux"):
        assert surgery["peak_bytes"] - train["peak_bytes"] >= (48 << 20)
    with journal.operation("evaluate"):
        pass
    assert journal.events()[-1]["cpu_seconds"] < 0.3, "what has ended counts no longer"


def test_clocks_that_end_in_any_order_count_no_second_twice():
    started = time.process_time()
    outer, first, second = Clock(), Clock(), Clock()
    with outer:
        with ExitStack() as stack:
            stack.enter_context(first)
            work(0.1)
            second.__enter__()
            work(0.1)
        work(0.2)
        second.__exit__(None, None, None)
        work(0.1)
    seconds = [clock.read()["cpu_seconds"] for clock in (outer, first, second)]
    assert sum(seconds) <= time.process_time() - started + 0.05
    assert min(seconds) > 0.05 and seconds[2] > 0.25


def test_a_step_that_trains_has_little_surgery(tmp_path):
    folder = hc.run(image_recipe(tmp_path, [{"finetune": {}}])).output_dir
    done = {event["operation"]: event for event in Journal(folder / "journal.jsonl").events() if "stage" in event}
    assert done["surgery"]["cpu_seconds"] < done["train"]["cpu_seconds"]
    assert done["surgery"]["wall_seconds"] < done["train"]["wall_seconds"]
    assert done["surgery"]["peak_bytes"] >= done["train"]["peak_bytes"]


def test_peak_memory_sees_an_allocation():
    reset_peak_memory()
    before = peak_memory()
    block = bytearray(os.urandom(1) * (64 << 20))
    assert peak_memory() - before >= (32 << 20)
    del block


def test_without_proc_the_peak_is_that_of_the_whole_process(monkeypatch):
    reset_peak_memory()
    since_reset = peak_memory()
    monkeypatch.setattr(Path, "read_text", Mock(side_effect=FileNotFoundError))
    peak = peak_memory()
    assert peak > 0.9 * since_reset  # the kernel counts the pages of each thread in batches
    monkeypatch.setattr(sys, "platform", "darwin")  # where the unit is a byte
    assert peak_memory() == pytest.approx(peak / 1024, rel=0.1)


def test_on_windows_the_peak_is_asked_of_psutil(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as good as missing
    spec = importlib.util.spec_from_file_location("hf_compress.journal_again", journal.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    memory = SimpleNamespace(peak_wset=123)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: memory))
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(Path, "read_text", Mock(side_effect=FileNotFoundError))
    assert again.peak_memory() == 123


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "stage") as aside:
        (aside / "weights").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "stage") as aside:
        (aside / "weights").write_text("whole")
        assert not (tmp_path / "stage").exists()
    assert (tmp_path / "stage" / "weights").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


def test_json_is_whole_and_finite(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    assert read_json(tmp_path / "a.json") == {"x": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json") == {"x": 1}
    (tmp_path / "b.json").write_text('{"x": ')
    with pytest.raises(CompressionError, match="b.json"):
        read_json(tmp_path / "b.json")
    with pytest.raises(CompressionError, match="c.json does not exist"):
        read_json(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("said", "kept"), [("pruning", "prune"), ("prune", "prune"), ("quantization", "quantize"), (None, None)]
)
def test_a_technique_may_be_called_by_its_noun(tmp_path, said, kept):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.add_human(40, "reading", said)
    assert journal.events()[0]["technique"] == kept


def test_an_unknown_technique_is_refused_with_the_nearest(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(CompressionError, match="did you mean 'pruning'"):
        journal.add_human(40, "reading", "prunning")
    assert not journal.path.exists()
