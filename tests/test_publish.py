from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from hub_server import TOKEN, hub  # noqa: F401  (a fixture)
from huggingface_hub import HfApi, close_session, constants
from huggingface_hub.utils import validate_repo_id
from small_runs import finished_run, finished_study, image_recipe

from hf_compress import publish
from hf_compress.cli import main
from hf_compress.errors import CompressionError
from hf_compress.publish import check_finished, push_run, push_study, repository_names
from hf_compress.runner import run


SVD = {"factorize": {"method": "svd", "target": {"params": 0.6}}}
INT8 = {"quantize": {"backend": "openvino", "scheme": "static_int8", "calibration_samples": 32}}

PUSH = """
import json, sys
from hf_compress.cli import main
recipe, repo_id = sys.argv[1:]
assert main(["run", recipe, f"hub.repo_id={repo_id}", "--push_to_hub"]) == 0
"""
LOAD_TORCH = """
import sys, torch, hf_compress
from transformers import AutoModelForImageClassification
name, local = sys.argv[1:]
batch = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)}
with torch.no_grad():
    logits = [AutoModelForImageClassification.from_pretrained(where)(**batch).logits for where in (name, local)]
assert torch.equal(*logits)
"""
LOAD_EXPORTED = """
import sys, torch
from optimum.intel import OVModelForImageClassification
name, local = sys.argv[1:]
batch = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)}
logits = [OVModelForImageClassification.from_pretrained(where)(**batch).logits for where in (name, local)]
assert torch.equal(*logits)
assert "hf_compress" not in sys.modules
"""


def python(code: str, *arguments, environment: dict) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "0", **environment, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def push(hub, monkeypatch, capsys):  # noqa: F811
    """Push to the small Hub from this process; gives the exit code and what was printed."""
    monkeypatch.setattr(publish, "HfApi", functools.partial(HfApi, endpoint=hub.url))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the tries of the Hub's client
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def run_verb(*arguments, token: str | None = TOKEN) -> tuple[int, str]:
        monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: token)
        monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: token)
        code = main(["push", *map(str, arguments)])
        return code, "".join(capsys.readouterr())

    close_session()  # a client of another test knows other proxies
    yield run_verb
    close_session()


@pytest.mark.parametrize(("steps", "load"), [([SVD], LOAD_TORCH), ([INT8], LOAD_EXPORTED)], ids=["torch", "openvino"])
def test_a_pushed_run_comes_back_from_the_hub(tmp_path, hub, steps, load):  # noqa: F811
    recipe = image_recipe(tmp_path / "run", steps)
    run(recipe)  # finished here, so that the child only pushes
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    environment = hub.environment(tmp_path / "home")
    python(PUSH, tmp_path / "recipe.yaml", "tester/small", environment=environment)
    files = set(hub.repos["models", "tester/small"].files)
    assert {"README.md", "config.json", "results.json", "results.md", "recipe.yaml", "journal.jsonl"} <= files
    assert any(name.startswith("plots/") for name in files)
    assert not {"report.json", "measurement.json"} & files
    card = hub.repos["models", "tester/small"].files["README.md"]
    assert b'from_pretrained("tester/small")' in card or b'"tester/small",' in card
    assert b"model-index" not in card and b"path/to/model" not in card  # it was judged on 40 images of the sample
    python(load, "tester/small", tmp_path / "run" / "model", environment=hub.environment(tmp_path / "fresh"))


def test_an_unfinished_run_is_not_pushed(tmp_path):
    with pytest.raises(CompressionError, match=r"results\.json"):
        push_run(tmp_path, "tester/small")


def without_the_last_stage(folder):
    results = json.loads((folder / "results.json").read_text())
    del results["stages"][-1]
    (folder / "results.json").write_text(json.dumps(results))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_the_last_stage, "has no stage 02_distill"),
        (lambda folder: shutil.rmtree(folder / "model"), "has no model folder"),
        (lambda folder: (folder / "model/config.json").unlink(), r"model has no config\.json"),
        (lambda folder: (folder / "model/README.md").unlink(), r"model has no README\.md"),
        (lambda folder: (folder / "model/model.safetensors").unlink(), "no weight files found"),
        (lambda folder: os.truncate(folder / "model/model.safetensors", 1000), "1,000 bytes of weights"),
    ],
)
def test_a_run_that_lacks_something_is_refused(tmp_path, damage, message):
    folder = finished_run(tmp_path / "run", steps=2)
    check_finished(folder)
    damage(folder)
    with pytest.raises(CompressionError, match=message):
        push_run(folder, "tester/small")


def test_an_export_without_its_graph_is_refused(tmp_path):
    folder = finished_run(tmp_path / "run")
    (folder / "model/model.safetensors").rename(folder / "model/openvino_model.bin")
    with pytest.raises(CompressionError, match=r"has no openvino_model\.xml"):
        check_finished(folder)


@pytest.mark.parametrize(
    ("variants", "names"),
    [
        (["prune", "int8"], ["me/small-prune", "me/small-int8"]),
        (["prune-macs0.5", "lr_1e-05"], ["me/small-prune-macs0.5", "me/small-lr_1e-05"]),
        (["x-name_or_pathowner/model", "a  b"], ["me/small-x-name_or_pathowner-model", "me/small-a-b"]),
        (["a--b", "a..b", "a-.", "a.git"], ["me/small-a-b", "me/small-a.b", "me/small-a", "me/small-a-git"]),
        (["a[1, 2]", "a[1,2]", "A-1-2"], ["me/small-a-1-2", "me/small-a-1-2-b5a4b3", "me/small-A-1-2-e6ef56"]),
    ],
)
def test_names_of_repositories(variants, names):
    found = repository_names("me/small", [(variant, None) for variant in variants])
    assert [re.sub(r"-[0-9a-f]{6}$", "", name) for name in found] == [re.sub(r"-[0-9a-f]{6}$", "", n) for n in names]
    assert len({name.lower() for name in found}) == len(found)
    for name in found:
        validate_repo_id(name)


def test_long_names_of_repositories_end_in_a_hash():
    runs = [(f"{'long' * 40}{index}", 3) for index in range(3)]
    names = repository_names("me/small", runs)
    assert len(set(names)) == 3 and max(map(len, names)) <= 96
    assert all(re.fullmatch(r"me/small-[long]+-[0-9a-f]{6}-seed3", name) for name in names)
    assert repository_names("me/small", runs) == names  # the next push finds them again
    assert repository_names("small", [("a/b", 0)]) == ["small-a-b-seed0"]
    with pytest.raises(CompressionError, match="repo_id"):
        repository_names("me/small/x", runs)


def test_a_study_becomes_a_collection_of_repositories(tmp_path, hub, push):  # noqa: F811
    study = finished_study(tmp_path / "my-study", {"prune": 1, "svd [a, b]--x": 3, "distill": 2}, later="failed")
    hub.cut.add("tester/small-distill")
    code, said = push(study, "--repo_id", "tester/small")
    assert code == 2 and "left out: later/seed0 (failed)" in said and "1 uploads failed" in said
    assert "distill/seed0 -> tester/small-distill: failed: Server disconnected" in said
    assert {repo_id for _, repo_id in hub.repos} == {f"tester/small-{x}" for x in ("prune", "svd-a-b-x", "distill")}
    assert set(hub.repos["models", "tester/small-distill"].files) == {".gitattributes"}
    (collection,) = hub.collections.values()
    assert collection["title"] == "my-study" and f"collection: {hub.url}/collections/{collection['slug']}" in said
    assert [item["id"] for item in collection["items"]] == ["tester/small-prune", "tester/small-svd-a-b-x"]
    files = hub.repos["models", "tester/small-prune"].files
    assert {"config.json", "model.safetensors", "results.json", "journal.jsonl", "plots/seconds.png"} <= set(files)
    card = files["README.md"].decode()
    assert 'from_pretrained("tester/small-prune")' in card and card.count("## Beside the other runs of its study") == 1
    table = card.split("of its study\n")[1].split("## Recipe")[0].replace("\\", "")  # markup in names is escaped
    found = re.findall(r"^\| my-study-(.+?) \| (\d\d_\w+)", table, re.M)
    assert found == [("prune", "00_baseline"), ("prune", "01_prune"), ("svd [a, b]--x", "03_factorize")] + [
        ("distill", "02_distill")
    ]

    # again: what failed is made good, what changed is brought up to date, nothing is there twice
    hub.cut.clear()
    weights = study / "runs/prune/seed0/model/model.safetensors"
    weights.rename(weights.with_name("model-00001-of-00001.safetensors"))
    commits = {key: len(repo.commits) for key, repo in hub.repos.items()}
    code, said = push(study, "--repo_id", "tester/small")
    assert code == 0, said
    assert len(hub.collections) == 1
    assert sorted(item["id"] for item in collection["items"]) == sorted(repo_id for _, repo_id in hub.repos)
    assert "model.safetensors" not in hub.repos["models", "tester/small-prune"].files
    made = {repo_id: len(repo.commits) - commits["models", repo_id] for (_, repo_id), repo in hub.repos.items()}
    assert made == {"tester/small-prune": 1, "tester/small-svd-a-b-x": 0, "tester/small-distill": 1}


def test_a_variant_with_other_seeds_goes_with_its_first(tmp_path, hub, push):  # noqa: F811
    study = finished_study(tmp_path / "study", {"prune": 1}, seeds=(7, 9))
    code, said = push(study, "--repo_id", "tester/small")
    assert code == 0, said
    results = json.loads(hub.repos["models", "tester/small-prune"].files["results.json"])
    assert results["seed"] == 7


def test_all_seeds_of_a_study(tmp_path, hub, push):  # noqa: F811
    study = finished_study(tmp_path / "study", {"prune": 1}, seeds=(0, 2))
    os.truncate(study / "runs/prune/seed2/model/model.safetensors", 10)
    code, said = push(study, "--repo_id", "tester/small", "--seeds", "all", "--private")
    assert code == 2 and "prune/seed2 -> tester/small-prune-seed2: failed" in said and "10 bytes" in said
    ((kind_and_id, repo),) = hub.repos.items()
    assert kind_and_id == ("models", "tester/small-prune-seed0") and repo.private
    assert next(iter(hub.collections.values()))["private"]
    assert " ± " in repo.files["README.md"].decode()  # the comparison is over all seeds


def test_what_its_owner_has_written_into_the_card_is_pushed(tmp_path, hub, push):  # noqa: F811
    folder = finished_run(tmp_path / "run")
    card = folder / "model/README.md"
    card.write_text(card.read_text() + "\nFor the night shift.\n")
    assert push(folder, "--repo_id", "tester/small")[0] == 0
    pushed = hub.repos["models", "tester/small"].files["README.md"].decode()
    assert pushed.endswith("For the night shift.\n") and 'from_pretrained("tester/small")' in pushed


def test_the_card_is_for_the_full_name_of_the_repository(tmp_path, hub, push):  # noqa: F811
    study = finished_study(tmp_path / "study", {"prune": 1})
    assert push(study / "runs/prune/seed0", "--repo_id", "small")[0] == 0
    assert push(study, "--repo_id", "small")[0] == 0
    for name in ("tester/small", "tester/small-prune"):
        assert f'from_pretrained("{name}")' in hub.repos["models", name].files["README.md"].decode()


def test_a_run_whose_upload_fails_can_be_pushed_again(tmp_path, hub, push):  # noqa: F811
    folder = finished_run(tmp_path / "run")
    code, said = push(folder, "--repo_id", "tester/my model")
    assert code == 2 and "repo_id: Repo id must use alphanumeric chars" in said and not hub.requests
    hub.cut.add("tester/small")
    code, said = push(folder, "--repo_id", "tester/small", "--private")
    assert code == 2 and "was not pushed to tester/small (Server disconnected" in said
    hub.cut.clear()
    assert f"`hf-compress push {folder} --repo_id tester/small --private` tries again" in said
    assert push(folder, "--repo_id", "tester/small", "--private")[0] == 0
    code, said = push(folder, "--repo_id", "someone/small")
    assert code == 2 and "was not pushed to someone/small" in said and "rights" in said


def test_without_a_token_nothing_is_sent(tmp_path, hub, push):  # noqa: F811
    study = finished_study(tmp_path / "study", {"prune": 1})
    code, said = push(study, "--repo_id", "tester/small", token=None)
    assert code == 2 and "hf auth login" in said and not hub.requests
    code, said = push(study / "runs/prune/seed0", "--repo_id", "tester/small", token="hf_of_nobody")
    assert code == 2 and "does not take this token" in said and not hub.repos


def test_a_hub_that_is_away_or_forbidden(tmp_path, push, monkeypatch):
    folder = finished_run(tmp_path / "run")
    monkeypatch.setattr(publish, "HfApi", functools.partial(HfApi, endpoint="http://127.0.0.1:9"))
    code, said = push(folder, "--repo_id", "tester/small")
    assert code == 2 and "http://127.0.0.1:9 cannot be reached" in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    code, said = push(folder, "--repo_id", "tester/small")
    assert code == 2 and "HF_HUB_OFFLINE is set" in said


def test_a_study_without_a_finished_run_is_not_pushed(tmp_path, capsys):
    study = tmp_path / "study"
    study.mkdir()
    finished_study(study, {}, prune="missing")
    assert main(["push", str(study), "--repo_id", "tester/small"]) == 2
    assert "no finished run with the first seed yet" in capsys.readouterr().err
    other = finished_study(tmp_path / "other", {"prune": 1}, seeds=(0, 3))
    entries = json.loads((other / "study.json").read_text())
    entries["runs"][0]["status"] = "failed"
    (other / "study.json").write_text(json.dumps(entries))
    with pytest.raises(CompressionError, match="there are those with seed 3"):
        push_study(other, "tester/small")
    (study / "study.json").write_text("[]")
    with pytest.raises(CompressionError, match="no record of a study"):
        push_study(study, "tester/small")
