from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml

from hf_compress import load_methods
from hf_compress.recipe import HubSpec, MeasureSpec, ModelSpec, Recipe, load_recipe
from hf_compress.report import stage_table
from hf_compress.results import load_results
from hf_compress.tasks import TaskSpec


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
    """Some show a part, and say so."""
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.S) if "\nsteps:" in block]
    rest = {"name": "r", "task": {"name": "glue", "subset": "mrpc"}, "model": {"name_or_path": "bert-base-uncased"}}
    assert len(blocks) > 2
    load_methods()
    for block in blocks:
        load_recipe({**(rest if block.startswith("# with name, task and model") else {}), **yaml.safe_load(block)})


def test_every_key_of_a_recipe_is_in_the_readme():
    rows = dict(re.findall(r"^\| (`name`.*?|`\w+`) \| (.*) \|$", README.read_text(), re.M))
    keys = re.findall(r"`(\w+)`", " ".join(rows))
    assert set(Recipe.__dataclass_fields__) <= set(keys)
    for name, spec in (("task", TaskSpec), ("model", ModelSpec), ("measure", MeasureSpec), ("hub", HubSpec)):
        assert set(spec.__dataclass_fields__) <= set(re.findall(r"`(\w+)`", rows[f"`{name}`"])), name


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


def metric(study: str, variant: str, stage: int = -1, name: str = "accuracy") -> str:
    """Over the seeds, as the README writes it."""
    paths = sorted((ROOT / "model_cards" / "studies" / study / "runs" / variant).glob("seed*/results.json"))
    values = [json.loads(path.read_text())["stages"][stage]["metrics"][name] for path in paths]
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


# method and MACs left: the variants without and with the repair
PRUNED = {
    "resnet56-pruning": {
        ("fisher", "0.67"): (None, "fisher_1.5x"),
        ("fisher", "0.47"): ("fisher_cut", "fisher"),
        ("depth", "0.44"): (None, "depth"),
        **{(name, "0.47"): (f"{name}_cut", name) for name in ("magnitude", "taylor", "random")},
    },
    "minilm-sst2-pruning": {
        ("fisher", "1/2"): ("fisher_cut-macs0.5", "fisher-macs0.5"),
        ("fisher", "1/4"): ("fisher_cut-macs0.25", "fisher-macs0.25"),
        ("depth", "1/2"): (None, "depth"),
        **{(name, "1/2"): (f"{name}_cut", name) for name in ("magnitude", "taylor", "random")},
    },
}


@pytest.mark.parametrize("study", PRUNED)
def test_every_row_of_pruning_is_what_its_study_has(study):
    text = README.read_text()
    table = text[text.index(f"studies/{study}/") :].split("\n\n")[1]
    rows = re.findall(r"^\| `(\w+)`[^|]*\| (\S+)[^|]*\| ([^|]*) \| ([^|]*) \|", table, re.M)
    found = {(method, left): (cut, repaired) for method, left, cut, repaired in rows}
    assert found == {
        key: tuple("–" if variant is None else metric(study, variant) for variant in variants)
        for key, variants in PRUNED[study].items()
    }


@pytest.mark.parametrize(
    ("study", "variant", "stage", "name"),
    [
        ("resnet56-prune-distill", "latency", 1, "accuracy"),
        ("resnet56-prune-distill", "latency", 2, "accuracy"),
        ("resnet56-prune-distill", "macs", 1, "accuracy"),
        ("resnet56-prune-distill", "macs", 2, "accuracy"),
        ("minilm-sst2-prune-distill", "quarter", -1, "accuracy"),
        *(("minilm-mrpc-pruning", "macs", stage, name) for stage in (1, 2) for name in ("f1", "accuracy")),
        *(("minilm-mrpc-pruning", "latency", -1, name) for name in ("f1", "accuracy")),
    ],
)
def test_what_a_study_came_to_stands_in_the_readme(study, variant, stage, name):
    assert metric(study, variant, stage, name) in README.read_text()


def metric_of(study: str, variant: str, stage: int, name: str = "accuracy") -> float:
    return float(metric(study, variant, stage, name).split(" ")[0])


def points(figure: float, dense: float) -> str:
    return f"{100 * (figure - dense):+.1f}"


def test_what_the_aims_came_to():
    table = README.read_text().partition("What was aimed at with pruning")[2].split("\n\n")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    sst2, mrpc = (
        metric_of("minilm-sst2-pruning", "fisher-macs0.5", 0),
        metric_of("minilm-mrpc-pruning", "macs", 0, "f1"),
    )
    wanted = [
        metric("resnet56-pruning", "fisher"),
        metric("resnet56-pruning", "fisher_1.5x"),
        metric("resnet56-prune-distill", "macs"),
        metric("resnet56-prune-distill", "latency"),
        points(metric_of("minilm-sst2-pruning", "fisher-macs0.5", 1), sst2),
        points(metric_of("minilm-sst2-pruning", "fisher-macs0.25", 1), sst2),
        points(metric_of("minilm-sst2-prune-distill", "quarter", -1), sst2),
        points(metric_of("minilm-mrpc-pruning", "macs", 1, "f1"), mrpc),
        points(metric_of("minilm-mrpc-pruning", "macs", 2, "f1"), mrpc),
        points(metric_of("minilm-mrpc-pruning", "latency", -1, "f1"), mrpc),
    ]
    for row, figure in zip(rows, wanted, strict=False):
        assert row[3].startswith(figure), row
    assert len(rows) == len(wanted) + 2  # two of speed and memory
    for _, least, hoped, found in rows[:4]:
        reached = float(found.split(" ")[0])
        assert ("missed" in found) is (reached < float(least)) and float(least) < float(hoped)


@pytest.mark.parametrize("text", [README, *sorted((ROOT / "model_cards").rglob("*.md"))], ids=str)
def test_every_link_to_a_file_leads_somewhere(text):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text.read_text()):
        assert (text.parent / target).exists(), target
