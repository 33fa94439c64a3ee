from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import RESNET20, image_recipe, make_text_root, text_recipe
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

import hf_compress as hc
from hf_compress.errors import CompressionError, RecipeError
from hf_compress.journal import Journal
from hf_compress.measurement import count, evaluate, has_fast_bf16
from hf_compress.outcome import origin
from hf_compress.preflight import resolved
from hf_compress.quantization import load_exported
from hf_compress.recipe import load_recipe
from hf_compress.report.timeline import read_timeline
from hf_compress.runner import plan, run
from hf_compress.storage import read_json, write_json
from hf_compress.training import build_arguments


PRUNE = {"prune": {"method": "magnitude", "target": {"macs": 0.6}}}
SVD = {"factorize": {"method": "svd", "target": {"params": 0.5}}}
DISTILL = {"distill": {"teacher": "baseline"}}
INT8 = {"quantize": {"backend": "openvino", "scheme": "static_int8", "calibration_samples": 32}}


@pytest.fixture(scope="module")
def text_root(tmp_path_factory):
    return make_text_root(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize(
    ("steps", "names"),
    [
        ([PRUNE], ["00_baseline", "01_prune"]),
        ([{"finetune": {}}, PRUNE], ["00_baseline", "01_prune"]),
        (
            [{"finetune": {}}, {"finetune": {}}, SVD, INT8],
            ["00_finetune", "01_baseline", "02_factorize", "03_quantize"],
        ),
        ([{"finetune": {}}], ["00_baseline"]),
        ([{"distill": {"teacher": "x"}}, INT8], ["00_baseline", "01_distill", "02_quantize"]),
        ([{"distill": {"teacher": "x"}}, PRUNE], ["00_baseline", "01_prune"]),
        ([PRUNE, DISTILL], ["00_baseline", "01_prune", "02_distill"]),
        (
            [{"finetune": {}}, {"distill": {"teacher": "x"}}],
            ["00_baseline", "01_finetune", "02_distill"],
        ),
    ],
)
def test_the_plan_has_one_baseline(tmp_path, steps, names):
    hc.load_methods()
    stages = plan(load_recipe(image_recipe(tmp_path, steps)))
    assert [stage.name for stage in stages] == names


def test_a_run_takes_the_cores_that_it_may_use(tmp_path, monkeypatch):
    recipe = load_recipe({**image_recipe(tmp_path, [{"finetune": {}}]), "threads": None})
    monkeypatch.setattr("hf_compress.measurement.machine.usable_cores", lambda: 6)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert resolved(recipe).threads == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # of four processes on two machines
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert resolved(recipe).threads == 3
    recipe.threads = 5
    assert resolved(recipe).threads == 5


@pytest.mark.parametrize(
    ("cpu", "gpu", "training", "step", "found"),
    [
        (False, None, {}, {}, (False, None)),
        (True, None, {}, {}, (True, None)),
        (False, True, {}, {}, (True, None)),
        (True, False, {}, {}, (False, None)),
        (True, False, {"use_cpu": True}, {}, (True, None)),
        (False, True, {}, {"use_cpu": True}, (True, False)),
        (True, None, {"bf16": False}, {}, (False, None)),
        (True, None, {"fp16": True}, {}, (False, None)),
        (False, None, {"fp16": True}, {}, (False, None)),
        (True, None, {}, {"fp16": True}, (True, False)),
        (False, None, {}, {"fp16": True}, (False, None)),
        (True, None, {"bf16": True}, {"fp16": True, "bf16": False}, (True, False)),
    ],
)
def test_bf16_is_settled_by_what_trains(tmp_path, monkeypatch, cpu, gpu, training, step, found):
    monkeypatch.setattr("hf_compress.training.arguments.has_fast_bf16", lambda: cpu)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    hc.load_methods()
    recipe = resolved(load_recipe(image_recipe(tmp_path, [{"finetune": {"training": step}}], training=training)))
    assert (recipe.training["bf16"], recipe.steps[0].training.get("bf16")) == found
    assert resolved(recipe).identity() == recipe.identity()
    monkeypatch.undo()
    arguments = build_arguments({**recipe.training, **recipe.steps[0].training, "use_cpu": True}, tmp_path, seed=0)
    assert not (arguments.fp16 and arguments.bf16)


def test_an_image_recipe_goes_from_weights_to_int8(tmp_path):
    steps = [{"finetune": {}}, PRUNE, {"distill": {"teacher": "baseline"}}, SVD, INT8]
    finished = run(image_recipe(tmp_path / "run", steps))
    folder = finished.output_dir
    results = json.loads((folder / "results.json").read_text())
    stages = {stage["name"]: stage for stage in results["stages"]}
    assert list(stages) == ["00_baseline", "01_prune", "02_distill", "03_factorize", "04_quantize"]
    for stage in stages.values():
        assert 0 <= stage["metrics"]["accuracy"] <= 1
        assert stage["size_bytes"] > 0 and stage["seconds"]["total"] > 0
        assert any("p50" in row for row in stage["latency"])
    baseline = stages["00_baseline"]
    assert stages["01_prune"]["macs"] <= 0.6 * baseline["macs"]
    assert stages["03_factorize"]["params"] <= 0.5 * baseline["params"]
    assert stages["04_quantize"]["macs"] == stages["03_factorize"]["macs"]
    assert stages["01_prune"]["achieved"] == pytest.approx(stages["01_prune"]["macs"] / baseline["macs"])
    assert stages["02_distill"]["epochs"] and stages["01_prune"]["layers"]
    for name in (
        "recipe.yaml",
        "environment.json",
        "journal.jsonl",
        "results.md",
        "model/README.md",
        "plots/seconds.png",
    ):
        assert (folder / name).exists(), name
    assert not (folder / "stages" / ".work").exists() or not any((folder / "stages" / ".work").iterdir())
    again = AutoModelForImageClassification.from_pretrained(folder / "stages" / "03_factorize")
    assert sum(p.numel() for p in again.parameters()) == stages["03_factorize"]["params"]

    # the same command again keeps every stage
    before = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/model.safetensors")}
    assert run(image_recipe(folder, steps)).results["stages"] == results["stages"]
    assert {path: path.stat().st_mtime_ns for path in before} == before

    # another recipe in the same folder is refused and changes nothing
    content = (folder / "results.json").read_bytes()
    with pytest.raises(CompressionError, match="another recipe"):
        run(image_recipe(folder, steps[:2]))
    assert (folder / "results.json").read_bytes() == content


def test_the_code_of_the_card_gives_the_model_that_was_evaluated(tmp_path):
    recipe = image_recipe(tmp_path / "run", [INT8])
    finished = run(recipe)
    folder, stage = finished.output_dir / "model", finished.results["stages"][-1]
    fastest = "bf16" if has_fast_bf16() else "f32"
    assert stage["notes"]["arithmetic"]["INFERENCE_PRECISION_HINT"] == fastest
    assert {row["rest"] for row in stage["latency"] if row["precision"] == "int8"} == {fastest}  # timed as evaluated
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(code.replace("path/to/model", str(folder)), names)
    data = hc.load_task(hc.TaskSpec(**recipe["task"]), seed=0).prepare(load_exported(folder)[1])
    again = evaluate(names["model"], data, batch_size=250)["test"]
    assert again.metrics == stage["metrics"]
    for logits, recorded in zip(again.logits, stage["predictions"]["test"]["first"], strict=False):
        assert logits.tolist() == pytest.approx(recorded, abs=1e-5)


def test_what_its_owner_has_written_into_the_card_outlives_another_run(tmp_path, monkeypatch):
    recipe = image_recipe(tmp_path / "run", [SVD])
    card = run(recipe).output_dir / "model" / "README.md"
    written = card.read_text()
    run({**recipe, "hub": {"repo_id": "me/small"}})
    assert card.read_text() == written.replace('"path/to/model"', '"me/small"') != written
    card.write_text(card.read_text() + "\nFor the night shift.\n")
    run({**recipe, "hub": {"repo_id": "me/other"}})
    changed = written.replace('"path/to/model"', '"me/other"') + "\nFor the night shift.\n"
    assert card.read_text() == changed
    with monkeypatch.context() as broken:  # after the model has been put anew
        broken.setattr("hf_compress.runner.write_report", lambda *arguments: pytest.fail("killed"))
        with pytest.raises(BaseException, match="killed"):
            run({**recipe, "hub": {"repo_id": "me/other"}})
    assert card.read_text() == changed
    run({**recipe, "hub": {"repo_id": "me/other"}})
    assert card.read_text() == changed


def test_a_card_of_an_earlier_template_is_written_anew(tmp_path, monkeypatch):
    recipe = image_recipe(tmp_path / "run", [SVD])
    with monkeypatch.context() as earlier:
        earlier.setattr("hf_compress.runner.model_card", lambda *arguments: "as cards once were")
        card = run(recipe).output_dir / "model" / "README.md"
    assert card.read_text() == "as cards once were"
    run(recipe)
    assert card.read_text().startswith("---")


def test_a_text_recipe_with_recovery_after_the_surgery(tmp_path, text_root):
    pruned = {"prune": {**PRUNE["prune"], "target": {"macs": 0.6, "scope": "encoder"}, "distill": {"alpha": 0.5}}}
    finished = run(text_recipe(tmp_path / "run", text_root, [{"finetune": {}}, pruned, SVD, INT8]))
    stages = finished.results["stages"]
    assert [stage["technique"] for stage in stages] == ["finetune", "prune", "factorize", "quantize"]
    assert stages[1]["epochs"] and stages[1]["seconds"]["train"] > 0
    assert stages[1]["encoder_macs"] <= 0.6 * stages[0]["encoder_macs"]
    assert stages[0]["metrics"]["accuracy"] > 0.5
    model = AutoModelForSequenceClassification.from_pretrained(finished.output_dir / "stages" / "02_factorize")
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[2, 5, 3]])).logits.shape == (1, 2)


SMALL = {"samples": 32, "probe_samples": 8, "distill": {"alpha": 0.5}}


@pytest.mark.parametrize("options", [{"method": "fisher", "score_samples": 16}, {"method": "depth"}])
def test_training_free_pruning_and_recovery(tmp_path, text_root, options):
    pruned = {"prune": {**SMALL, **options, "target": {"macs": 0.6, "scope": "encoder"}}}
    finished = run(text_recipe(tmp_path / "run", text_root, [{"finetune": {}}, pruned]))
    dense, stage = finished.results["stages"]
    assert stage["encoder_macs"] <= 0.6 * dense["encoder_macs"]
    assert len(stage["epochs"]) == 2 and stage["seconds"]["train"] > 0 < stage["seconds"]["surgery"]
    model = AutoModelForSequenceClassification.from_pretrained(finished.output_dir / "stages" / "01_prune")
    assert count(model, length=16).encoder_macs == stage["encoder_macs"]


def test_macs_and_latency_are_of_one_length(tmp_path, text_root):
    recipe = text_recipe(tmp_path / "run", text_root, [PRUNE])
    stages = run(recipe).results["stages"]
    assert [stage["macs_length"] for stage in stages] == [16, 16]
    assert {row["length"] for stage in stages for row in stage["latency"] if "p50" in row} == {16}
    for stage in stages:
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "stages" / stage["name"])
        assert count(model, length=16).macs == stage["macs"]
    with pytest.raises(CompressionError, match="another recipe"):
        run({**recipe, "measure": {**recipe["measure"], "length": 8}})


def test_a_target_of_latency_speaks_of_the_int8_model_to_come(tmp_path, text_root, monkeypatch):
    """Exports and ranges are real, the time is made up: a weight, a second."""
    asked = []

    def seconds_of(model):
        return {name: float(m.weight.numel()) for name, m in model.named_modules() if type(m) is torch.nn.Linear}

    def latencies(self, model, against, seconds=5.0):
        graph = self.export(model).model
        quantized = any(op.get_type_name() == "FakeQuantize" for op in graph.get_ops())
        asked.append((self.precision, self.batch, self.length, *self.quantization["exclude"], quantized))
        return sum(seconds_of(model).values()), sum(seconds_of(against).values())

    monkeypatch.setattr("hf_compress.pruning.latency_costs.cache_directory", lambda: tmp_path / "cache")
    monkeypatch.setattr("hf_compress.measurement.Serving.latencies", latencies)
    monkeypatch.setattr("hf_compress.measurement.Serving.module_seconds", lambda self, model: seconds_of(model))
    pruned = {"prune": {**SMALL, "method": "fisher", "score_samples": 16, "target": {"latency": 0.7}}}
    int8 = {"quantize": {**INT8["quantize"], "exclude": ["*.pooler"]}}
    recipe = text_recipe(tmp_path / "run", text_root, [{"finetune": {}}, pruned, int8])
    finished = run({**recipe, "measure": {**recipe["measure"], "batch": 3, "length": 12}})
    assert set(asked) == {("int8", 3, 12, "*.pooler", True)}
    stage = finished.results["stages"][1]
    assert stage["target"]["latency"] == 0.7 and stage["achieved"] <= 0.7 and not stage["warnings"]
    assert stage["epochs"] and [s["technique"] for s in finished.results["stages"]][-1] == "quantize"


def test_only_the_runs_that_made_a_model_say_where_it_comes_from(tmp_path, monkeypatch):
    made = image_recipe(tmp_path / "run", [PRUNE], model={"name_or_path": "org/first"})
    for folder in (tmp_path, tmp_path / "run"):
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "config.json").write_text("{}")
        (folder / "recipe.yaml").write_text(json.dumps(made))
    (tmp_path / "run" / "results.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    hc.load_methods()
    assert origin("run/model") == origin(str(tmp_path / "run" / "model")) == "org/first"
    # beside a recipe that has not made them
    for name in ("bert-large-uncased", "model", str(tmp_path / "model"), "run/stages", "run", "absent/model"):
        assert origin(name) == name


def test_distilling_into_another_student_has_the_teacher_as_baseline(tmp_path, text_root):
    teacher = run(text_recipe(tmp_path / "teacher", text_root, [{"finetune": {}}])).output_dir / "model"
    finished = run(text_recipe(tmp_path / "run", text_root, [{"distill": {"teacher": str(teacher)}}]))
    assert [stage["name"] for stage in finished.results["stages"]] == ["00_baseline", "01_distill"]
    again = run(
        {**text_recipe(tmp_path / "again", text_root, [{"finetune": {}}]), "model": {"name_or_path": str(teacher)}}
    )
    assert again.results["origin"] == finished.results["origin"] == str(text_root / "bert")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"task": {"name": "cifar10", "data_dir": "/nowhere"}}, CompressionError, "/nowhere"),
        ({"model": {"name_or_path": "/nowhere/model"}}, CompressionError, "/nowhere/model"),
        ({"steps": [{"prune": {"method": "magnitude", "target": {"macs": 0.0001}}}]}, CompressionError, "reach"),
        ({"training": {"lerning_rate": 1}}, RecipeError, "learning_rate"),
        (
            {"steps": [PRUNE, {"distill": {"teacher": "baseline", "training": {"lerning_rate": 1}}}]},
            RecipeError,
            r"steps\.1\.distill\.training\.lerning_rate.*learning_rate",
        ),
    ],
)
def test_a_refused_run_leaves_nothing_half_written(tmp_path, changes, error, message):
    recipe = image_recipe(tmp_path / "run", [PRUNE])
    recipe.update(changes)
    with pytest.raises(error, match=message):
        run(recipe)
    assert not (tmp_path / "run" / "results.json").exists()
    assert not list((tmp_path / "run" / "stages").glob("01_*"))
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_the_journal_says_why_a_step_or_a_run_failed(tmp_path, monkeypatch):
    beyond = {"prune": {"method": "magnitude", "target": {"macs": 0.0001}}}
    recipe = image_recipe(tmp_path / "run", [beyond])
    with pytest.raises(CompressionError, match="reach") as refused:
        run(recipe)
    ends = [e for e in Journal(tmp_path / "run" / "journal.jsonl").events() if e["status"] == "failed"]
    assert [(event["operation"], event.get("stage")) for event in ends] == [("surgery", "01_prune"), ("run", None)]
    assert all(event["notes"]["error"] == f"{refused.type.__name__}: {refused.value}" for event in ends)
    assert ends[0]["wall_seconds"] >= 0
    attempt = read_timeline(tmp_path / "run").attempts[-1]
    assert attempt.status == "failed"
    (failure,) = [operation for operation in attempt.operations if operation.status == "failed"]
    assert (failure.name, failure.error) == ("surgery", ends[0]["notes"]["error"])

    def stop(*unused, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hf_compress.runner.apply_method", stop)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
    assert [attempt.status for attempt in read_timeline(tmp_path / "run").attempts] == ["failed", "interrupted"]

    monkeypatch.setattr("hf_compress.runner.load_task", lambda *unused, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(recipe)
    attempt = read_timeline(tmp_path / "run").attempts[-1]
    (failure,) = attempt.operations
    assert (attempt.status, failure.name, failure.error) == ("failed", "run", "ZeroDivisionError: division by zero")

    # a folder that is another recipe's gets no line
    written = (tmp_path / "run" / "journal.jsonl").read_bytes()
    with pytest.raises(CompressionError, match="another recipe"):
        run({**recipe, "seed": 7})
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == written


def test_a_corrected_recipe_goes_on_with_the_stages_that_are_its_own(tmp_path):
    beyond = {"prune": {"method": "magnitude", "target": {"macs": 0.0001}}}
    recipe = image_recipe(tmp_path / "run", [{"finetune": {}}, beyond])
    with pytest.raises(CompressionError, match="reach"):
        run(recipe)
    made = tmp_path / "run" / "stages" / "00_baseline" / "model.safetensors"
    before = made.stat().st_mtime_ns
    with pytest.raises(CompressionError, match="another recipe"):  # whose baseline is another one
        run({**recipe, "seed": 7})
    finished = run({**recipe, "steps": [{"finetune": {}}, PRUNE]})
    assert made.stat().st_mtime_ns == before
    assert [stage["name"] for stage in finished.results["stages"]] == ["00_baseline", "01_prune"]
    with pytest.raises(CompressionError, match="another recipe"):  # a finished run is nobody else's
        run({**recipe, "steps": [{"finetune": {}}, PRUNE, {"distill": {"teacher": "baseline"}}]})


def test_latencies_of_an_earlier_run_say_how_they_were_measured(tmp_path):
    recipe = image_recipe(tmp_path / "run", [PRUNE])
    first = run(recipe).results
    assert not any("timed" in text for stage in first["stages"] for text in stage["warnings"])
    path = tmp_path / "run" / "environment.json"
    write_json(path, {**read_json(path), "python": "3.9"})
    again = run({**recipe, "measure": {**recipe["measure"], "batch": 3}, "threads": 1}).results
    assert again["environment"]["python"] == "3.9", "it was made there"
    for stage in again["stages"]:
        (warning,) = [text for text in stage["warnings"] if text.startswith("timed in an earlier run")]
        assert "measure.batch: 4, not 3" in warning and "output_dir" in warning
    assert [stage["latency"] for stage in again["stages"]] == [stage["latency"] for stage in first["stages"]]


def test_a_model_that_was_made_anew_under_its_name_mixes_with_no_stage(tmp_path):
    places = {name: tmp_path / name for name in ("model", "teacher")}
    for place in places.values():
        shutil.copytree(RESNET20, place)
    recipe = image_recipe(tmp_path / "run", [PRUNE], model={"name_or_path": str(places["model"])})
    svd = {"factorize": {"method": "svd", "target": {"params": 0.7}}}
    recipe["steps"] += [{"distill": {"teacher": str(places["teacher"])}}, svd]
    run(recipe)
    shutil.rmtree(tmp_path / "run" / "stages" / "03_factorize")
    before = contents(tmp_path / "run")
    right = (RESNET20 / "model.safetensors").read_bytes()
    for what, place in places.items():
        (place / "model.safetensors").write_bytes(right[:-1] + b"1")
        with pytest.raises(CompressionError, match=rf"{what}: its weights have changed .* another output_dir"):
            run(recipe)
        (place / "model.safetensors").write_bytes(right)
    assert contents(tmp_path / "run") == before
    shutil.rmtree(tmp_path / "run" / "stages" / "02_distill")
    (places["teacher"] / "model.safetensors").write_bytes(right[:-1] + b"1")  # of which nothing is made any more
    run(recipe)
    shutil.rmtree(places["model"])
    run(recipe)  # is done


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"finetune": {"training": {"optim": "sgdd"}}}, r"^steps\.1\.finetune\.training: .*sgdd"),
        ({"distill": {"training": {"lr_scheduler_type": "cosin"}}}, r"^steps\.1\.distill\.training: .*cosin"),
        ({"distill": {"training": {"fp16": True, "bf16": True}}}, r"^steps\.1\.distill\.training: .*fp16 and bf16"),
        ({"distill": {"teacher": "outputs/no/model"}}, r"^steps\.1\.distill\.teacher: .*'outputs/no/model' was not"),
        (
            {"prune": {**PRUNE["prune"], "distill": {"teacher": "/nowhere"}}},
            r"^steps\.1\.prune\.distill\.teacher: .*'/nowhere' was not found",
        ),
    ],
)
def test_what_a_later_step_lacks_is_found_at_once(tmp_path, step, message):
    with pytest.raises(CompressionError, match=message):
        run(image_recipe(tmp_path / "run", [PRUNE, step]))
    with pytest.raises(RecipeError, match=r"^training: .*sgdd"):
        run(image_recipe(tmp_path / "run", [PRUNE, {"finetune": {}}], training={"optim": "sgdd"}))
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_not_there_yet_or_no_longer_needed_is_not_looked_for(tmp_path):
    task = {"name": "cifar10", "data_dir": "/no/data"}
    own = str(tmp_path / "own" / "stages" / "00_baseline")
    with pytest.raises(CompressionError, match="/no/data"):
        run(image_recipe(tmp_path / "own", [PRUNE, {"distill": {"teacher": own}}], task=task))
    for stage in ("00_baseline", "01_prune", "02_distill"):
        (tmp_path / "done" / "stages" / stage).mkdir(parents=True)
    with pytest.raises(CompressionError, match="/no/data"):
        run(image_recipe(tmp_path / "done", [PRUNE, {"distill": {"teacher": "/nowhere"}}], task=task))


def test_a_teacher_that_has_learned_nothing_is_refused(tmp_path):
    recipe = image_recipe(tmp_path / "run", [{"distill": {"teacher": "resnet56_cifar"}}])
    with pytest.raises(CompressionError, match="'resnet56_cifar' is an architecture without trained weights"):
        run(recipe)


def test_a_teacher_that_does_not_fit_is_found_before_the_surgery(tmp_path, text_root):
    pruned = {"prune": {**PRUNE["prune"], "distill": {"teacher": "resnet56_cifar"}}}
    recipe = text_recipe(tmp_path / "run", text_root, [{"finetune": {}}, pruned])
    with pytest.raises(CompressionError, match="without trained weights"):
        run(recipe)
    assert not list((tmp_path / "run").rglob("surgery"))


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(CompressionError, match="is a file"):
        run(image_recipe(tmp_path / "run", [PRUNE]))
    assert (tmp_path / "run").read_text() == "mine"


def test_a_finished_run_is_looked_at_again_without_its_data(tmp_path):
    root = make_text_root(tmp_path / "data")
    recipe = text_recipe(tmp_path / "run", root, [PRUNE])
    first = run(recipe)
    shutil.rmtree(root)
    assert run(recipe).results == first.results
    (first.output_dir / "results.json").write_text("{")
    with pytest.raises(CompressionError, match="glue"):
        run(recipe)
