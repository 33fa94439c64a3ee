from __future__ import annotations

import dataclasses
import json
import re

import pytest

import hf_compress
from hf_compress.cli import main
from hf_compress.errors import RecipeError
from hf_compress.method_table import method_rows, method_table
from hf_compress.recipe import Recipe
from hf_compress.registry import methods, register_method


hf_compress.load_methods()
METHODS = {f"{method.technique}/{method.name}": method for method in methods()}
# the least that a recipe must say beside the method's name
REQUIRED = {"prune": {"target": {"macs": 0.5}}, "factorize": {"target": {"params": 0.5}}}
COMPRESSING = ("prune", "factorize")


def step(name: str, teacher: str = "some/model") -> dict:
    technique, method = name.split("/")
    key = "backend" if technique == "quantize" else "method"
    body = {key: method, **REQUIRED.get(technique, {})}
    if technique == "distill":
        body["teacher"] = teacher
    return {technique: body}


def allowed(*steps: dict) -> bool:
    task, model = {"name": "cifar10"}, {"name_or_path": "resnet20_cifar"}
    try:
        Recipe.from_dict({"name": "pair", "task": task, "model": model, "steps": list(steps)})
    except RecipeError:
        return False
    return True


def printed(text: str) -> dict[str, dict[str, str]]:
    """The blocks of the table, by technique/method: what stands behind each word."""
    blocks = {}
    for block in text.strip().split("\n\n"):
        name, *lines = re.sub(r"\n {14}", " ", block).splitlines()
        entries = (line.split(None, 1) for line in lines[1:])
        blocks[name.replace(": ", "/")] = dict(entries)
    return blocks


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, str]]:
    return printed(method_table(method_rows()))


@pytest.mark.parametrize("first", METHODS)
@pytest.mark.parametrize("second", METHODS)
def test_the_order_is_that_of_recipes(table, first, second):
    possible = allowed(step(first), step(second))
    for name, side, other in ((first, "before", second), (second, "after", first)):
        said = table[name][side].split(", ")
        assert (other in said or other.split("/")[0] in said) == possible, (name, side, other)


@pytest.mark.parametrize("name", METHODS)
def test_what_may_begin_and_what_learns_from_the_dense_model(table, name):
    assert ("the beginning" in table[name]["after"]) == allowed(step(name))
    with_block = step(name, "baseline")
    if name.startswith("finetune"):
        with_block["finetune"]["distill"] = {"teacher": "baseline"}
    possible = {other for other in METHODS if allowed(step(other), with_block)}
    if "baseline" in table[name]:
        said = table[name]["baseline"].removeprefix("as its teacher: only after ").split(" or ")
        assert possible == {other for other in METHODS if other.split("/")[0] in said} and not allowed(with_block)
    else:
        assert allowed(with_block)


def test_the_table_fits_a_terminal_and_has_every_method(table, capsys):
    assert set(table) == set(METHODS)
    assert main(["methods"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


def test_machines_get_the_same(capsys, table):
    assert main(["methods", "--json"]) == 0
    rows = {f"{row['technique']}/{row['method']}": row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(METHODS)
    assert rows["quantize/openvino"]["extra"] == "openvino" and rows["quantize/openvino"]["key"] == "backend"
    assert rows["distill/logits"]["needs"] == ["teacher", "training"]
    assert rows["factorize/svd"]["options"]["round_to"] == 8 and rows["factorize/svd"]["may_need"] == ["calibration"]
    assert "put prune before factorize" in rows["prune/magnitude"]["order"]["reasons"]["after factorize"]
    for name, row in rows.items():
        assert row["supports"] == table[name]["supports"].split(", ")


@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_explained(name, capsys):
    assert main(["methods", name]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    (row,) = (row for row in method_rows() if f"{row['technique']}/{row['method']}" == name)
    shown = " ".join(shown.split())
    for option, default in row["options"].items():
        meaning = row["meanings"][option]
        assert len(meaning) > 15 and meaning[-1] in ".;)", option
        assert f" {option}: {meaning} Default: {json.dumps(default)}." in shown


def test_methods_are_found_by_either_name(capsys):
    assert main(["methods", "fisher", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["method"] == "fisher" and "score_samples" in row["meanings"]
    assert main(["methods", "prune", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == sum(name.startswith("prune/") for name in METHODS)
    assert main(["methods", "fischer"]) != 0
    assert "'fischer'" in (message := capsys.readouterr().err) and "fisher" in message and "prune/magnitude" in message


def test_a_new_method_appears_by_itself(monkeypatch):
    @dataclasses.dataclass
    class Options:
        pass

    monkeypatch.setattr("hf_compress.registry._METHODS", dict(hf_compress.registry._METHODS))

    @register_method("prune", "made_up", options=Options, needs={"labels", "calibration"}, trains=True, extra="search")
    def prune_made_up(model, options, context):
        """Prune nothing at all."""

    block = printed(method_table(method_rows()))["prune/made_up"]
    assert block["needs"] == 'labels, calibration examples, training, pip install "hf_compress[search]"'
    assert block["after"] == "the beginning, finetune, prune, distill"
