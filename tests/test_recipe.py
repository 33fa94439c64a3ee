from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import hf_compress
from hf_compress.errors import RecipeError
from hf_compress.fields import from_mapping
from hf_compress.recipe import Recipe, load_recipe
from hf_compress.recipe_text import read_yaml


hf_compress.load_methods()

BASE = {
    "name": "test",
    "task": {"name": "cifar10", "data_dir": "sample"},
    "model": {"name_or_path": "resnet20_cifar10"},
    "steps": [
        {"finetune": {}},
        {"prune": {"method": "magnitude", "target": {"macs": 0.47}}},
        {"distill": {"teacher": "baseline", "training": {"num_train_epochs": 10}}},
        {"factorize": {"method": "svd", "target": {"params": 0.3}}},
        {"quantize": {"backend": "openvino", "scheme": "static_int8"}},
    ],
}


def recipe(**changes) -> dict:
    return {**yaml.safe_load(yaml.safe_dump(BASE)), **changes}


def test_a_recipe_survives_its_own_yaml(tmp_path):
    first = load_recipe(BASE)
    (tmp_path / "recipe.yaml").write_text(first.to_yaml())
    second = load_recipe(tmp_path / "recipe.yaml")
    assert second.to_dict() == first.to_dict()
    assert second.identity() == first.identity()
    assert first.output_dir == "outputs/test"


def test_a_path_stands_for_its_text():
    read = load_recipe(recipe(output_dir=Path("/tmp/out"), model={"name_or_path": Path("/tmp/model")}))
    assert (read.output_dir, read.model.name_or_path) == ("/tmp/out", "/tmp/model")
    assert load_recipe(dataclasses.replace(read, output_dir=Path("/tmp/out"))).to_dict() == read.to_dict()
    with pytest.raises(RecipeError, match="holds more than texts.*not set"):
        load_recipe(recipe(seed={1}))


PRUNE = {"prune": {"method": "magnitude", "target": {"macs": 0.5}}}
SVD = {"factorize": {"target": {"params": 0.5}}}
INT8 = {"quantize": {"scheme": "static_int8"}}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "empty"),
        ([], "is a list"),
        ("text", "is a str"),
        (recipe(stepz=[]), r"recipe\.stepz: unknown key \(did you mean 'steps'\?\)"),
        (recipe(steps=[]), r"recipe\.steps: the list is empty"),
        (recipe(steps={"prune": {}}), r"recipe\.steps: got .* allowed is a list"),
        (recipe(steps=["prune"]), r"steps\.0: got 'prune'; a step is a mapping"),
        (recipe(steps=[{"prun": {}}]), r"steps\.0\.prun: unknown technique \(did you mean 'prune'\?\)"),
        (recipe(steps=[{"prune": {"method": "magnitud"}}]), r"steps\.0\.prune\.method: .*did you mean 'magnitude'"),
        (recipe(steps=[{"prune": {}}]), r"steps\.0\.prune\.method: this key is required"),
        (recipe(steps=[{"prune": {"method": "magnitude"}}]), r"steps\.0\.prune\.target"),
        (
            recipe(steps=[{"prune": {"method": "magnitude", "target": {"mac": 0.5}}}]),
            r"steps\.0\.prune\.target\.mac: unknown key \(did you mean 'macs'\?\)",
        ),
        (recipe(steps=[{"prune": {"method": "magnitude", "target": {"macs": 0}}}]), r"target\.macs: got 0"),
        (recipe(steps=[{"prune": {"method": "magnitude", "target": {"macs": 1.5}}}]), r"target\.macs: got 1.5"),
        (recipe(steps=[{"prune": {"method": "magnitude", "target": {"macs": "half"}}}]), r"target\.macs: got 'half'"),
        (
            recipe(steps=[{"prune": {"method": "magnitude", "target": {"macs": 0.5, "params": 0.5}}}]),
            r"exactly one of",
        ),
        (
            recipe(steps=[{"prune": {"method": "magnitude", "target": {"macs": 0.5}, "nrm": 1}}]),
            r"prune\.nrm: unknown",
        ),
        (recipe(steps=[{"quantize": {"scheme": "int9"}}]), r"steps\.0\.quantize\.scheme: got 'int9'"),
        (
            recipe(steps=[{"quantize": {"target": {"macs": 0.5}}}]),
            r"quantize\.target: a quantize step takes no target",
        ),
        (
            recipe(steps=[{"prune": {**PRUNE["prune"], "training": {"learning_rate": 0.1}}}]),
            r"steps\.0\.prune\.training: got learning_rate, and prune/magnitude does not train; add distill",
        ),
        (recipe(steps=[INT8, PRUNE]), r"steps\.1\.prune: nothing can follow the quantize step"),
        (recipe(steps=[INT8, {"finetune": {}}]), r"steps\.1\.finetune: nothing can follow"),
        (recipe(steps=[SVD, PRUNE]), r"steps\.1\.prune: the layers are low-rank pairs"),
        (recipe(steps=[SVD, SVD]), r"steps\.1\.factorize: the layers are low-rank pairs"),
        (recipe(steps=[{"distill": {}}]), r"steps\.0\.distill\.teacher: 'baseline'"),
        (recipe(steps=[{"finetune": {"distill": {}}}]), r"steps\.0\.finetune\.distill\.teacher: 'baseline'"),
        (recipe(seed="0"), r"recipe\.seed: got '0' \(str\); allowed is an integer"),
        (recipe(seed=True), r"recipe\.seed: got True"),
        (recipe(threads=0), r"recipe\.threads"),
        (recipe(task={"name": "cifar10", "subset": 3}), r"recipe\.task\.subset"),
        (recipe(model={}), r"recipe\.model\.name_or_path: this key is required"),
        (recipe(name="../x"), r"recipe\.name"),
        (recipe(hub={"push": True}), r"hub\.repo_id: got None"),
        (
            recipe(hub={"push": True, "repo_id": "me/my model"}),
            r"hub\.repo_id: got 'me/my model'; to push, give user/name",
        ),
        (recipe(measure={"batch": 0}), r"measure\.batch"),
        (recipe(measure={"length": 8}), r"measure\.length: got 8, and the images of cifar10 have no length"),
    ],
)
def test_what_cannot_work_is_refused_by_its_path(value, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(value)


@pytest.mark.parametrize(
    "steps",
    [
        [PRUNE],
        [PRUNE, PRUNE, {"finetune": {}}],
        [PRUNE, SVD, {"distill": {}}, INT8],
        [{"finetune": {}}, SVD, INT8],
        [{"distill": {"teacher": "resnet56_cifar10"}}, INT8],
        [{"prune": {"method": "magnitude", "target": {"params": 0.5, "scope": "encoder"}, "distill": {"alpha": 0.5}}}],
        [{"quantize": {"backend": "openvino", "scheme": "none"}}],
    ],
)
def test_what_makes_sense_composes(steps):
    read = Recipe.from_dict(recipe(steps=steps))
    assert Recipe.from_dict(read.to_dict()).to_dict() == read.to_dict()


def test_overrides_reach_every_value():
    overrides = [
        "steps.1.target.macs=0.6",
        "steps.1.prune.target.scope=encoder",
        "steps.2.training.learning_rate=2e-5",
        "steps.0.training.num_train_epochs=2",
        "task.data_dir=/data",
        "output_dir=/tmp/out",
        "hub.private=true",
        "threads=1",
    ]
    read = load_recipe(BASE, overrides)
    assert (read.steps[1].target.fraction, read.steps[1].target.scope) == (0.6, "encoder")
    assert read.steps[2].training["learning_rate"] == 2e-5
    assert read.steps[0].training == {"num_train_epochs": 2}
    assert (read.task.data_dir, read.output_dir, read.threads) == ("/data", "/tmp/out", 1)
    assert read.hub.private is True
    assert BASE["steps"][1]["prune"]["target"] == {"macs": 0.47}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps.9.target.macs=0.5", "there are the steps 0 to 4"),
        ("steps.x.target=1", "there are the steps"),
        ("seed", "key=value"),
        ("name.x=1", "is no mapping"),
        ("steps.1.target.mac=0.5", r"steps\.1\.prune\.target\.mac"),
        ("seed=[", "not valid YAML"),
    ],
)
def test_bad_overrides_are_refused(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(BASE, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("- a\n", "is a list"),
        ("name: [", "not valid YAML"),
        ("name: a\nname: b\n", "stands here twice"),
        ("base: &base {name: a, name: b}\n<<: *base\n", "stands here twice"),
        ("name: a\n<<: {seed: 1}\nname: b\n", "stands here twice"),
        ("<<: 3\n", "<< is given a scalar; give it a mapping"),
        ("<<: [{seed: 1}, [2]]\n", "<< is given a sequence"),
        ("seed: 2026-13-01\n", "not valid YAML: month must be in 1..12"),
        ("training: &all {all: *all}\n", "not valid YAML: it holds itself"),
        ("[a, b]: 3\n", "a key is a sequence; give a text or a number"),
        ("name: {{name}}\n", "a key is a mapping"),
        ("name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_files_that_are_no_recipe_are_refused(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(tmp_path / "other.yaml")


def test_numbers_are_those_of_yaml_1_2(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe()) + "training: {learning_rate: 2e-5, seed2: -1E3}\n")
    training = load_recipe(tmp_path / "recipe.yaml").training
    assert training == {"learning_rate": 2e-5, "seed2": -1000.0}


MERGING = """
first: &first {a: 1, b: 1, c: 1}
second: &second {<<: *first, b: 2}
nested:
  third: &third {<<: [{c: 3, d: 3}, *second], a: 3}
fourth: {d: 4, <<: *third, e: 4}
itself: &itself {a: 5, <<: *itself}
"""


def test_a_mapping_may_merge_others(tmp_path):
    (tmp_path / "recipe.yaml").write_text(MERGING)
    read = read_yaml(tmp_path / "recipe.yaml")
    assert read["second"] == {"a": 1, "b": 2, "c": 1}
    assert read["nested"]["third"] == {"a": 3, "b": 2, "c": 3, "d": 3}
    assert read["fourth"] == {"a": 3, "b": 2, "c": 3, "d": 4, "e": 4}
    assert read["first"] == {"a": 1, "b": 1, "c": 1} and read["itself"] == {"a": 5}


def test_an_override_changes_one_of_two_places_with_the_same_anchor(tmp_path):
    path = tmp_path / "recipe.yaml"
    steps = "steps: [{finetune: {training: *short}}, {finetune: {training: {<<: *short}}}]\n"
    path.write_text(
        yaml.safe_dump(recipe(steps=None)).replace("steps: null\n", "training: &short {warmup_steps: 1}\n") + steps
    )
    read = load_recipe(path, ["steps.0.training.warmup_steps=2"])
    assert [training["warmup_steps"] for training in (read.training, *(step.training for step in read.steps))] == [
        1,
        2,
        1,
    ]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("output_dir=/elsewhere", True),
        ("task.data_dir=/elsewhere", False),  # the sample is other data
        ("hub.repo_id=me/x", True),
        ("threads=7", True),
        ("measure.batch=3", True),
        ("seed=1", False),
        ("steps.1.target.macs=0.5", False),
        ("training.learning_rate=0.1", False),
        ("task.max_train_samples=10", False),
        ("model.name_or_path=other", False),
        ("measure.precision=int8", False),
    ],
)
def test_the_identity_is_what_determines_the_result(change, same):
    assert (load_recipe(BASE, [change]).identity() == load_recipe(BASE).identity()) is same


@pytest.mark.parametrize(
    ("change", "length"),
    [
        ("measure.length=64", 64),
        ("measure.length=32", 32),
        ("task.max_length=32", 32),
        ("measure.batch=1", 64),
    ],
)
def test_the_length_of_what_is_measured_determines_the_result(change, length):
    texts = recipe(task={"name": "glue", "subset": "sst2", "max_length": 64})
    first, other = load_recipe(texts), load_recipe(texts, [change])
    assert (first.length, other.length, load_recipe(BASE).length) == (64, length, None)
    assert (other.identity() == first.identity()) is (length == 64)


def test_where_the_same_data_lie_does_not_matter():
    here, there = (load_recipe(BASE, [f"task.data_dir={place}"]).identity() for place in ("/here", "/there"))
    assert here == there == load_recipe(BASE, ["task.data_dir=null"]).identity()


@dataclasses.dataclass
class Options:
    count: int = 1
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    name: str | None = None
    flag: bool = False
    layers: tuple[int, ...] = ()


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "count": st.integers(),
            "rate": st.floats(allow_nan=False) | st.integers(-5, 5),
            "kind": st.sampled_from(["a", "b"]),
            "name": st.none() | st.text(),
            "flag": st.booleans(),
            "layers": st.lists(st.integers()),
        },
    )
)
def test_well_typed_values_are_taken_as_they_are(value):
    read = dataclasses.asdict(from_mapping(Options, value, "x"))
    for key, item in value.items():
        assert read[key] == (tuple(item) if key == "layers" else item)


@given(
    st.sampled_from(["count", "rate", "kind", "flag", "layers"]),
    st.text() | st.none() | st.dictionaries(st.text(), st.integers()),
)
def test_ill_typed_values_are_refused(key, item):
    if key == "kind" and item in ("a", "b"):
        return
    with pytest.raises(RecipeError, match=rf"x\.{key}: got"):
        from_mapping(Options, {key: item}, "x")


SIZES = {
    "lab": {"task.max_train_samples": 100, "steps.1.target.macs": 0.6},
    "full": {"model.name_or_path": "resnet56_cifar10"},
}


def test_a_recipe_may_come_in_sizes(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(size="lab", sizes=SIZES)))
    lab, full = load_recipe(path), load_recipe(path, ["size=full", "steps.1.target.macs=0.9"])
    assert (lab.name, lab.output_dir, lab.task.max_train_samples) == ("test-lab", "outputs/test-lab", 100)
    assert lab.steps[1].target.fraction == 0.6 and lab.model.name_or_path == "resnet20_cifar10"
    assert (full.name, full.model.name_or_path, full.task.max_train_samples) == ("test-full", "resnet56_cifar10", None)
    assert full.steps[1].target.fraction == 0.9
    assert load_recipe(lab.to_dict()).identity() == lab.identity()
    # whatever stands on the command line outranks the size
    assert load_recipe(path, ["task.max_train_samples=7"]).task.max_train_samples == 7


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"sizes": SIZES}, [], "recipe.size: got None; allowed are lab, full"),
        ({"sizes": SIZES, "size": "lab"}, ["size=fill"], "did you mean 'full'"),
        ({"sizes": {"lab": 3}, "size": "lab"}, [], "recipe.sizes"),
        ({"sizes": {}, "size": "lab"}, [], "recipe.sizes"),
        ({"size": "lab"}, [], "recipe.size: unknown key"),
        ({"sizes": {"lab": {"task.max_trian_samples": 3}}, "size": "lab"}, [], "did you mean 'max_train_samples'"),
    ],
)
def test_a_size_that_is_not_there_is_refused(changes, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe(**changes), overrides)
