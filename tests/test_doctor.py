from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from small_runs import image_recipe

import hf_compress as hc
from hf_compress.cli import main
from hf_compress.doctor import checks
from hf_compress.doctor.timing import _Speed, estimate
from hf_compress.recipe import load_recipe
from hf_compress.runner import resolved


QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    hc.load_methods()
    monkeypatch.setattr("hf_compress.doctor.timing.SECONDS", 0.05)
    monkeypatch.setenv("HF_COMPRESS_DATA", "")


def told(capsys, *arguments):
    code = main(["doctor", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def states(content):
    return {finding["name"]: finding["state"] for finding in content["findings"]}


def test_the_machine_alone(capsys):
    code, content = told(capsys)
    assert code == 0 and {"cpu", "threads", "memory", "disk", "versions"} < states(content).keys()
    assert not content["stages"]
    assert main(["doctor"]) == 0
    assert "nothing is missing" in capsys.readouterr().out


def test_a_recipe_whose_data_and_model_ship_can_run(capsys, tmp_path):
    code, content = told(capsys, QUICKSTART, f"output_dir={tmp_path / 'out'}")
    assert code == 0 and states(content)["cifar10"] == "ok" and states(content)[str(tmp_path / "out")] == "ok"
    stages = {stage["stage"]: stage for stage in content["stages"]}
    assert list(stages) == ["00_baseline", "01_prune", "02_distill", "03_factorize", "04_quantize"]
    assert stages["02_distill"]["train"] > 0 == stages["03_factorize"]["train"]
    assert stages["04_quantize"]["calibrate"] > 0 and content["seconds"] > 0
    assert all(stage["peak_bytes"] > 2**20 for stage in stages.values())
    assert not (tmp_path / "out").exists(), "looking leaves nothing behind"


def test_what_is_missing_is_named_with_the_commands_that_fetch_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_compress.locate.is_offline", lambda: True)
    recipe = {
        "name": "absent",
        "output_dir": str(tmp_path / "out"),
        "task": {"name": "glue", "subset": "sst2"},
        "model": {"name_or_path": "someone/no-such-model"},
        "steps": [{"distill": {"teacher": "outputs/never-run/model"}}],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    code, content = told(capsys, path)
    found = states(content)
    assert code == 1
    assert found["glue/sst2"] == found["model someone/no-such-model"] == "missing"
    assert found["teacher outputs/never-run/model"] == "missing"
    commands = [command for finding in content["findings"] for command in finding["remedy"]]
    assert any(command.startswith("hf download someone/no-such-model") for command in commands)
    assert content["no_estimate"] and not content["stages"]
    main(["doctor", str(path), "--no-estimate"])
    text = capsys.readouterr().out
    assert "missing: glue/sst2" in text and "hf download nyu-mll/glue --repo-type dataset" in text


def test_a_recipe_that_is_none_is_refused(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("name: x")
    assert main(["doctor", str(tmp_path / "recipe.yaml")]) == 2
    assert "required" in capsys.readouterr().err


def test_an_engine_that_is_not_installed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(checks, "_installed", lambda module: False)
    code, content = told(capsys, QUICKSTART, f"output_dir={tmp_path / 'out'}", "--no-estimate")
    assert code == 1
    remedies = [finding["remedy"] for finding in content["findings"] if finding["state"] == "missing"]
    assert remedies == [['pip install "hf_compress[openvino]"']]


def test_the_output_folder_is_looked_at(capsys, tmp_path):
    recipe = image_recipe(tmp_path / "run", [{"finetune": {}}])
    hc.run(recipe)
    capsys.readouterr()
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    name = str(load_recipe(path).output_dir)
    _, content = told(capsys, path, "--no-estimate")
    (done,) = [finding for finding in content["findings"] if finding["name"] == name]
    assert done["state"] == "note" and "is done already" in done["detail"]
    code, content = told(capsys, path, "seed=7", "--no-estimate")
    assert code == 1 and states(content)[name] == "missing"


def test_stages_that_recipes_share_are_estimated_once():
    plain = yaml.safe_load(QUICKSTART.read_text())
    longer, shorter = plain, {**plain, "steps": plain["steps"][:2]}
    recipes = [resolved(load_recipe(recipe)) for recipe in (longer, shorter)]
    assert len(estimate(recipes)) == len(estimate(recipes[:1])) == 5


def test_times_go_with_what_there_is_to_do(monkeypatch):
    recipe = yaml.safe_load(QUICKSTART.read_text())
    recipe["steps"] = [{"finetune": {"training": {"num_train_epochs": 2}}}]
    speed = _Speed(forward=0.001, training=0.01, peak_bytes=0)
    monkeypatch.setattr("hf_compress.doctor.timing._speed", lambda *_: speed)
    (stage,) = estimate([resolved(load_recipe(recipe))])
    assert stage.train == pytest.approx(2 * 950 * 0.01) and stage.evaluate == pytest.approx(1000 * 0.001)
