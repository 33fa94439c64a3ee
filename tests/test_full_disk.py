"""Disks that are really full: a small one is mounted for a run, and filled up when the run comes to a point."""

from __future__ import annotations

import errno
import importlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import image_recipe, make_text_root, text_recipe
from transformers import BertConfig, BertForSequenceClassification

import hf_compress as hc
from hf_compress.cli import main
from hf_compress.errors import CompressionError, DiskFullError
from hf_compress.journal import Journal
from hf_compress.storage import read_json, whole_folder, write_json
from hf_compress.study import load_study
from hf_compress.study_runner import run_study


STEPS = [
    {"finetune": {}},
    {"prune": {"method": "magnitude", "target": {"macs": 0.6}, "distill": {"alpha": 0.5}}},
    {"quantize": {"backend": "openvino", "scheme": "static_int8", "calibration_samples": 32}},
]
STAGES = ["00_baseline", "01_prune", "02_quantize"]
PAGE = 4096

# stages that are finished before, the function before whose call the disk is filled, bytes that stay free, the cause
POINTS = {
    "recipe": (0, "hf_compress.runner.load_recipe", 0, "OSError"),
    "data": (0, "hf_compress.runner.load_task", 0, "OSError"),
    "first checkpoint": (0, "hf_compress.training.context.fit", 8 * PAGE, "SafetensorError"),
    "optimizer": (0, "hf_compress.training.context.fit", 40 * PAGE, "RuntimeError"),
    "surgery": (1, "hf_compress.runner.save_stage", 8 * PAGE, "SafetensorError"),
    "recovery": (1, "hf_compress.training.context.fit", 40 * PAGE, "RuntimeError"),
    "calibration": (2, "hf_compress.runner.apply_method", 0, "OSError"),
    "export": (2, "hf_compress.runner.save_stage", 8 * PAGE, "RuntimeError"),
    "measuring": (2, "hf_compress.stages.evaluate", 0, "OSError"),
    "results": (3, "hf_compress.runner.save_results", 0, "OSError"),
    "model": (3, "hf_compress.runner.copy_model", 8 * PAGE, "OSError"),
    "plots": (3, "hf_compress.report.plot_all", 0, "OSError"),
    "card": (3, "hf_compress.runner.model_card", 0, "OSError"),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """What a recipe file holds, without its output_dir."""
    folder = tmp_path_factory.mktemp("text")
    return text_recipe(folder / "whole", make_text_root(folder), STEPS)


@pytest.fixture(scope="module")
def whole(recipe):
    """The folder of an uninterrupted run."""
    return hc.run(recipe).output_dir


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, small enough to be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here: {getattr(error, 'stderr', None) or error}")
    yield folder
    # lazy: what was loaded from there may still be mapped into memory
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, spare: int = 0) -> None:
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - spare))


def fill_at(monkeypatch, name: str, disk: Path, spare: int) -> None:
    """Fill the disk, all but `spare` bytes, before the function `name` is called for the first time."""
    module, _, attribute = name.rpartition(".")
    function = getattr(importlib.import_module(module), attribute)

    def filling(*args, **kwargs):
        if not (disk / "filler").exists():
            fill(disk, spare)
        return function(*args, **kwargs)

    monkeypatch.setattr(name, filling)


def begin_with(finished: int, whole: Path, folder: Path) -> None:
    """Make the folder of a run that was stopped after so many stages."""
    for stage in STAGES[:finished]:
        shutil.copytree(whole / "stages" / stage, folder / "stages" / stage)
        shutil.copy(whole / "journal.jsonl", folder)


def found(folder: Path) -> list:
    """What of the results must not depend on interruptions: the metrics, and the logits to the bit."""
    stages = json.loads((folder / "results.json").read_text())["stages"]
    return [(stage["name"], stage["metrics"], stage["predictions"]) for stage in stages]


def check_whole(folder: Path) -> None:
    """No file under a final name is half-written, and what is complete says so."""
    assert not list(folder.rglob("*.partial"))
    for path in folder.rglob("*"):
        if "checkpoints" in path.parts or not path.is_file():
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), path
        else:
            assert path.stat().st_size or path.name == ".lock" or ".work" in path.parts, path


@pytest.mark.parametrize("point", POINTS)
def test_a_run_on_a_full_disk_says_so_and_finishes_when_there_is_room(
    point, recipe, whole, disk, tmp_path, monkeypatch, capfd
):
    finished, function, spare, cause = POINTS[point]
    folder = disk / "run"
    begin_with(finished, whole, folder)
    steps = STEPS if finished > 1 else STEPS[:2]  # an export takes a while, and is nothing that these points lead to
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({**recipe, "steps": steps, "output_dir": str(folder)}))
    times = json.loads((whole / "results.json").read_text())["stages"][0]["latency"]
    monkeypatch.setattr("hf_compress.stages.latency_rows", lambda *unused, **options: times)  # times are not compared
    raised = []
    with monkeypatch.context() as patch:
        fill_at(patch, function, disk, spare)
        patch.setattr("hf_compress.runner.run", _keeping_errors(hc.run, raised))
        assert main(["run", str(file)]) == 2
    assert type(raised[0].__cause__).__name__ == cause
    told = capfd.readouterr().err
    assert "Traceback" not in told
    (message,) = [line for line in told.splitlines() if line.startswith("hf-compress: ")]
    for part in (str(folder), "disk is full", " MB are free", "Make room", "another output_dir", "the same command"):
        assert part in message
    assert sorted(path.name for path in (folder / "stages").glob("[0-9]*")) == STAGES[:finished]
    check_whole(folder)

    (disk / "filler").unlink()
    assert main(["run", str(file)]) == 0
    assert found(folder) == found(whole)[: len(steps)]
    check_whole(folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}


def _keeping_errors(function, raised: list):
    def keeping(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except CompressionError as error:
            raised.append(error)
            raise

    return keeping


def test_python_gets_one_error_and_can_run_again_while_it_holds_it(recipe, whole, disk):
    folder = disk / "run"
    begin_with(3, whole, folder)
    fill(disk)
    with pytest.raises(DiskFullError, match="disk is full") as caught:
        hc.run({**recipe, "output_dir": str(folder)})
    assert isinstance(caught.value, CompressionError) and isinstance(caught.value.__cause__, OSError)
    (disk / "filler").unlink()
    assert hc.run({**recipe, "output_dir": str(folder)}).output_dir == folder


@pytest.mark.parametrize("spare", [0, 64 * PAGE], ids=["for nothing", "for no model"])
def test_a_study_stops_where_the_disk_is_full(disk, tmp_path, spare):
    path = tmp_path / "study.yaml"
    base = image_recipe(disk, [{"finetune": {}}])
    path.write_text(
        json.dumps(
            {
                "name": "two",
                "output_dir": str(disk / "study"),
                "base": base,
                "seeds": [0, 1],
                "variants": {"dense": None},
            }
        )
    )
    study = load_study(path)
    fill(disk, spare)
    with pytest.raises(DiskFullError, match=r"disk is full.*the same command"):
        run_study(study)
    assert spare == 0 or [row["status"] for row in read_json(disk / "study" / "study.json")["runs"]] == ["missing"] * 2
    assert not (disk / "study" / "runs" / "dense" / "seed1").exists(), "it would have failed in the same way"
    (disk / "filler").unlink()
    assert spare == 0 or [row["status"] for row in run_study(study)["runs"]] == ["done"] * 2


def test_an_output_folder_that_the_full_disk_cannot_hold(recipe, disk):
    subprocess.run(["mount", "-o", "remount,nr_inodes=1", disk], check=True)
    with pytest.raises(DiskFullError, match="disk is full"):
        hc.run({**recipe, "output_dir": str(disk / "run")})


def test_an_export_larger_than_what_is_free_leaves_nothing(disk):
    """OpenVINO removes the file that it could not write, so that the disk is not full any more when it raises."""
    config = BertConfig(vocab_size=40_000, hidden_size=64, num_hidden_layers=1, num_attention_heads=2)
    model = BertForSequenceClassification(config).eval()
    fill(disk, 2**21)
    with pytest.raises(DiskFullError, match="2.1 MB are free"):
        hc.quantize(model, scheme="none", output_dir=disk / "exported")
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_the_room_is_looked_at_before_the_files_that_took_it_are_removed(disk):
    fill(disk, 2**21)
    with pytest.raises(DiskFullError, match=" 0.0 MB are free") as caught, whole_folder(disk / "folder") as aside:
        torch.save(torch.zeros(2**20), aside / "large.pt")
    assert type(caught.value.__cause__) is RuntimeError
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_errors_of_another_kind_stay_as_they_are(disk):
    with pytest.raises(RuntimeError, match="boom"), whole_folder(disk / "folder"):
        raise RuntimeError("boom")
    fill(disk)
    explained = CompressionError("boom: another disk is full")
    explained.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    for error in (KeyError("boom"), explained):
        with pytest.raises(type(error), match="boom") as caught, whole_folder(disk / "folder"):
            raise error
        assert caught.value is error


def test_a_file_is_the_old_one_after_a_failed_write(disk):
    write_json(disk / "facts.json", {"old": True})
    fill(disk)
    with pytest.raises(OSError, match="No space left"):
        write_json(disk / "facts.json", {"new": "x" * PAGE})
    assert sorted(path.name for path in disk.iterdir()) == ["facts.json", "filler"]
    assert json.loads((disk / "facts.json").read_text()) == {"old": True}


def test_a_journal_that_cannot_be_written_does_not_hide_the_failure(disk):
    journal = Journal(disk / "journal.jsonl")
    with pytest.raises(RuntimeError, match="boom") as caught, journal.operation("save", "01_prune", text="x" * PAGE):
        fill(disk)
        raise RuntimeError("boom")
    assert "No space left" in caught.value.__notes__[0]
    (disk / "filler").unlink()
    journal.append(operation="save", status="done")
    assert [event["status"] for event in journal.events()] == ["started", "done"]
