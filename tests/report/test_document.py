from __future__ import annotations

import json
import re
import shutil
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from many_runs import INT8, PRUNE, write_run, write_study

from hf_compress import load_methods
from hf_compress.cli import main
from hf_compress.errors import CompressionError
from hf_compress.recipe import Recipe
from hf_compress.report.comparison import write_comparison
from hf_compress.report.document import experiment_document
from hf_compress.report.markdown import fenced, inline, quoted
from hf_compress.report.reproduce import public_name, reproductions
from hf_compress.report.runs import read_runs
from hf_compress.report.timeline import read_timeline
from hf_compress.report.words import CHINESE, ENGLISH, Words
from hf_compress.study import load_study


VARIANTS = {"prune": [PRUNE], "int8": [INT8], "both": [PRUNE, ("quantize", 0.91, 0.125, 0.2)]}
HOSTILE = "x | <script>alert(1)</script>\n## `y` ***z*** [l](http://e.vil) &lt; \ud800 \x1b[31m"


def document(*paths, lang="en", pictures=()):
    records, problems = read_runs(paths)
    return experiment_document(records, problems, pictures, lang)


def section(text, number):
    return text.split(f"\n## {number}. ")[1].split("\n## ")[0]


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path / "study", VARIANTS, failed=["int8/seed2"])


# the words


def placeholders(text):
    return sorted((name, spec) for _, name, spec, _ in string.Formatter().parse(text) if name is not None)


def test_the_languages_have_the_same_texts_with_the_same_placeholders_and_columns():
    assert list(ENGLISH) == list(CHINESE)
    for key, text in ENGLISH.items():
        assert placeholders(text) == placeholders(CHINESE[key]), key
        if key.startswith("columns."):
            assert text.count("|") == CHINESE[key].count("|"), key


def test_durations_and_long_lists():
    words = Words("en")
    assert [words.duration(s) for s in (0.04, 59.7, 3599.7, 7320)] == [
        "0.0 s",
        "1 min 00 s",
        "1 h 00 min",
        "2 h 02 min",
    ]
    assert words.some(list("abc"), 2) == "a, b and 1 more"
    with pytest.raises(CompressionError, match="allowed are en, zh"):
        Words("fr")


# the document


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_study_is_described_from_its_setting_to_its_evaluation(study, lang):
    text = document(study, lang=lang)
    assert [int(n) for n in re.findall(r"^## (\d+)\. ", text, re.M)] == list(range(1, 11))
    assert ("English" if lang == "en" else "中文") and ("实验设置" in text) == (lang == "zh")
    assert "| study-both | 02_quantize | prune → quantize | 3 | 0.9110 ± 0.0010 |" in section(text, 5)
    assert "| study-int8 | 01_quantize | quantize | 2 |" in section(text, 5)
    assert "uoft-cs/cifar10" in section(text, 3) and "5%" in section(text, 3)
    assert "avx512f" in section(text, 2) and "torch 2.14.1" in section(text, 2) and "onnxruntime" not in text
    assert "RuntimeError: int8/seed2 &lt;went> wrong" in section(text, 8)
    for path in (str(study), "/home/someone", "someone/secret"):
        assert path not in text
    # seven runs make four different stages a seed; each of the 2 + 3 shared dense ones is counted once
    assert ("sharing stages saved" if lang == "en" else "共享阶段节省了") in section(text, 6)


def test_what_is_shared_failed_or_interrupted_is_told_by_run(tmp_path):
    study = write_study(tmp_path / "study", {"a": [PRUNE], "b": [INT8]}, seeds=[0], failed=[])
    journal = study / "runs" / "a" / "seed0" / "journal.jsonl"
    killed = [
        {"operation": "run", "status": "started", "time": "2026-11-25T09:00:00.000+00:00"},
        {"operation": "train", "stage": "01_prune", "status": "started", "time": "2026-11-25T09:00:01.000+00:00"},
        {"operation": "run", "status": "started", "time": "2026-11-25T09:10:00.000+00:00"},
        {"operation": "train", "stage": "01_prune", "status": "started", "time": "2026-11-25T09:10:01.000+00:00"},
        {
            "operation": "train",
            "stage": "01_prune",
            "status": "failed",
            "wall_seconds": 2.0,
            "notes": {"error": "MemoryError: no *room*"},
            "time": "2026-11-25T09:10:03.000+00:00",
        },
    ]
    journal.write_text("".join(json.dumps(event) + "\n" for event in killed) + journal.read_text())
    attempts = read_timeline(journal.parent).attempts
    assert [attempt.status for attempt in attempts] == ["interrupted", "failed", "done"]
    text = document(study)
    process = section(text, 4)
    assert "| 1 | 2026-11-25 09:00:01 | 01_prune | train | 0 | – | – | interrupted |" in process
    assert "| 2 | 2026-11-25 09:10:01 | 01_prune | train | 1 | 2.0 | – | failed |" in process
    assert "| 00_baseline | take a shared stage | 1 | 0.0 | – | made by study-a (seed 0) |" in process
    assert "| study-a | 1 | 2026-11-25 09:00:00 |" in process and "| 1 | 1 | 0 | 20.0 | 1 GB |" in process
    assert "MemoryError: no \\*room\\*" in section(text, 8) and "interruptions: 1" in section(text, 8)


def test_notes_are_quoted_under_their_technique_and_counted(study, capsys):
    run = study / "runs" / "prune" / "seed0"
    note = "line <one>\n> two | `three`"
    for folder, *more in ((run, "--technique", "pruning", "--note", note), (study, "--note", "the whole")):
        assert main(["journal", "add", str(folder), "--minutes", "40", "--kind", "reading", *more]) == 0
    failed = study / "runs" / "int8" / "seed2"
    write_run(failed)
    (failed / "results.json").unlink()
    assert main(["journal", "add", str(failed), "--minutes", "5", "--kind", "coding", "--technique", "quantize"]) == 0
    text = document(study)
    pruning, whole = section(text, 10).split("### pruning")[1].split("### ")[0], section(text, 10).split("### As a")[1]
    assert "> line &lt;one>  \n> > two \\| \\`three\\`" in pruning and "40 min, reading" in pruning
    assert "> the whole" in whole and "1. **Which combination" in whole and "People: 5 min (coding 5)" in text
    row = next(line for line in section(text, 6).splitlines() if line.startswith("| pruning"))
    assert row.endswith("| 40 | 0 | 40 |")
    assert "Nobody noted" not in text
    assert "阅读" in document(study, lang="zh")


def test_the_frontier_says_what_it_cost_to_get_there(study):
    latency, size, macs = re.split(r"^\*\*.*\*\*$", section(document(study), 7), flags=re.M)[1:]
    assert [line.split(" | ")[0] for line in size.strip().splitlines()[2:]] == [
        "| study-both",
        "| study-int8",
        "| study-both",  # its dense model, which the others share
    ]
    assert "| 12.5% | 0.9110 ± 0.0010 | 30.0 s | 0 |" in size
    assert "20.0% (openvino int8, batch 8)" in latency and "12.5%" in macs


def test_a_student_of_another_size_is_no_effect_of_distillation_on_its_teacher(tmp_path):
    def only_distills(results):
        results["recipe"]["steps"] = [{"distill": {"teacher": "org/resnet56"}}, {"quantize": {}}]

    write_run(tmp_path / "a", ("distill", 0.92, 0.3, 0.3), INT8, name="a", change=only_distills)
    steps = section(document(tmp_path), 5).split("### What each technique did")[1]
    assert "knowledge distillation" not in steps and "| quantization | cifar10 |" in steps
    write_run(tmp_path / "b", PRUNE, ("distill", 0.93, 0.5, 0.5), name="b")
    steps = section(document(tmp_path), 5).split("### What each technique did")[1]
    assert re.search(r"^\| knowledge distillation \| .* \| 1 \| \+0\.0300 \| 100% \| 100% \| 100% \|$", steps, re.M)


def test_figures_on_a_sample_are_not_compared_with_those_on_all_data(tmp_path):
    def sample(results):
        results["recipe"]["task"]["data_dir"] = "sample"

    write_run(tmp_path / "a", PRUNE, name="a")
    write_run(tmp_path / "b", INT8, name="b", change=sample)
    frontiers = section(document(tmp_path), 7)
    assert "cifar10 (sample), dense model" in frontiers and ": cifar10, dense model" in frontiers


def test_differing_environments_are_named_with_their_runs(tmp_path):
    def other(results):
        results["environment"] = {**results["environment"], "threads": 8, "versions": {"torch": "2.13"}}

    write_run(tmp_path / "a", PRUNE, seed=0)
    write_run(tmp_path / "b", PRUNE, seed=1, change=other)
    text = document(tmp_path)
    assert "**threads**: 2: run (seed 0); 8: run (seed 1)" in text and "must not be compared" in section(text, 2)
    assert "differs between the runs" in section(text, 8)
    none = write_run(tmp_path / "none", name="none", change=lambda results: results.pop("environment"))
    assert "say nothing" in document(none)


def test_the_same_recipe_and_seed_twice_and_few_seeds_are_warned_of(tmp_path):
    for folder in "ab":
        write_run(tmp_path / folder, PRUNE, change=lambda r: r["stages"][1].update(warnings=["target missed: *0.52*"]))
    problems = section(document(tmp_path), 8)
    assert "same recipe and seed" in problems and "Fewer than three seeds" in problems
    assert "01_prune: target missed: \\*0.52\\*" in problems


def test_many_runs_are_summed_up(tmp_path):
    for number in range(60):
        write_run(tmp_path / f"{number:02d}", PRUNE, INT8, name=f"run{number:02d}", keys=False)
    text = document(tmp_path)
    assert "attempt" not in section(text, 4) and len(re.findall(r"\| run\d", section(text, 4))) == 60
    assert "comparison.csv" in section(text, 5) and "30 more recipes" in section(text, 9)
    assert "run00, run01, run02, run03 and 56 more" in section(text, 1)


def test_results_that_are_of_an_older_run_are_named(study):
    rows = json.loads((study / "study.json").read_text())
    rows["runs"][0] |= {"status": "failed", "error": "other recipe"}
    (study / "study.json").write_text(json.dumps(rows))
    assert "study-prune (seed 0): the results shown are those of an earlier run" in document(study)


# hostile text


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_names_notes_and_errors_are_shown_and_do_nothing(tmp_path, lang):
    def rename(results):
        results["task"].update(name=HOSTILE, main_metric=HOSTILE)
        results["environment"] = {"cpu": HOSTILE, "versions": {HOSTILE: HOSTILE}}
        results["recipe"]["model"]["name_or_path"] = HOSTILE
        results["recipe"]["steps"] = [{HOSTILE: {"method": HOSTILE}}]
        for stage in results["stages"]:
            stage.update(metrics={HOSTILE: 0.5}, warnings=[HOSTILE], technique=HOSTILE)

    folder = write_run(tmp_path / "a", PRUNE, name=HOSTILE, change=rename)
    with open(folder / "journal.jsonl", "a") as file:
        human = {"operation": "human", "minutes": 3, "kind": HOSTILE, "technique": HOSTILE, "note": HOSTILE}
        file.write("".join(json.dumps(event) + "\n" for event in (human, {"operation": HOSTILE, "time": HOSTILE})))
    write_comparison(*read_runs([tmp_path]), tmp_path / "out", lang)
    name = "experiment.md" if lang == "en" else "experiment.zh.md"
    text = (tmp_path / "out" / name).read_text()
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.M | re.S)
    assert "<script" not in outside and "\x1b" not in outside and not re.search(r"(?<!\\)(\]\(|\*z)", outside)
    assert not re.search(r"^## `y`", outside, re.M) and "alert(1)" in outside
    for table in re.findall(r"(?:^\|.*\n)+", outside, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@given(st.text())
def test_a_fence_is_longer_than_any_in_the_code(text):
    first, *lines, last = fenced(text, "yaml").split("\n")
    assert first == last + "yaml" and set(last) == {"`"} and last not in "\n".join(lines)


@given(st.text())
def test_inline_text_keeps_to_its_line_and_starts_no_markup(text):
    shown = inline(text)
    assert not re.search(r"[\n\r\x00<]", shown) and not re.search(r"(?<!\\)(?:\\\\)*[`*\[|]", shown)
    assert all(line.startswith("> ") or line.strip() == ">" for line in quoted(text).split("\n"))


# frontier and reproduction


def test_a_study_comes_back_from_its_runs(study, tmp_path):
    load_methods()
    (one,) = reproductions(read_runs([study])[0])
    assert one.is_study and one.commands == ("hf-compress study study.yaml",)
    (tmp_path / "again.yaml").write_text(one.text)
    again = load_study(tmp_path / "again.yaml")
    assert again.name == "study" and [run.name for run in again.runs] == [
        f"{variant}/seed{seed}" for variant in sorted(VARIANTS) for seed in range(3)
    ]
    results = json.loads((study / "runs" / "both" / "seed1" / "results.json").read_text())
    run = next(run for run in again.runs if run.name == "both/seed1")
    assert run.recipe.identity() == Recipe.from_dict(results["recipe"]).identity()


def test_variants_keep_their_own_seeds(tmp_path):
    load_methods()
    study = write_study(tmp_path / "study", {"a": [PRUNE], "b": [PRUNE]}, seeds=[0, 1])
    planned = json.loads((study / "study.json").read_text())
    planned["runs"] = [run for run in planned["runs"] if (run["variant"], run["seed"]) != ("b", 0)]
    (study / "study.json").write_text(json.dumps(planned))
    shutil.rmtree(study / "runs" / "b" / "seed0")
    (one,) = reproductions(read_runs([study])[0])
    (tmp_path / "again.yaml").write_text(one.text)
    names = [run.name for run in load_study(tmp_path / "again.yaml").runs]
    assert names == ["a/seed0", "a/seed1", "b/seed1"]


def test_variants_that_differ_in_more_than_steps_come_back(tmp_path):
    load_methods()
    study = write_study(tmp_path / "study", {"a": [PRUNE], "b": [PRUNE]}, seeds=[0])
    path = study / "runs" / "b" / "seed0" / "results.json"
    results = json.loads(path.read_text())
    results["recipe"]["training"] = {"num_train_epochs": 1, "learning_rate": 1e-05}
    path.write_text(json.dumps(results))
    (one,) = reproductions(read_runs([study])[0])
    (tmp_path / "again.yaml").write_text(one.text)
    run = load_study(tmp_path / "again.yaml").runs[1]
    assert run.recipe.training == {"num_train_epochs": 1, "learning_rate": 1e-05}


def test_a_recipe_comes_back_without_paths_and_over_its_seeds(tmp_path):
    def local(results):
        results["recipe"]["model"]["name_or_path"] = "/home/someone/outputs/small/model"
        results["recipe"]["steps"][0]["prune"]["norm"] = "```"

    for seed in range(2):
        write_run(tmp_path / f"{seed}", PRUNE, seed=seed, name="my run", change=local)
    text = section(document(tmp_path), 9)
    assert "hf-compress run my_run.yaml seed=1 output_dir=outputs/my_run-seed1" in text and "/home" not in text
    fence = re.search(r"^(`+)yaml\n(.*?)^\1$", text, re.M | re.S)
    recipe = yaml.safe_load(fence[2])
    assert recipe["model"]["name_or_path"] == "path/to/small/model" and "stands for a local folder" in text
    assert recipe["steps"][0]["prune"]["norm"] == "```" and "output_dir" not in recipe and "hub" not in recipe


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("org/model", "org/model"),
        ("outputs/a/model", "outputs/a/model"),
        ("/a/b/model", "path/to/b/model"),
        ("~/x", "path/to/x"),
        ("C:\\a\\b", "path/to/b"),
        ("/", "path/to"),
    ],
)
def test_only_paths_of_this_machine_are_hidden(name, public):
    assert public_name(name) == public


# the files


def test_the_command_writes_every_file_in_both_languages_and_twice(study, capsys):
    out = study.parent / "out"
    for lang in ("en", "zh", "zh"):
        assert main(["report", str(study), "--output", str(out), "--lang", lang]) == 0
    assert {path.name for path in out.iterdir()} == {
        "comparison.md",
        "comparison.csv",
        "evaluate",
        "experiment.md",
        "experiment.zh.md",
        "plots",
        "report.html",
    }
    captured = capsys.readouterr()
    assert str(out / "experiment.zh.md") in captured.out and "int8/seed2: the run failed" in captured.err
    before = (out / "experiment.md").read_bytes()
    assert main(["report", str(study), "--output", str(out)]) == 0
    assert (out / "experiment.md").read_bytes() == before


def test_pictures_are_drawn_first_and_shown(study, tmp_path):
    def draw(records, problems, output, lang):
        assert len(records) == 8 and lang == "zh" and len(problems) == 1
        return [output / "plots" / "a b.png", output / "plots" / "a b.svg", output / "report.html"]

    paths = write_comparison(*read_runs([study]), tmp_path / "out", "zh", pictures=draw)
    text = (tmp_path / "out" / "experiment.zh.md").read_text()
    assert "![a b](plots/a%20b.png)" in text and "[report.html](report.html)" in text and ".svg" not in text
    assert tmp_path / "out" / "report.html" in paths


def test_a_folder_of_someone_else_is_left_alone(study, tmp_path):
    foreign = tmp_path / "out" / "evaluate"
    foreign.mkdir(parents=True)
    (foreign / "thesis.tex").write_text("work of months")
    assert main(["report", str(study), "--output", str(tmp_path / "out")]) == 2
    assert (foreign / "thesis.tex").read_text() == "work of months"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["evaluate"]


def test_an_error_leaves_the_old_files(study, tmp_path, monkeypatch):
    records, problems = read_runs([study])
    write_comparison(records, problems, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_comparison(records[:1], problems, tmp_path / "out")
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
