from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_compress.errors import CompressionError
from hf_compress.training import Context, build_arguments, fit

from .killed_worker import MODELS, context
from .material import assert_same_weights, image_data, text_data, tiny_image_model, tiny_text_model, weights


TESTS = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def quick(folder, **fields):
    fields = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "learning_rate": 1e-3, "bf16": False, **fields}
    return build_arguments(fields, folder, seed=0)


@pytest.mark.parametrize("kind", MODELS)
def test_a_killed_training_goes_on_in_another_process_to_the_same_weights_and_curve(tmp_path, kind):
    worker = subprocess.Popen(
        [sys.executable, "-m", "training.killed_worker", str(tmp_path / "killed"), kind],
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])},
        stderr=subprocess.PIPE,
    )
    uninterrupted = MODELS[kind]()
    whole = context(tmp_path / "whole").train(uninterrupted)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "waiting").exists():
        assert worker.poll() is None, worker.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    worker.kill()
    worker.wait()
    worker.stderr.close()
    resumed = MODELS[kind]()
    second = context(tmp_path / "killed")
    rest = second.train(resumed)
    assert rest.resumed_from == 8  # the end of the second of three epochs of 4 steps
    assert "went on from step 8 of 12" in " ".join(second.notes["warnings"])
    assert rest.epochs == whole.epochs
    assert [set(row) for row in whole.epochs] == [
        {"epoch", "loss", "learning_rate", "holdout_loss", "holdout_accuracy"}
    ] * 3
    assert_same_weights(weights(uninterrupted), weights(resumed))


def test_a_finished_training_is_taken_from_its_checkpoint(tmp_path):
    first, again = tiny_text_model(), tiny_text_model()
    report = fit(first, data=text_data(), arguments=quick(tmp_path))
    repeated = fit(again, data=text_data(), arguments=quick(tmp_path))
    assert repeated.resumed_from == report.steps == 8
    assert repeated.epochs == report.epochs
    assert_same_weights(weights(first), weights(again))


def finished(folder) -> Path:
    """A folder with checkpoints of epochs 1 and 2."""
    fit(tiny_text_model(), data=text_data(), arguments=quick(folder, save_total_limit=2))
    return folder / "checkpoint-8"


@pytest.mark.parametrize(
    "damage",
    [
        lambda last: (last / "trainer_state.json").write_text('{"epoch": 2.0, "glo'),
        lambda last: (last / "trainer_state.json").unlink(),
        lambda last: (last / "optimizer.pt").unlink(),
        lambda last: (last / "model.safetensors").unlink(),
    ],
)
def test_a_checkpoint_that_a_killed_process_left_unfinished_is_passed_over(tmp_path, damage):
    last = finished(tmp_path)
    expected = load_file(last / "model.safetensors")
    damage(last)
    again = tiny_text_model()
    report = fit(again, data=text_data(), arguments=quick(tmp_path, save_total_limit=2))
    assert report.resumed_from == 4
    assert_same_weights(expected, weights(again))


def test_the_checkpoints_of_another_training_are_refused(tmp_path):
    finished(tmp_path)
    with pytest.raises(CompressionError, match=r"another training \(it differs in learning_rate\)"):
        fit(tiny_text_model(), data=text_data(), arguments=quick(tmp_path, learning_rate=1e-4))
    with pytest.raises(CompressionError, match="differs in parameters"):
        fit(tiny_text_model(intermediate_size=60), data=text_data(), arguments=quick(tmp_path))
    other = tiny_text_model()
    with torch.no_grad():
        other.classifier.bias[0] += 1e-3
    with pytest.raises(CompressionError, match=r"differs in weights\)"):
        fit(other, data=text_data(), arguments=quick(tmp_path))
    fresh = fit(tiny_text_model(), data=text_data(), arguments=quick(tmp_path, learning_rate=1e-4), resume=False)
    assert fresh.resumed_from is None


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path):
    last = finished(tmp_path)
    tensors = load_file(last / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, last / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CompressionError, match=r"lacks classifier\.weight"):
        fit(tiny_text_model(), data=text_data(), arguments=quick(tmp_path))


def test_a_diverging_training_stops_with_advice_and_is_not_saved(tmp_path):
    with pytest.raises(CompressionError, match="diverged; lower learning_rate"):
        fit(
            tiny_text_model(),
            data=text_data(),
            arguments=quick(tmp_path, learning_rate=1e30, optim="sgd", max_grad_norm=0.0),
        )
    assert not list(tmp_path.glob("checkpoint-*"))


def test_layout_and_mode_are_given_back(tmp_path):
    image_model = tiny_image_model().train()
    layouts = {name: value.stride() for name, value in image_model.named_parameters()}
    seen = []
    image_model.timm_model.layer1.register_forward_hook(
        lambda module, inputs, output: seen.append(output.is_contiguous(memory_format=torch.channels_last))
    )
    fit(image_model, data=image_data(), arguments=quick(tmp_path, num_train_epochs=1, optim="sgd"))
    assert seen and all(seen)
    assert {name: value.stride() for name, value in image_model.named_parameters()} == layouts
    assert not image_model.training
    assert all(parameter.grad is None for parameter in image_model.parameters())


def test_without_a_folder_nothing_is_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    report = Context(data=text_data(), training={"num_train_epochs": 1}).train(tiny_text_model())
    assert report.steps == 2
    assert not list(tmp_path.iterdir())


def test_two_trainings_of_a_step_keep_their_own_checkpoints(tmp_path):
    step = Context(data=text_data(), training={"num_train_epochs": 1}, output_dir=tmp_path)
    student = tiny_text_model()
    step.train(student)
    step.train(student, learning_rate=1e-4)
    folders = sorted(path.parent.name for path in tmp_path.glob("checkpoints/*/training.json"))
    assert folders == ["00", "01"]
    state = json.loads(next(tmp_path.glob("checkpoints/01/checkpoint-*/trainer_state.json")).read_text())
    assert state["global_step"] == 2
    assert len(step.notes["epochs"]) == 2
    shutil.rmtree(tmp_path / "checkpoints")
