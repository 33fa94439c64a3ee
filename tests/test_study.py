from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from small_runs import RESNET20, image_recipe

import hf_compress as hc
from hf_compress import study_runner
from hf_compress.cli import main
from hf_compress.errors import DiskFullError, RecipeError
from hf_compress.journal import Journal
from hf_compress.report.effort import machine_seconds
from hf_compress.report.runs import read_runs
from hf_compress.store import link_folder
from hf_compress.study import load_study


PRUNE = {"prune": {"method": "magnitude", "target": {"macs": 0.6}}}
DISTILL = {"distill": {"teacher": "baseline"}}
SVD = {"factorize": {"method": "svd", "target": {"params": 0.5}}}


def study_file(folder: Path, variants: dict, **changes) -> Path:
    base = image_recipe(folder, [{"finetune": {}}])
    content = {"name": "small", "output_dir": str(folder / "study"), "base": base, "variants": variants, **changes}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def stages(folder: Path) -> list[tuple]:
    """What must not depend on who made a stage."""
    results = json.loads((folder / "results.json").read_text())
    return [(stage["name"], stage["metrics"], stage["predictions"]) for stage in results["stages"]]


def test_a_study_expands_into_recipes(tmp_path):
    hc.load_methods()
    variants = {
        "dense": None,
        "prune": {"add": [PRUNE], "grid": {"steps.1.target.macs": [0.7, 0.5]}},
        "both": {
            "add": [PRUNE, SVD, DISTILL],
            "orders": [["prune", "factorize", "distill"], ["prune", "distill", "factorize"]],
        },
        "whole": {"steps": [PRUNE, SVD], "orders": [["prune", "factorize"]]},
        "other": {"steps": [PRUNE], "set": {"model.from_config": False, "training.learning_rate": 0.5}},
        "once": {"add": [SVD], "seeds": [7]},
    }
    study = load_study(study_file(tmp_path, variants, seeds=[0, 3]))
    assert study.variants == [
        "dense",
        "prune-macs0.7",
        "prune-macs0.5",
        "both-prune-factorize-distill",
        "both-prune-distill-factorize",
        "whole-prune-factorize",
        "other",
        "once",
    ]
    runs = {run.name: run.recipe for run in study.runs}
    assert len(runs) == 15 and [run.seed for run in study.runs if run.variant == "once"] == [7]
    assert runs["prune-macs0.5/seed3"].steps[1].target.fraction == 0.5 and runs["prune-macs0.5/seed3"].seed == 3
    reordered = [step.technique for step in runs["both-prune-distill-factorize/seed0"].steps]
    assert reordered == ["finetune", "prune", "distill", "factorize"]
    assert not runs["other/seed0"].model.from_config and runs["other/seed0"].training["learning_rate"] == 0.5
    assert runs["dense/seed0"].output_dir == str(tmp_path / "study" / "runs" / "dense" / "seed0")


def test_the_base_of_a_study_may_be_a_recipe_with_sizes(tmp_path, monkeypatch):
    hc.load_methods()
    base = {**image_recipe(tmp_path, [{"finetune": {}}]), "name": "base", "size": "lab"}
    base["sizes"] = {"lab": {"training.learning_rate": 0.25}, "full": {"training.learning_rate": 0.5}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    path = study_file(tmp_path, {"dense": None}, base="base.yaml")
    for overrides, rate in (([], 0.25), (["base.size=full"], 0.5), (["base.training.learning_rate=1.0"], 1.0)):
        assert load_study(path, overrides).runs[0].recipe.training["learning_rate"] == rate
    with pytest.raises(RecipeError, match="did you mean 'full'"):
        load_study(path, ["base.size=ful"])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_study(study_file(tmp_path, {"dense": None}, base="~/base.yaml")).runs


def test_a_grid_may_be_over_any_values(tmp_path):
    hc.load_methods()
    targets = [{"macs": 0.5}, {"params": 0.5, "scope": "encoder"}]
    variants = {
        "models": {"grid": {"model.name_or_path": ["a/b", "c/d", "a b", "a-b", "~/e/"]}},
        "targets": {"steps": [PRUNE], "grid": {"steps.0.target": targets}},
        20: {"grid": {"training.learning_rate": [1e-5, -1.0]}},
    }
    study = load_study(study_file(tmp_path, variants))
    assert study.variants == [
        "models-name_or_patha-b-2",
        "models-name_or_pathc-d",
        "models-name_or_patha-b-3",
        "models-name_or_patha-b",
        "models-name_or_pathe",
        "targets-targetmacs-0.5",
        "targets-targetparams-0.5-scope-encoder",
        "20-learning_rate1e-05",
        "20-learning_rate-1.0",
    ]
    assert [run.recipe.model.name_or_path for run in study.runs[:5]] == ["a/b", "c/d", "a b", "a-b", "~/e/"]
    assert [run.recipe.steps[0].target.kind for run in study.runs[5:7]] == ["macs", "params"]
    with pytest.raises(RecipeError, match="variants.models-name_or_patha-b: this name stands for two variants"):
        load_study(study_file(tmp_path, {"models": {"grid": {"model.name_or_path": ["a/b", "a/b"]}}}))


def test_a_study_lies_in_one_place_of_the_home_folder(tmp_path, monkeypatch):
    hc.load_methods()
    monkeypatch.setenv("HOME", str(tmp_path))
    study = load_study(study_file(tmp_path, {"dense": None}, output_dir="~/study"))
    assert study.output_dir == tmp_path / "study"
    assert study.runs[0].recipe.output_dir == str(tmp_path / "study" / "runs" / "dense" / "seed0")


def test_the_study_of_the_readme_is_valid(tmp_path):
    hc.load_methods()
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (code,) = [block for block in re.findall(r"```yaml\n(.*?)```", readme, re.S) if "variants:" in block]
    (tmp_path / "study.yaml").write_text(code)
    assert load_study(tmp_path / "study.yaml").variants == ["prune-macs0.7", "prune-macs0.5", "int8"]


@pytest.mark.parametrize(
    ("variants", "changes", "message"),
    [
        ({}, {}, "study.variants: got none"),
        ({"a": {"ad": []}}, {}, "variants.a.ad: unknown key.*did you mean 'add'"),
        ({"a/b": None}, {}, "variants.a/b"),
        ({"a": None}, {"seeds": []}, "study.seeds"),
        ({"a": None}, {"seeds": [1, 1]}, "study.seeds"),
        ({"a": {"seeds": [0, 0]}}, {}, "variants.a.seeds"),
        ({"a": None}, {"base": 3}, "study.base"),
        ({"a": {"add": [PRUNE, SVD], "orders": [["prune"]]}}, {}, "variants.a.orders.*prune, factorize"),
        ({"a": {"add": [SVD, PRUNE]}}, {}, "variants.a.*put prune before factorize"),
        ({"a": {"add": [PRUNE], "grid": {"steps.7.target.macs": [0.5]}}}, {}, "steps 0 to 1"),
        ({"a-macs0.5": None, "a": {"add": [PRUNE], "grid": {"steps.1.target.macs": [0.5]}}}, {}, "two variants"),
    ],
)
def test_a_study_that_cannot_be_is_refused(tmp_path, variants, changes, message):
    hc.load_methods()
    with pytest.raises(RecipeError, match=message):
        load_study(study_file(tmp_path, variants, **changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    variants = {
        "prune": {"add": [PRUNE]},
        "impossible": {"add": [{"prune": {"method": "magnitude", "target": {"macs": 0.0001}}}]},
        "more": {"add": [PRUNE, DISTILL]},
    }
    path = study_file(folder, variants)
    assert main(["study", str(path)]) == 2, "one of the runs cannot be done"
    return path, folder / "study"


def test_stages_in_common_are_made_once_and_a_failure_is_kept(finished, tmp_path):
    _, folder = finished
    statuses = {run["variant"]: run for run in json.loads((folder / "study.json").read_text())["runs"]}
    assert [run["status"] for run in statuses.values()] == ["done", "failed", "done"]
    assert "reach" in statuses["impossible"]["error"]
    runs = {variant: folder / run["folder"] for variant, run in statuses.items()}
    for stage in ("00_baseline", "01_prune"):
        files = [runs[name] / "stages" / stage / "model.safetensors" for name in ("prune", "more")]
        assert os.path.samefile(*files)
    assert len([path for path in (folder / "stages").iterdir() if path.name[0] != "."]) == 3
    assert '"operation": "shared"' in (runs["more"] / "journal.jsonl").read_text()
    seconds = json.loads((runs["more"] / "results.json").read_text())["stages"][0]["seconds"]
    assert seconds["train"] > 0, "a shared stage costs what it cost whoever made it"
    together, apart = machine_seconds(read_runs([folder])[0])
    assert together < apart, "what is shared counts once"
    assert {"comparison.csv", "experiment.md", "report.html"} < {path.name for path in (folder / "report").iterdir()}
    # as it would be alone
    alone = hc.run(image_recipe(tmp_path / "alone", [{"finetune": {}}, PRUNE, DISTILL]))
    assert stages(alone.output_dir) == stages(runs["more"])


def test_the_same_command_does_only_what_is_missing(finished):
    path, folder = finished
    before = {file: file.stat().st_mtime_ns for file in (folder / "stages").rglob("model.safetensors")}
    content = yaml.safe_load(path.read_text())
    content["variants"]["impossible"] = {"add": [SVD]}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["study", str(path), "--jobs", "2"]) == 0
    after = {file: file.stat().st_mtime_ns for file in (folder / "stages").rglob("model.safetensors")}
    assert before.items() <= after.items() and len(after) == len(before) + 1


def test_a_folder_that_cannot_be_read_stops_no_other_run(tmp_path):
    path = study_file(tmp_path, {"old": {"add": [PRUNE]}, "dense": None})
    runs = tmp_path / "study" / "runs"
    (runs / "old" / "seed0").mkdir(parents=True)
    recipe = image_recipe(tmp_path, [{"prune": {"method": "magnitude", "target": {"macs": 0.6}, "former": 1}}])
    (runs / "old" / "seed0" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["study", str(path)]) == 2
    old, dense = json.loads((tmp_path / "study" / "study.json").read_text())["runs"]
    assert dense["status"] == "done" and old["status"] == "failed"
    assert f"{runs / 'old' / 'seed0' / 'recipe.yaml'}: this folder's recipe cannot be read" in old["error"]
    assert "steps.0.prune.former: unknown key" in old["error"]


def test_what_people_added_outlives_a_change_of_the_variant(tmp_path):
    hc.load_methods()
    (run,) = load_study(study_file(tmp_path, {"a": {"add": [PRUNE]}})).runs
    folder = Path(run.recipe.output_dir)
    (folder / "stages" / "00_baseline").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(study_runner.resolved(run.recipe).to_yaml())
    journal = Journal(folder / "journal.jsonl")
    journal.append(operation="run", status="started")
    journal.add_human(40, "reading", "pruning", note="what a group is")
    before, lines = sorted(folder.rglob("*")), journal.events("human")
    study_runner._drop_unfinished_other(run.recipe, folder)
    assert sorted(folder.rglob("*")) == before and len(journal.events()) == 2
    (changed,) = load_study(study_file(tmp_path, {"a": {"add": [SVD]}})).runs
    study_runner._drop_unfinished_other(changed.recipe, folder)
    assert list(folder.iterdir()) == [journal.path]
    assert journal.events() == lines and lines[0]["note"] == "what a group is"


@pytest.mark.parametrize(
    ("changes", "told"),
    [({}, ""), ({"threads": 2}, "threads: 1, now 2"), ({"measure": {"seconds": 9}}, "'seconds': 9")],
)
def test_what_begins_anew_is_told(tmp_path, caplog, changes, told):
    hc.load_methods()
    (run,) = load_study(study_file(tmp_path, {"a": {"add": [PRUNE]}})).runs
    folder = Path(run.recipe.output_dir)
    (folder / "stages").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(study_runner.resolved(run.recipe).to_yaml())
    base = image_recipe(tmp_path, [{"finetune": {}}], **changes)
    (again,) = load_study(study_file(tmp_path, {"a": {"add": [PRUNE]}}, base=base)).runs
    study_runner._drop_unfinished_other(again.recipe, folder)
    assert (folder / "stages").is_dir()
    assert ("begin anew" in caplog.text) is bool(told) and told in caplog.text


def test_a_study_stopped_while_it_looks_again_keeps_what_it_says_of_its_runs(finished, monkeypatch):
    path, folder = finished
    before = (folder / "study.json").read_text()

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(study_runner, "_outcomes", stopped)
    with pytest.raises(KeyboardInterrupt):
        study_runner.run_study(load_study(path))
    assert (folder / "study.json").read_text() == before and before.count('"done"') >= 2
    (folder / "study.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        study_runner.run_study(load_study(path))
    rows = json.loads((folder / "study.json").read_text())["runs"]
    assert {row["variant"]: row["status"] for row in rows if row["variant"] != "impossible"} == {
        "prune": "done",
        "more": "done",
    }
    (folder / "study.json").write_text(before)


def test_a_finished_run_stays_in_the_study_when_seeds_are_left_out(tmp_path, monkeypatch):
    path = study_file(tmp_path, {"dense": None, "svd": {"steps": [SVD]}}, seeds=[0, 1])

    def finishing(runs, *arguments):
        for run in runs:
            folder = Path(run.recipe.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "results.json").write_text("{}")
            yield run, None

    monkeypatch.setattr(study_runner, "_outcomes", finishing)
    everything = study_runner.run_study(load_study(path))
    some = study_runner.run_study(load_study(path, ["seeds=[1]"]))
    assert sorted(run["folder"] for run in some["runs"]) == sorted(run["folder"] for run in everything["runs"])
    content = yaml.safe_load(path.read_text())
    del content["variants"]["svd"]
    path.write_text(yaml.safe_dump(content))
    assert {run["variant"] for run in study_runner.run_study(load_study(path))["runs"]} == {"dense"}
    (tmp_path / "study" / "runs" / "dense" / "seed1" / "results.json").unlink()
    assert [run["seed"] for run in study_runner.run_study(load_study(path, ["seeds=[0]"]))["runs"]] == [0]


def test_a_study_mixes_no_seeds_of_a_model_that_was_made_anew(tmp_path, monkeypatch):
    """Nor is a model sought where the environment of an earlier study says, whose server starts the processes."""
    shutil.copytree(RESNET20, tmp_path / "data" / "models" / "small")
    monkeypatch.setenv("HF_COMPRESS_DATA", str(tmp_path / "data"))
    base = image_recipe(tmp_path, [PRUNE], model={"name_or_path": "small"})
    path = tmp_path / "study.yaml"
    study = {"name": "s", "output_dir": str(tmp_path / "study"), "base": base, "variants": {"a": None}}
    path.write_text(json.dumps({**study, "seeds": [0, 1]}))
    assert [run["status"] for run in study_runner.run_study(load_study(path), jobs=2)["runs"]] == ["done", "done"]
    shutil.move(tmp_path / "data", tmp_path / "other")
    monkeypatch.setenv("HF_COMPRESS_DATA", str(tmp_path / "other"))
    weights = tmp_path / "other" / "models" / "small" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"1")
    path.write_text(json.dumps({**study, "seeds": [0, 1, 2]}))
    *old, new = study_runner.run_study(load_study(path))["runs"]
    assert [run["status"] for run in old] == ["done", "done"], "they are whole"
    assert new["status"] == "failed" and "small: its weights have changed" in new["error"]


def test_more_threads_than_cores_are_told(tmp_path, monkeypatch, caplog):
    path = study_file(tmp_path, {"dense": None}, seeds=[0, 1])
    monkeypatch.setattr(study_runner, "_outcomes", lambda *arguments: (run for run in []))
    for jobs, cores, told in ((2, 1, True), (2, 2, False), (1, 1, False)):
        monkeypatch.setattr(study_runner, "usable_cores", lambda cores=cores: cores)
        caplog.clear()
        study_runner.run_study(load_study(path), jobs=jobs)
        assert ("give base.threads" in caplog.text) is told


@pytest.mark.parametrize(("code", "copies"), [(errno.EXDEV, True), (errno.EPERM, True), (errno.ENOSPC, False)])
def test_where_files_cannot_be_linked_stages_are_copied(tmp_path, monkeypatch, code, copies):
    (tmp_path / "stage" / "inside").mkdir(parents=True)
    (tmp_path / "stage" / "inside" / "model").write_text("weights")

    def refused(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("hf_compress.store.os.link", refused)
    with nullcontext() if copies else pytest.raises(DiskFullError):
        link_folder(tmp_path / "stage", tmp_path / "run" / "stage")
    assert (tmp_path / "run" / "stage").exists() is copies
    assert not copies or (tmp_path / "run" / "stage" / "inside" / "model").read_text() == "weights"


def kill_after_a_stage(command: list[str], folder: Path) -> None:
    """Start the study in `folder`, kill the process of the command alone, and wait until nothing works on it."""
    process = subprocess.Popen([sys.executable, "-m", *command], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 300
    while not list((folder / "stages").glob("[0-9a-f]*/model.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    for lock in folder.rglob("*.lock"):  # of the run's own process, which ends a moment after it
        with FileLock(lock, timeout=60):
            pass
    assert not list(folder.glob("runs/*/*/results.json"))


def test_a_killed_study_goes_on_and_repeats_no_stage(tmp_path):
    path = study_file(tmp_path, {"prune": {"add": [PRUNE]}, "more": {"add": [PRUNE, DISTILL]}})
    kill_after_a_stage(["hf_compress.cli", "study", str(path)], tmp_path / "study")
    store = tmp_path / "study" / "stages"
    made = {file: file.stat().st_mtime_ns for file in store.glob("[0-9a-f]*/model.safetensors")}
    assert main(["study", str(path)]) == 0
    assert made.items() <= {file: file.stat().st_mtime_ns for file in store.glob("*/model.safetensors")}.items()
    alone = hc.run(image_recipe(tmp_path / "alone", [{"finetune": {}}, PRUNE, DISTILL]))
    assert stages(alone.output_dir) == stages(tmp_path / "study" / "runs" / "more" / "seed0")


def test_a_study_ends_with_its_launcher(tmp_path):
    path = study_file(tmp_path, {"more": {"add": [PRUNE, DISTILL]}})
    script = Path(__file__).parents[1] / "scripts" / "compress.py"
    kill_after_a_stage(["accelerate.commands.launch", str(script), str(path)], tmp_path / "study")
