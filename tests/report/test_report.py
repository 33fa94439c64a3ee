from __future__ import annotations

import ast
import copy

import pytest
import yaml
from huggingface_hub import ModelCard
from many_runs import TASK

from hf_compress.errors import CompressionError
from hf_compress.report import model_card, plot_all, print_stages, stage_table, write_report
from hf_compress.report.tables import served_latency
from hf_compress.results import load_results, save_results


def row(runtime, precision, p50, role="stage", batch=128):
    return {
        "runtime": runtime,
        "precision": precision,
        "batch": batch,
        "length": None,
        "threads": 2,
        "p50": p50,
        "p90": p50 * 1.1,
        "samples": 20,
        "role": role,
    }


MAKES = "it makes the predictions"


@pytest.fixture
def results():
    dense_rows = [
        row("torch", "fp32", 0.24, "baseline"),
        row("openvino", "f32", 0.12, "baseline"),
        row("openvino", "bf16", 0.05, "baseline"),
    ]
    seconds = {"total": 30.0, "train": 20.0, "surgery": 2.0, "evaluate": 4.0, "measure": 3.0, "save": 1.0}
    return {
        "format_version": 1,
        "name": "test-run",
        "seed": 0,
        "recipe": {
            "name": "test-run",
            "seed": 0,
            "output_dir": "/somewhere/secret",
            "task": {"name": "cifar10", "data_dir": "/somewhere/secret"},
            "model": {"name_or_path": "org/resnet20_cifar10"},
            "steps": [{"prune": {"method": "magnitude"}}],
            "hub": {},
        },
        "environment": {"cpu": "CPU <1>", "instruction_sets": ["avx2"], "threads": 2, "versions": {"torch": "2"}},
        "task": dict(TASK),
        "stages": [
            {
                "name": "00_baseline",
                "technique": "none",
                "method": "none",
                "metrics": {"accuracy": 0.92},
                "params": 270_000,
                "macs": 41_000_000,
                "size_bytes": 1_100_000,
                "latency": [row("torch", "fp32", 0.24), row("openvino", "f32", 0.12), *dense_rows],
                "seconds": seconds,
            },
            {
                "name": "01_prune",
                "technique": "prune",
                "method": "magnitude",
                "metrics": {"accuracy": 0.90},
                "params": 135_000,
                "macs": 20_500_000,
                "size_bytes": 560_000,
                "notes": {"kept": {"fc": MAKES, "conv1": "it is tied", "head": MAKES}},
                "latency": [row("torch", "fp32", 0.16), row("openvino", "f32", 0.08), *dense_rows],
                "seconds": seconds,
                "layers": {"layer1.0.conv1": {"kept": 8, "of": 16}, "layer1.1.conv1": {"kept": 4, "of": 16}},
                "epochs": [{"epoch": 1, "holdout_accuracy": 0.85}, {"epoch": 2, "holdout_accuracy": 0.89}],
                "warnings": ["target macs 0.5 was missed: 0.52"],
            },
            {
                "name": "02_quantize",
                "technique": "quantize",
                "method": "openvino",
                "metrics": {"accuracy": 0.899},
                "params": 135_000,
                "macs": 20_500_000,
                "size_bytes": 180_000,
                "latency": [
                    row("openvino", "int8", 0.04),
                    {"runtime": "openvino", "precision": "bf16", "skipped": "no bf16 instructions"},
                    *dense_rows,
                ],
                "seconds": seconds,
            },
        ],
    }


def test_the_speed_up_is_against_the_dense_model_timed_beside_it(results):
    served = served_latency(results["stages"][2])
    assert (served.runtime, served.precision, served.batch) == ("openvino", "int8", 128)
    assert served.speedup_torch == pytest.approx(6.0)
    assert served.speedup_same_runtime == pytest.approx(3.0)
    assert served.speedup_bf16 == pytest.approx(1.25)
    assert served_latency(results["stages"][1]).speedup_torch == pytest.approx(3.0)


def test_the_table_has_a_row_a_stage_with_its_change(results, capsys):
    table = stage_table(results)
    assert len(table.strip().splitlines()) == 5
    assert "-0.0200" in table and "(50 %)" in table and "6.00x" in table
    print_stages(results)
    assert "02_quantize" in capsys.readouterr().out


def test_a_stage_without_latency_has_no_speed_up(results):
    for stage in results["stages"]:
        stage["latency"] = []
    assert "x |" not in stage_table(results)


def test_markup_in_names_is_neutralised(results):
    results["stages"][1]["name"] = "01_<script>|x"
    line = stage_table(results).splitlines()[3]
    assert "<script>" not in line and "\\|x" in line


def test_the_card_has_a_model_index_and_the_limits(results, tmp_path):
    text = model_card(results, "me/small")
    card = ModelCard(text)
    assert card.data.model_name == "test-run"
    assert card.data.eval_results[0].metric_value == pytest.approx(0.899)
    assert card.data.base_model == "org/resnet20_cifar10"
    assert yaml.safe_load(text.split("---")[1])["model-index"][0]["results"][0]["dataset"]["split"] == "test"
    assert 'OVModelForImageClassification.from_pretrained("me/small")' in text
    assert "target macs 0.5 was missed" in text and "no bf16 instructions" in text
    assert "/somewhere/secret" not in text
    torch_card = model_card({**results, "stages": results["stages"][:2]})
    assert "import hf_compress" in torch_card and "ignore_mismatched_sizes" in torch_card


@pytest.mark.parametrize("recorded", [{}, {"restructured": False}])
@pytest.mark.parametrize(("modality", "excepted"), [("text", False), ("image", True)])
def test_the_card_of_a_model_as_it_was_built_says_that_transformers_loads_it(results, recorded, modality, excepted):
    dense = {**results["stages"][0], **recorded}
    text = model_card({**results, "task": {**results["task"], "modality": modality}, "stages": [dense]})
    assert "Every layer has the shape" in text and "ignore_mismatched_sizes" not in text
    assert ("CIFAR ResNets" in text) == excepted


def test_the_card_of_a_model_that_came_pruned_says_what_loading_needs(results):
    text = model_card({**results, "stages": [{**results["stages"][0], "restructured": True}]})
    assert "fails on the shapes" in text


def test_the_card_loads_an_export_as_it_was_evaluated(results):
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    stage = results["stages"][2]
    stage["notes"] = {"arithmetic": exact}
    stage["latency"][0]["rest"] = "f32"
    text = model_card(results, "me/small")
    (call,) = [node for node in ast.walk(ast.parse(_code(text))) if isinstance(node, ast.Call)]
    assert call.func.attr == "from_pretrained" and ast.literal_eval(call.args[0]) == "me/small"
    assert {word.arg: ast.literal_eval(word.value) for word in call.keywords} == {"ov_config": exact}
    assert "all that is not int8 computed in f32" in text and "AVX512-BF16 or AMX" in text
    assert "| int8 (rest f32) |" in text
    stage["notes"] = {"arithmetic": {**exact, "INFERENCE_PRECISION_HINT": "bf16"}}
    assert "all that is not int8 computed in bf16" in model_card(results)


def test_the_card_claims_nothing_about_an_export_of_unknown_arithmetic(results):
    text = model_card(results)
    assert "ov_config" not in text and "computed in" not in text


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({"data_dir": "sample"}, "cifar10 (sample)"),
        ({"max_eval_samples": 1000}, "cifar10 (1000 evaluation examples)"),
        ({"data_dir": "sample", "max_eval_samples": 1000}, "cifar10 (sample) (1000 evaluation examples)"),
    ],
)
def test_a_card_does_not_give_figures_on_a_part_of_the_data_as_those_on_all(results, spec, name):
    results["recipe"]["task"] |= spec
    results["stages"][-1]["predictions"] = {"test": {"examples": 1000}}
    text = model_card(results)
    assert ModelCard(text).data.eval_results is None and "model-index" not in text
    assert f"- task: {name}, split `test` (1,000 examples)\n" in text
    assert f"on {name};" in text and f"Judged on {name} alone" in text


def test_a_metric_of_a_further_split_is_filed_under_it(results):
    results["task"] |= {"name": "glue/mnli", "modality": "text", "eval_split": "validation_matched"}
    last = results["stages"][-1]
    last["metrics"] = {"accuracy": 0.8, "validation_mismatched/accuracy": 0.7}
    last["predictions"] = {
        "validation_matched": {"examples": 9815},
        "validation_mismatched": {"examples": 9832},
    }
    text = model_card(results)
    found = {result.dataset_split: result.metric_value for result in ModelCard(text).data.eval_results}
    assert found == {"validation_matched": 0.8, "validation_mismatched": 0.7}
    assert "split `validation_matched` (9,815 examples), split `validation_mismatched` (9,832 examples)\n" in text


def _code(card):
    return card.split("```python\n")[1].split("```")[0]


def test_a_local_base_model_is_no_metadata(results):
    results["recipe"]["model"]["name_or_path"] = "/somewhere/model"
    assert ModelCard(model_card(results)).data.base_model is None
    results["origin"] = "org/model"  # that the runs before this one started from
    assert ModelCard(model_card(results)).data.base_model == "org/model"
    results["origin"] = "hf_compress/resnet20_cifar10"  # of the package
    assert ModelCard(model_card(results)).data.base_model is None


def test_the_report_is_written_and_every_plot_is_a_picture(results, tmp_path):
    write_report_folder = tmp_path / "run"
    (write_report_folder / "model").mkdir(parents=True)
    write_report(results, write_report_folder)
    names = {path.name for path in (write_report_folder / "plots").iterdir()}
    plots = ("accuracy_latency", "accuracy_size", "layers", "seconds", "epochs")
    assert names == {f"{plot}.{kind}" for plot in plots for kind in ("png", "svg")}
    for path in (write_report_folder / "plots").glob("*.png"):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = (write_report_folder / "results.md").read_text()
    assert "01_prune: target macs 0.5 was missed" in text
    assert "01_prune: not pruned (it makes the predictions): `fc`, `head`\n" in text
    assert "01_prune: not pruned (it is tied): `conv1`\n" in text
    assert (write_report_folder / "model" / "plots" / "accuracy_latency.png").exists()


def test_no_plot_without_data(results, tmp_path):
    stage = results["stages"][0]
    stage["latency"], stage["seconds"] = [], {}
    assert [path.name for path in plot_all({**results, "stages": [stage]}, tmp_path)] == ["accuracy_size.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format_version=99), "upgrade"),
        (lambda r: r.pop("format_version"), "no results.json"),
        (lambda r: r["stages"][1].pop("params"), "stages.1 lacks params"),
        (lambda r: r.update(stages={}), "must be a list"),
    ],
)
def test_results_that_cannot_be_read_are_refused(results, tmp_path, change, message):
    save_results(results, tmp_path / "results.json")
    assert load_results(tmp_path) == results
    broken = copy.deepcopy(results)
    change(broken)
    with pytest.raises(CompressionError, match=message):
        save_results(broken, tmp_path / "results.json")
    assert load_results(tmp_path) == results
