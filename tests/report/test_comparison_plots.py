from __future__ import annotations

import copy
import math
import xml.etree.ElementTree as xml

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import LAYERS, run, study, write

from hf_compress.report import comparison_plots
from hf_compress.report.canvas import short_layer
from hf_compress.report.comparison_plots import PLOTS, plot_comparison, plot_files
from hf_compress.report.frontier import frontier
from hf_compress.report.labels import place
from hf_compress.report.runs import Figure, RunRecord, read_runs
from hf_compress.report.series import (
    curves,
    kept_by_layer,
    latency_spread,
    layer_sensitivity,
    seconds_by_operation,
    trainings,
)
from hf_compress.report.tradeoffs import boards, common_start, dense_name, entries, merged, short_names


NUMBERS = st.integers(-4, 4) | st.floats(allow_nan=True, allow_infinity=True)
HOSTILE = ('"><script>alert(1)</script>', "_a|b\nc\x00\x1b<img src=x onerror=alert(1)>", "$\\frac{1}{0}$ & $x_")


def texts(path):
    """What an SVG says, which must be whole XML."""
    return [node.text for node in xml.parse(path).getroot().iter() if node.tag.endswith("text") and node.text]


def read(folder):
    records, problems = read_runs([folder])
    assert not problems
    return records


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return read(study(tmp_path_factory.mktemp("study"), recipes=12, seeds=2))


def dominates(one, other):
    return one[0] <= other[0] and one[1] >= other[1] and tuple(one) != tuple(other)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30))
def test_the_frontier_is_what_no_other_point_dominates(points):
    finite = [index for index, point in enumerate(points) if all(map(math.isfinite, point))]
    expected = [i for i in finite if not any(dominates(points[j], points[i]) for j in finite)]
    found = frontier(points)
    assert sorted(found) == expected
    assert [points[index] for index in found] == sorted(points[index] for index in found)


@given(st.lists(st.tuples(st.floats(0, 400), st.floats(0, 300)), min_size=1, max_size=20))
def test_every_label_has_a_place_and_free_ones_cover_nothing(points):
    places = place(points, [(14, 9)] * len(points), points, (0, 0, 400, 300), radius=4)
    assert len(places) == len(points) and all(map(math.isfinite, (part for pair in places for part in pair)))
    (alone,) = place(points[:1], [(14, 9)], points[:1], (0, 0, 400, 300), radius=4)
    assert math.dist(alone, points[0]) > 4 and 0 <= alone[0] <= 400 and 0 <= alone[1] <= 300


def test_every_picture_is_there_twice_and_always_the_same(records, tmp_path):
    paths = plot_comparison(records, tmp_path / "plots")
    names = [path.stem for path in paths[::2]]
    assert names == [name for name in PLOTS if name != "sensitivity_layers"]
    for png, svg in zip(paths[::2], paths[1::2], strict=True):
        assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and texts(svg) and png.with_suffix(".svg") == svg
    assert [name for name, _ in plot_files(paths[0].parent)] == names
    again = plot_comparison(records, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_a_point_is_the_last_stage_over_the_seeds(records):
    found = entries(records)
    (board,) = boards(found, "latency")
    entry = next(entry for entry in found if entry.techniques == "prune → distill → quantize")
    point = next(point for point in board.points if point.number == entry.number)
    values = [record.results["stages"][-1]["metrics"]["accuracy"] for record in entry.records]
    assert len(values) == 2 and point.metric == Figure.of(values)
    row = entry.records[0].results["stages"][-1]["latency"]
    assert point.cost.mean == pytest.approx(row[0]["p50"] / row[1]["p50"]) and not point.cost.spread > 1e-12
    assert [dense.cost.mean for dense in board.dense] == [pytest.approx(0.6)]
    assert board.marks == {
        "dense, OpenVINO f32": pytest.approx(0.6),
        "dense, OpenVINO bf16": pytest.approx(0.3),
    }
    assert [point.number for point in board.points] == list(range(1, 13))


def test_boards_part_samples_from_all_data(tmp_path):
    for name, spec in {"all": {}, "sample": {"data_dir": "sample"}, "few": {"max_eval_samples": 100}}.items():
        results = run("run", 0, ("prune",), 0.5)
        results["recipe"]["task"] |= spec
        write(tmp_path / name, results)
    titles = ["cifar10", "cifar10 (100 evaluation examples)", "cifar10 (sample)"]
    found = entries(read_runs([tmp_path])[0])
    assert [board.title for board in boards(found, "size")] == titles
    assert [entry.last.task for entry in found] == titles


def test_boards_part_tasks_and_for_latency_dense_models(tmp_path):
    for index, (task, params) in enumerate([("cifar10", 100), ("cifar10", 900), ("glue/mrpc", 100)]):
        results = run(f"run{index}", 0, ("prune",), 0.5)
        results["task"]["name"] = task
        results["stages"][0]["params"] = params
        results["stages"][0].pop("key")
        write(tmp_path / str(index), results)
    records = read(tmp_path)
    assert [board.title for board in boards(entries(records), "size")] == ["cifar10", "glue/mrpc"]
    titles = [board.title for board in boards(entries(records), "latency")]
    assert titles == ["cifar10, resnet20_cifar10"] * 2 + ["glue/mrpc"]
    names = {path.stem for path in plot_comparison(records, tmp_path / "plots")}
    assert {"pareto_size", "pareto_size-glue-mrpc", "pareto_latency-cifar10-resnet20-cifar10"} <= names


def test_series(records):
    found = entries(records)
    entry = next(entry for entry in found if entry.techniques == "prune → factorize → distill → quantize")
    seconds = seconds_by_operation(entry)
    totals = [stage["seconds"]["total"] for record in entry.records for stage in record.results["stages"]]
    assert sum(seconds.values()) == pytest.approx(sum(totals) / 2) and seconds["other"] > 0
    assert [(kind, list(layers)) for _, kind, layers in kept_by_layer(entry)] == [("width", LAYERS), ("rank", LAYERS)]
    (training,) = trainings(entry)
    assert len(training.epochs) == 10 and training.events == [4.5] and training.epochs[0][1].spread is not None
    own, dense = latency_spread(entry)
    assert len(own.quantiles) == 21 and own.quantiles[10] == pytest.approx(1) and dense.relative == pytest.approx(1)
    drawn_curves = curves(found, "params_ratio")
    assert {name for _, name in drawn_curves} == {"prune magnitude", "factorize svd", "prune magnitude → distill"}
    assert all(points[-1][0] == 1 and len(points) == 3 for points in drawn_curves.values())


def test_curves_of_one_method_are_told_apart_by_their_options(tmp_path):
    for index, options in enumerate([{}, {"repair": True, "refine": 6}, {"repair": True, "refine": 2}]):
        results = run(f"run{index}", 0, ("prune",), 0.5)
        results["recipe"]["steps"][0]["prune"].update(options)
        write(tmp_path / str(index), results)
    names = {name for _, name in curves(entries(read(tmp_path)), "params_ratio")}
    told = {
        "prune magnitude",
        "prune magnitude (refine: 6, repair: true)",
        "prune magnitude (refine: 2, repair: true)",
    }
    assert names == told


def test_recipes_that_share_a_stage_are_drawn_once(records):
    found = entries(records)
    assert [len(group) for group, _ in merged((entry, {"same": 1}) for entry in found)] == [len(found)]


def test_older_latencies_and_measured_sensitivity(tmp_path):
    results = run("old", 0, ("prune",), 0.5)
    for row in results["stages"][1]["latency"]:
        del row["quantiles"]
    results["stages"][1]["sensitivity"] = {
        "layer1": [{"kept": 0.5, "metric": 0.8}, {"kept": 1.0, "metric": 0.9}, {"kept": None}, "odd"],
        "layer2": [{"kept": 0.5, "loss": 2.0}],
        "layer3": None,
    }
    write(tmp_path / "old", results)
    records = read(tmp_path)
    (entry,) = entries(records)
    own, _ = latency_spread(entry)
    assert own.quantiles is None and own.p90 == pytest.approx(1.15)
    measured = layer_sensitivity(entry)
    assert measured["01_prune", "metric"] == {"layer1": [(0.5, 0.8), (1.0, 0.9)]}
    assert measured["01_prune", "loss"] == {"layer2": [(0.5, 2.0)]}
    names = [path.name for path in plot_comparison(records, tmp_path / "plots")]
    assert "sensitivity_layers.svg" in names and "latency.svg" in names


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(tmp_path, name):
    results = run(name, 0, ("prune", "distill"), 0.5)
    results["task"] |= {"name": name, "main_metric": name}
    results["recipe"]["model"]["name_or_path"] = name
    for stage in results["stages"]:
        stage["metrics"] = {name: 0.5}
        stage["layers"] = {name: {"kept": 1, "of": 2}}
        stage["technique"] = name if stage["technique"] == "distill" else stage["technique"]
    results["stages"][2]["epochs"] = [{"epoch": 1, f"holdout_{name}": 0.5}]
    results["stages"][1]["sensitivity"] = {name: [{"kept": 0.5, "loss": 1.0}]}
    write(tmp_path / "run", results)
    for path in plot_comparison(read(tmp_path), tmp_path / "plots")[1::2]:
        tags = {node.tag.rpartition("}")[2].lower() for node in xml.parse(path).getroot().iter()}
        assert not tags & {"script", "img", "foreignobject"}
        shown = " ".join(texts(path))
        assert "mathdefault" not in shown and ("$" not in name or path.stem == "seconds" or "$" in shown)


def damaged(change):
    results = run("damaged", 0, ("prune", "distill"), 0.5)
    change(results)
    return results


def set_all(key, value):
    return lambda results: [stage.update({key: copy.deepcopy(value)}) for stage in results["stages"]]


@pytest.mark.parametrize(
    "change",
    [
        set_all("latency", []),
        set_all("metrics", {}),
        set_all("metrics", {"accuracy": math.nan}),
        set_all("metrics", {"accuracy": math.inf}),
        set_all("seconds", {}),
        set_all("seconds", {"total": math.nan, "train": math.nan}),
        set_all("epochs", [{"epoch": None}, {"epoch": 1, "holdout_accuracy": math.nan}, None]),
        set_all("events", [None, {"epoch": "soon"}]),
        set_all("layers", {"a": None, "b": {"kept": None, "of": 4}, "c": {"kept": 1, "of": 0}, "d": {"bits": 8}}),
        set_all("layers", None),
        set_all("size_bytes", 0),
        set_all("macs", math.nan),
        set_all("latency", [{"runtime": "torch", "precision": "fp32", "batch": 1, "p50": math.nan, "p90": math.nan}]),
        lambda results: results["stages"].pop(0),
        lambda results: results.update(stages=results["stages"][:1]),
        lambda results: [results.pop(key) for key in ("environment", "name", "seed")],
        lambda results: results.update(recipe={}),
        lambda results: [
            stage.pop(key, None) for stage in results["stages"] for key in ("seconds", "latency", "epochs")
        ],
    ],
)
def test_what_is_missing_is_not_drawn(tmp_path, change, monkeypatch):
    def laid_out(figure, folder, name):
        figure.draw_without_rendering()
        return [name]

    monkeypatch.setattr(comparison_plots, "save", laid_out)  # files would take most of the time
    # most of these are refused where results are read; whoever makes the records, the drawing stays whole
    records = [RunRecord(tmp_path, damaged(change))]
    assert set(plot_comparison(records, tmp_path / "plots")) < set(PLOTS)


def test_no_picture_of_no_run(tmp_path):
    assert plot_comparison([], tmp_path) == []


def test_names_lose_the_words_that_all_have():
    assert common_start(["a-b-c", "a-b-d"]) == "a-b-" and common_start(["abc", "abd"]) == ""
    assert common_start([]) == common_start(["a-b"]) == "" and common_start(["a-b", "a-b-c"]) == "a-"
    assert short_names(["s-prune", "s-prune-int8"]) == {"s-prune": "prune", "s-prune-int8": "prune-int8"}


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([{"distill": {"teacher": "outputs/big/model"}}], "model"),
        ([{"finetune": {}}, {"distill": {"teacher": "org/resnet56"}}, {"quantize": {}}], "resnet56"),
        ([{"prune": {}}, {"distill": {"teacher": "baseline"}}], "small"),
        ([{"distill": None}], "small"),
        ([], "small"),
    ],
)
def test_the_dense_model_of_a_recipe_that_only_distills_is_the_teacher(steps, name):
    assert dense_name({"recipe": {"model": {"name_or_path": "org/small"}, "steps": steps}}) == name


@pytest.mark.parametrize(
    ("layer", "short"),
    [
        ("bert.encoder.layer.3.output.dense", "3.output.dense"),
        ("timm_model.layer2.0.conv1", "layer2.0.conv1"),
        ("timm_model.conv1", "timm_model.conv1"),
        ("a.b.c.d", "b.c.d"),
        ("0.b", "0.b"),
        ("", ""),
    ],
)
def test_layers_are_named_from_their_block_on(layer, short):
    assert short_layer(layer) == short
