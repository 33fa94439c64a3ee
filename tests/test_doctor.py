from __future__ import annotations

import functools
import json
import socket
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from hub_server import TOKEN, hub  # noqa: F401  (a fixture)
from huggingface_hub import HfApi, close_session, constants
from small_runs import image_recipe, make_text_root, text_recipe

import hf_compress as hc
from hf_compress.cli import main
from hf_compress.doctor import checks, estimate, finished_stages, rehearsal, timing
from hf_compress.doctor.rehearsal import Timing
from hf_compress.doctor.samples import Sizes
from hf_compress.measurement.latency import expected_seconds
from hf_compress.preflight import resolved
from hf_compress.recipe import load_recipe
from hf_compress.storage import write_text
from hf_compress.tasks import TaskSpec, load_task, published_sizes
from hf_compress.training import apply_method


QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
PRUNE = {"prune": {"method": "magnitude", "target": {"macs": 0.7}}}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    hc.load_methods()
    monkeypatch.setattr(rehearsal, "TRAINING_SECONDS", 0.05)
    monkeypatch.setattr(rehearsal, "GLANCE", 0.01)
    monkeypatch.setenv("HF_COMPRESS_DATA", "")


@pytest.fixture
def online(hub, monkeypatch):  # noqa: F811
    """The small Hub, as this process's own."""
    monkeypatch.setattr(checks, "HfApi", functools.partial(HfApi, endpoint=hub.url))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    yield hub
    close_session()


def told(capsys, *arguments):
    code = main(["doctor", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def states(content):
    return {finding["name"]: finding["state"] for finding in content["findings"]}


def written(folder: Path, recipe: dict) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def test_the_machine_alone(capsys):
    code, content = told(capsys)
    assert code == 0 and {"cpu", "threads", "memory", "disk", "versions"} < states(content).keys()
    assert not content["stages"] and content["seconds"] is None
    assert main(["doctor"]) == 0
    assert "nothing is missing" in capsys.readouterr().out


def test_a_recipe_whose_data_and_model_ship_can_run(capsys, tmp_path):
    code, content = told(capsys, QUICKSTART, f"output_dir={tmp_path / 'out'}")
    assert code == 0 and states(content)["cifar10"] == "ok" and states(content)[str(tmp_path / "out")] == "ok"
    stages = {stage["stage"]: stage for stage in content["stages"]}
    assert list(stages) == ["00_baseline", "01_prune", "02_distill", "03_factorize", "04_quantize"]
    assert stages["02_distill"]["train"] > 0 == stages["01_prune"]["train"]
    assert stages["01_prune"]["surgery"] > 0 < stages["03_factorize"]["calibrate"]
    assert stages["04_quantize"]["calibrate"] > 0 and content["seconds"] > 0
    # five stages at two batches, each about four seconds, and more where ten rounds need more
    assert content["seconds"] > 35 and all(stage["measure"] > 2 for stage in stages.values())
    assert all(stage["peak_bytes"] > 2**26 and stage["disk_bytes"] > 2**18 for stage in stages.values())
    assert "made-up images, as many as there are" in content["basis"]
    assert not (tmp_path / "out").exists(), "looking leaves nothing behind"
    assert main(["doctor", str(QUICKSTART), f"output_dir={tmp_path / 'out'}"]) == 0
    text = capsys.readouterr().out
    assert "time, an estimate" in text and "in all" in text and "random weights" not in text


def test_what_is_missing_is_named_with_the_commands_that_fetch_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_compress.locate.is_offline", lambda: True)
    recipe = {
        "name": "absent",
        "output_dir": str(tmp_path / "out"),
        "task": {"name": "glue", "subset": "sst2"},
        "model": {"name_or_path": "someone/no-such-model"},
        "steps": [{"distill": {"teacher": "outputs/never-run/model"}}],
        "hub": {"push": True, "repo_id": "me/small"},
    }
    monkeypatch.setattr(checks, "get_token", lambda: None)
    path = written(tmp_path, recipe)
    code, content = told(capsys, path)
    found = states(content)
    assert code == 1
    assert found["glue/sst2"] == found["model someone/no-such-model"] == found["token"] == "missing"
    assert found["teacher outputs/never-run/model"] == "missing"
    commands = [command for finding in content["findings"] for command in finding["remedy"]]
    assert any(command.startswith("hf download someone/no-such-model") for command in commands)
    assert "hf auth login" in commands
    assert content["no_estimate"] and not content["stages"]
    main(["doctor", str(path), "--no-estimate"])
    text = capsys.readouterr().out
    assert "missing: glue/sst2" in text and "hf download nyu-mll/glue --repo-type dataset" in text
    assert f"Looked at: {Path('someone/no-such-model').absolute()} (no such folder)" in text
    assert "the result of another recipe, which has to run first" in text


def test_a_teacher_that_has_learned_nothing_is_missing(capsys, tmp_path):
    recipe = image_recipe(tmp_path / "out", [{"distill": {"teacher": "resnet56_cifar"}}])
    code, content = told(capsys, written(tmp_path, recipe))
    assert code == 1 and states(content)["teacher resnet56_cifar"] == "missing"
    assert content["no_estimate"] == "it needs what is missing"


def test_an_architecture_that_is_known_is_timed_without_its_weights(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_compress.locate.is_offline", lambda: True)
    recipe = {
        "name": "known",
        "output_dir": str(tmp_path / "out"),
        "threads": 1,
        "task": {"name": "glue", "subset": "mrpc", "max_length": 16},
        "model": {"name_or_path": "sentence-transformers/all-MiniLM-L6-v2", "config": {"num_hidden_layers": 1}},
        "steps": [{"finetune": {}}],
    }
    code, content = told(capsys, written(tmp_path, recipe))
    assert code == 1 and states(content)["glue/mrpc"] == "missing"
    (stage,) = content["stages"]
    assert stage["train"] > 0 and stage["peak_bytes"] > 2**27
    basis = " ".join(content["basis"])
    assert "random weights" in basis and "made-up texts, all of 16 tokens" in basis


def test_texts_that_are_here_are_timed_at_their_own_lengths(capsys, tmp_path):
    root = make_text_root(tmp_path)
    recipe = text_recipe(tmp_path / "out", root, [{"finetune": {}}, {"quantize": {"calibration_samples": 8}}])
    code, content = told(capsys, written(tmp_path, recipe))
    assert code == 0 and any("the task's own texts" in line for line in content["basis"])
    assert [stage["stage"] for stage in content["stages"]] == ["00_baseline", "01_quantize"]


def test_a_target_out_of_reach_is_known_beforehand(capsys, tmp_path):
    steps = [{"prune": {"method": "magnitude", "target": {"macs": 0.001}}}]
    code, content = told(capsys, written(tmp_path, image_recipe(tmp_path / "out", steps)))
    assert code == 1 and states(content)["steps"] == "missing"
    (finding,) = [finding for finding in content["findings"] if finding["topic"] == "recipe"]
    assert finding["detail"].startswith("01_prune: target.macs: got 0.001, which is out of reach")


@pytest.mark.parametrize("recipe", [{"name": "x"}, {**image_recipe(Path("x"), [PRUNE]), "training": {"epochs": 3}}])
def test_a_recipe_that_is_none_is_refused(tmp_path, capsys, recipe):
    assert main(["doctor", str(written(tmp_path, recipe))]) == 2
    said = capsys.readouterr().err
    assert "required" in said or "training.epochs: unknown" in said


def test_an_engine_that_is_not_installed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(checks, "_lacks", lambda needed: f"{needed.name} is not installed")
    code, content = told(capsys, QUICKSTART, f"output_dir={tmp_path / 'out'}", "--no-estimate")
    assert code == 1
    remedies = [finding["remedy"] for finding in content["findings"] if finding["state"] == "missing"]
    assert remedies == [['pip install "hf_compress[openvino]"']]
    assert main(["doctor", str(QUICKSTART), f"output_dir={tmp_path / 'out'}", "--no-estimate"]) == 1
    assert capsys.readouterr().out.count(" openvino: ") == 1, "told once, though the machine lacks it too"
    taught = {"prune": {"method": "magnitude", "target": {"macs": 0.5}, "distill": {"teacher_runtime": "openvino"}}}
    recipe = written(tmp_path, image_recipe(tmp_path / "out", [taught]))
    code, content = told(capsys, recipe, "--no-estimate")
    assert code == 1 and states(content)["openvino"] == "missing"


def test_versions_that_do_not_go_together_are_told(monkeypatch):
    extras = checks.extras()
    assert {"openvino", "onnx", "search"} <= extras.keys() and "test" not in extras
    (needed,) = [one for one in extras["openvino"] if one.name == "transformers"]
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    assert checks._lacks(needed).startswith("transformers is 99.0, and has to be ")


def test_the_output_folder_is_looked_at(capsys, tmp_path):
    recipe = image_recipe(tmp_path / "run", [{"finetune": {}}])
    hc.run(recipe)
    capsys.readouterr()
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(recipe))
    name = str(load_recipe(path).output_dir)
    _, content = told(capsys, path)
    (done,) = [finding for finding in content["findings"] if finding["name"] == name]
    assert done["state"] == "note" and "is done already" in done["detail"]
    assert content["seconds"] == 0 and content["stages"][0]["done"]
    code, content = told(capsys, path, "seed=7", "--no-estimate")
    assert code == 1 and states(content)[name] == "missing"


def test_a_run_that_is_not_done(capsys, tmp_path):
    recipe = image_recipe(tmp_path / "out", [PRUNE, {"finetune": {}}])
    path, folder = written(tmp_path, recipe), tmp_path / "out"
    for place in ("00_baseline", "01_prune", ".work/02_finetune"):
        (folder / "stages" / place).mkdir(parents=True)
    write_text(folder / "recipe.yaml", resolved(load_recipe(recipe)).to_yaml())
    _, content = told(capsys, path, "--no-estimate")
    (found,) = [finding for finding in content["findings"] if finding["topic"] == "output"]
    assert found["detail"] == "this recipe goes on after 00_baseline, 01_prune; begun: 02_finetune"
    with FileLock(folder / ".lock"):
        code, content = told(capsys, path, "--no-estimate")
    assert code == 1 and "another process runs in this folder" in json.dumps(content)
    # a corrected recipe may go on with the stages that it shares, and another one may not
    (folder / "stages/.work/02_finetune").rmdir()
    assert told(capsys, path, "steps.1.training.num_train_epochs=3", "--no-estimate")[0] == 0
    assert told(capsys, path, "steps.0.target.macs=0.5", "--no-estimate")[0] == 1


def test_what_the_hub_has_and_has_not(online, capsys, tmp_path, monkeypatch):
    config = {"config.json": b"{}"}
    online.add("owner/open", config)
    online.add("tester/hidden", config, private=True)
    online.add("nyu-mll/glue", {"README.md": b""}, kind="datasets")
    recipe = {
        "name": "remote",
        "output_dir": str(tmp_path / "out"),
        "task": {"name": "glue", "subset": "mrpc"},
        "model": {"name_or_path": "owner/open"},
        "steps": [{"distill": {"teacher": "tester/hidden"}}],
    }
    path = written(tmp_path, recipe)
    code, content = told(capsys, path, "--no-estimate")
    found = states(content)
    assert code == 0 and found[online.url] == "ok"
    assert found["glue/mrpc"] == found["model owner/open"] == found["teacher tester/hidden"] == "remote"
    code, content = told(capsys, path, "model.name_or_path=owner/none", "model.revision=v2", "--no-estimate")
    assert code == 1 and f"the Hub: {online.url}: there is no owner/none at v2" in json.dumps(content)


def test_a_hub_that_never_answers_is_given_up(capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(checks, "PATIENCE", 60.0)
    monkeypatch.setattr(checks, "GIVING_UP", 0.3)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        found = checks._hub()
    assert found.state == "note" and "does not answer (TimeoutError" in found.detail
    assert found.remedy == ("export HF_ENDPOINT=https://hf-mirror.com",)


class Fake:
    """In place of a rehearsal: every stage takes a second to train, and nothing is loaded."""

    asked: list = []

    def __init__(self, recipe):
        self.recipe, self.basis = recipe, []

    def stage(self, stage, timed=True):
        self.asked.append((self.recipe.name, self.recipe.seed, stage.name, timed))
        return Timing(1.0, 0.0, 0.0, 0.0, 0.0, 2**20, 2**10) if timed else None


def test_what_recipes_share_is_estimated_once(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "Rehearsal", Fake)
    monkeypatch.setattr(Fake, "asked", [])
    longer, shorter = [PRUNE, {"finetune": {}}], [PRUNE, {"factorize": {"target": {"params": 0.5}}}]
    recipes = [
        resolved(load_recipe(image_recipe(tmp_path / f"{name}{seed}", steps, name=name, seed=seed)))
        for name, steps in (("longer", longer), ("shorter", shorter))
        for seed in (0, 1)
    ]
    found = estimate(recipes)
    assert [(stage.recipe, stage.seed, stage.stage) for stage in found.stages] == [
        *(("longer", seed, stage) for seed in (0, 1) for stage in ("00_baseline", "01_prune", "02_finetune")),
        *(("shorter", seed, "02_factorize") for seed in (0, 1)),
    ]
    assert found.seconds == 8 and found.peak_bytes == 2**20 and found.disk_bytes == 8 * 2**10
    # seeds are not rehearsed again, and of the second recipe only what is new is timed
    assert [(name, stage, timed) for name, _, stage, timed in Fake.asked] == [
        *(("longer", stage, True) for stage in ("00_baseline", "01_prune", "02_finetune")),
        ("shorter", "00_baseline", False),
        ("shorter", "01_prune", False),
        ("shorter", "02_factorize", True),
    ]


def test_stages_that_a_study_has_made_are_done(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(timing, "Rehearsal", Fake)
    study = {"name": "s", "output_dir": str(tmp_path / "study"), "base": image_recipe(tmp_path, [])}
    study["variants"] = {"prune": {"add": [PRUNE]}, "more": {"add": [PRUNE, {"finetune": {}}]}}
    path = written(tmp_path, study)
    code, content = told(capsys, path)
    assert code == 0 and content["seconds"] == 3
    from hf_compress.plan import history, plan
    from hf_compress.store import stage_key
    from hf_compress.study import load_study

    recipe = resolved(load_study(path).runs[0].recipe)
    store = tmp_path / "study" / "stages"
    (store / stage_key(history(recipe, plan(recipe), 0))).mkdir(parents=True)
    assert finished_stages(recipe, store) == ["00_baseline"]
    assert told(capsys, path)[1]["seconds"] == 2
    main(["doctor", str(path)])
    text = capsys.readouterr().out
    assert "s-more" in text and "and 1 more: free" in text


def test_more_memory_and_disk_than_there_is(monkeypatch, capsys, tmp_path):
    class Huge(Fake):
        def stage(self, stage, timed=True):
            return Timing(1.0, 0.0, 0.0, 0.0, 0.0, 2**60, 2**60)

    monkeypatch.setattr(timing, "Rehearsal", Huge)
    code, content = told(capsys, written(tmp_path, image_recipe(tmp_path / "out", [PRUNE])))
    assert code == 1 and states(content)["memory needed"] == states(content)["disk needed"] == "missing"


@pytest.mark.parametrize("limits", [{}, {"max_train_samples": 60, "max_eval_samples": 40}])
def test_examples_are_counted_as_the_task_makes_them(limits):
    spec = TaskSpec(name="cifar10", data_dir="sample", **limits)
    task = load_task(spec)
    _, processor = hc.load_model("hf_compress/resnet20_cifar10", task=task)
    data = task.prepare(processor)
    sizes = Sizes.of(task, {split: len(examples.labels) for split, examples in task.read().items()})
    assert (sizes.train, sizes.holdout) == (len(data.train), len(data.holdout))
    assert sizes.evaluation == sum(map(len, data.evaluation.values()))


def test_published_sizes():
    assert published_sizes(TaskSpec(name="cifar10")) == {"train": 50_000, "test": 10_000}
    assert published_sizes(TaskSpec(name="glue", subset="mnli"))["validation_mismatched"] == 9832


def test_latencies_are_expected_to_take_what_their_rounds_take():
    assert expected_seconds([0.5], seconds=5) == pytest.approx(2 * 0.5 + 10 * 0.5)  # two calls to warm up, ten rounds
    assert expected_seconds([0.01, 0.01], seconds=4) == pytest.approx(2 * 3 * 0.01 + 100 * 2 * 0.02)
    assert expected_seconds([10.0], seconds=1) == pytest.approx(10 + 3 * 10)  # at least three, however slow


def test_surgery_that_looks_at_examples_is_tried_on_few(capsys, tmp_path, monkeypatch):
    asked = []

    def apply(model, technique, method, options, context):
        asked.append((options.samples, options.score_samples, options.probe_samples))
        report = apply_method(model, technique, method, options, context)
        report.seconds["surgery"], report.seconds["calibrate"] = options.samples / 100, 0.5
        return report

    monkeypatch.setattr("hf_compress.doctor.rehearsal.apply_method", apply)
    steps = [
        {
            "prune": {
                "method": "fisher",
                "target": {"macs": 0.7},
                "samples": 320,
                "score_samples": 160,
                "probe_samples": 40,
            }
        }
    ]
    code, content = told(capsys, written(tmp_path, image_recipe(tmp_path / "out", steps)))
    assert code == 0 and asked == [(32, 16, 4), (64, 32, 8)]
    (stage,) = [stage for stage in content["stages"] if stage["stage"] == "01_prune"]
    assert stage["surgery"] == pytest.approx(3.2) and stage["calibrate"] == pytest.approx(0.5)
