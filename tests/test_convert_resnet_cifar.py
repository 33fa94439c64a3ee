from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, TimmWrapperConfig

import hf_compress as hc


SCRIPT = Path(__file__).parents[1] / "scripts" / "convert_resnet_cifar.py"


@pytest.fixture
def run(monkeypatch):
    """Run the script and give its exit code."""

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return ended.value.code

    return run


def checkpoint(path: Path, model) -> Path:
    """The weights of `model` in a file as that repository has them: of several GPUs, with another name of the head."""
    weights = {
        "module." + name.removeprefix("timm_model.").replace("fc.", "linear."): value
        for name, value in model.state_dict().items()
    }
    torch.save({"state_dict": weights, "best_prec1": 91.7}, path)
    return path


@pytest.mark.parametrize("depth", [20, 32])
def test_the_model_gives_what_the_checkpoint_gives(run, tmp_path, depth):
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture=f"resnet{depth}_cifar", model_args={"shortcut": "A"}, num_labels=10)
    model = AutoModelForImageClassification.from_config(config).eval()
    path, folder = checkpoint(tmp_path / "net.th", model), tmp_path / "hub" / "models" / f"resnet{depth}_cifar10"
    assert run(path, folder) == 0
    again, processor = hc.load_model(folder, task=hc.load_task(hc.TaskSpec(name="cifar10", data_dir="sample")))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(pixels).logits, model(pixels).logits)
    assert again.config.architecture == f"resnet{depth}_cifar" and again.config.id2label[6] == "frog"
    assert tuple(again.config.pretrained_cfg["mean"]) == (0.485, 0.456, 0.406)


def test_what_is_no_checkpoint_is_refused_and_leaves_nothing(run, tmp_path, capsys):
    (tmp_path / "other").write_text("no checkpoint")
    torch.save({"state_dict": {"module.conv1.weight": torch.zeros(3)}}, tmp_path / "short")
    torch.save([1, 2], tmp_path / "list")
    for name, said in (("nowhere", "cannot be read"), ("other", "no checkpoint"), ("list", "no checkpoint")):
        assert run(tmp_path / name, tmp_path / "folder") == 2
        assert said in capsys.readouterr().err
    assert run(tmp_path / "short", tmp_path / "folder") == 2
    assert not (tmp_path / "folder").exists()
    config = TimmWrapperConfig(architecture="resnet20_cifar", model_args={"shortcut": "B"}, num_labels=10)
    other = checkpoint(tmp_path / "b.th", AutoModelForImageClassification.from_config(config))
    assert run(other, tmp_path / "folder") == 2 and "layer2.0.downsample.0.weight" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()
    (tmp_path / "folder").mkdir()
    assert run(tmp_path / "short", tmp_path / "folder") == 2
    assert "is there already" in capsys.readouterr().err and not list((tmp_path / "folder").iterdir())
