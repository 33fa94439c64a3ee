from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from hf_compress import load_methods
from hf_compress.recipe import load_recipe
from hf_compress.report import stage_table
from hf_compress.results import load_results


ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


@pytest.mark.parametrize("code", BLOCKS)
def test_the_code_of_the_readme_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    if "again" in names:
        import torch

        batch = {"pixel_values": torch.zeros(2, 3, 32, 32)}
        with torch.no_grad():
            assert torch.equal(names["again"](**batch).logits, names["model"].eval()(**batch).logits)


def test_the_recipes_of_the_readme_are_recipes():
    """Some show a part, without what every recipe has."""
    recipes = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.S)]
    recipes = [recipe for recipe in recipes if "steps" in recipe]
    rest = {"name": "r", "task": {"name": "glue", "subset": "mrpc"}, "model": {"name_or_path": "bert-base-uncased"}}
    assert len(recipes) > 1
    load_methods()
    for recipe in recipes:
        load_recipe({**rest, **recipe})


def test_the_readme_shows_python():
    assert BLOCKS


def test_every_row_of_results_in_the_readme_is_one_of_committed_results():
    committed = {
        line
        for path in (ROOT / "model_cards").rglob("results.json")
        if "stages" in json.loads(path.read_text())
        for line in stage_table(load_results(path)).splitlines()
    }
    rows = [line for line in README.read_text().splitlines() if re.match(r"\| \d\d_", line)]
    assert rows and not [row for row in rows if row not in committed]


def test_every_row_with_a_link_to_a_card_is_the_last_stage_of_its_results():
    found = re.findall(r"^\| \[[^]]+\]\((model_cards/[^/)]+)/README.md\) (\|.*\|)$", README.read_text(), re.M)
    assert len(found) > 5
    for folder, cells in found:
        last = stage_table(load_results(ROOT / folder)).splitlines()[-1]
        assert cells == last[last.index("|", 1) :], folder


@pytest.mark.parametrize("text", [README, *sorted((ROOT / "model_cards").rglob("*.md"))], ids=str)
def test_every_link_to_a_file_leads_somewhere(text):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text.read_text()):
        assert (text.parent / target).exists(), target
