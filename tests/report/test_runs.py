from __future__ import annotations

import csv
import io
import json
import os
import statistics
from pathlib import Path

import pytest

from hf_compress.cli import main
from hf_compress.errors import CompressionError
from hf_compress.report.runs import comparison_csv, comparison_table, read_runs, rows


ACCURACIES = {0: 0.90, 1: 0.93, 2: 0.91}


def write_run(folder, accuracy=0.9, seed=0, name="prune", **changes):
    """A run of two stages, the second timed beside the dense model."""
    latency = [
        {
            "runtime": "torch",
            "precision": "fp32",
            "batch": 8,
            "threads": 2,
            "p50": 0.4,
            "p90": 0.5,
            "role": "baseline",
        },
        {"runtime": "openvino", "precision": "f32", "batch": 8, "threads": 2, "p50": 0.1, "p90": 0.2, "role": "stage"},
    ]
    common = {
        "method": "none",
        "params": 100,
        "macs": 1000,
        "size_bytes": 400,
        "seconds": {"total": 5.0, "train": 4.0},
    }
    stages = [
        {"name": "00_baseline", "technique": "none", "metrics": {"accuracy": 0.95}, **common},
        {
            "name": "01_prune",
            "technique": "prune",
            "metrics": {"accuracy": accuracy},
            **common,
            "params": 50,
            "latency": latency,
        },
    ]
    task = {"name": "cifar10", "main_metric": "accuracy"}
    results = {"format_version": 1, "name": name, "seed": seed, "recipe": {}, "task": task, "stages": stages}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({**results, **changes}))


@pytest.fixture
def runs(tmp_path):
    for seed, accuracy in ACCURACIES.items():
        write_run(tmp_path / "prune" / f"seed{seed}", accuracy, seed)
    return tmp_path


def test_seeds_become_mean_and_spread(runs):
    write_run(runs / "other", 0.8, name="other")
    records, problems = read_runs([runs])
    table = rows(records)
    assert not problems and [(row.run, row.stage, row.seeds) for row in table] == [
        ("other", "00_baseline", [0]),
        ("other", "01_prune", [0]),
        ("prune", "00_baseline", [0, 1, 2]),
        ("prune", "01_prune", [0, 1, 2]),
    ]
    pruned = table[-1]
    assert pruned.last and pruned.techniques == "prune"
    assert pruned.figures["metric"].mean == pytest.approx(statistics.mean(ACCURACIES.values()))
    assert pruned.figures["metric"].spread == pytest.approx(statistics.stdev(ACCURACIES.values()))
    assert pruned.figures["delta"].mean == pytest.approx(statistics.mean(ACCURACIES.values()) - 0.95)
    assert pruned.figures["params_ratio"].mean == 0.5 and pruned.figures["speedup_torch"].mean == pytest.approx(4)
    assert pruned.figures["seconds_to_here"].mean == 10 and pruned.figures["seconds/train"].mean == 4
    assert table[1].figures["metric"].spread is None
    line = comparison_table(table).splitlines()[-1]
    assert "| 3 | 0.9133 ± 0.0153 | -0.0367 ± 0.0153 |" in line and "(50 %)" in line and "4.00x" in line


def test_every_figure_is_in_the_csv(runs):
    parsed = list(csv.DictReader(io.StringIO(comparison_csv(rows(read_runs([runs])[0])))))
    assert parsed[1]["stage"] == "01_prune" and parsed[1]["seeds"] == "0 1 2" and parsed[1]["last"] == "1"
    assert float(parsed[1]["metric_std"]) == pytest.approx(statistics.stdev(ACCURACIES.values()))
    assert parsed[0]["p50"] == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format_version": 99}, "format_version is 99"),
        ({"stages": []}, "no stage"),
        ({"task": {}}, "edited"),
        ({"stages": [{"name": 3}]}, "lacks"),
        ({"stages": "none"}, "must be a list"),
    ],
)
def test_what_cannot_be_read_is_left_out_with_the_reason(runs, change, reason, capsys):
    write_run(runs / "broken", **change)
    records, problems = read_runs([runs])
    assert len(records) == 3 and list(problems) == [str(runs / "broken")] and reason in problems[str(runs / "broken")]
    assert main(["report", str(runs), "--output", str(runs / "out")]) == 0
    assert reason in capsys.readouterr().err and "0.9133" in (runs / "out" / "comparison.md").read_text()


def test_a_truncated_file_and_markup_in_names(runs):
    (runs / "prune" / "seed1" / "results.json").write_text('{"format_version": 1')
    write_run(runs / "x", name="<script>|x")
    records, problems = read_runs([runs])
    assert len(records) == 3 and len(problems) == 1
    assert "<script" not in comparison_table(rows(records))


def test_no_run_at_all(tmp_path):
    assert main(["report", str(tmp_path)]) == 2
    with pytest.raises(CompressionError, match="no such folder"):
        read_runs([tmp_path / "nothing"])


def edited(path, **changes):
    """Changes deep in the results of a run: `stages.1.seconds={...}`."""
    results = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in key.split("__")]
        place = results
        for part in parents:
            place = place[part]
        place[last] = value
    path.write_text(json.dumps(results))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stages__1__seconds": "many"}, "stages.1.seconds: got 'many', must be a mapping"),
        ({"stages__1__seconds__train": "many"}, "stages.1.seconds.train: got 'many', must be a number of at least 0"),
        ({"stages__1__latency": 3}, "stages.1.latency: got 3, must be a list"),
        ({"stages__1__latency__0": None}, "stages.1.latency.0: got None, must be a mapping"),
        ({"stages__1__latency__1__p50": 0}, "p50: got 0, must be a time above 0"),
        ({"stages__1__latency__1__batch": "8"}, "batch: got '8', must be a whole number"),
        ({"stages__1__metrics__accuracy": float("nan")}, "stages.1.metrics.accuracy: got nan, must be a number"),
        ({"stages__0__metrics__accuracy": True}, "got True, must be a number"),
        ({"stages__0__macs": 10**400}, "stages.0.macs: got 1000"),
        ({"stages__0__params": -1}, "must be a number of at least 0"),
        ({"stages__0__params": float("inf")}, "got inf"),
        ({"stages__0__technique": ["prune"]}, "stages.0.technique: got ['prune'], must be text"),
        ({"stages__0__key": {}}, "stages.0.key"),
        ({"stages__0__warnings": [3]}, "stages.0.warnings.0: got 3, must be text"),
        (
            {"stages__0__predictions": {"test": {"examples": "all"}}},
            "test.examples: got 'all', must be a whole number",
        ),
        ({"name": 3}, "name: got 3, must be text"),
        ({"seed": "zero"}, "seed: got 'zero', must be a whole number"),
        ({"task": "cifar10"}, "task: got 'cifar10', must be a mapping"),
        ({"task__main_metric": None}, "task.main_metric"),
        ({"environment": []}, "environment: got [], must be a mapping"),
        ({"environment": {"versions": {"torch": 2}}}, "environment.versions.torch"),
        ({"recipe__task": 3}, "recipe.task: got 3"),
        ({"recipe__steps": [{"prune": None}]}, "recipe.steps.0.prune: got None, must be a mapping"),
        ({"recipe__model": {"name_or_path": 3}}, "recipe.model.name_or_path"),
        ({"recipe__training": json.loads("[" * 40 + "]" * 40)}, "at most 30 levels deep"),
    ],
)
def test_wrong_types_deep_inside_are_named_by_their_path(runs, change, reason, capsys):
    path = runs / "prune" / "seed1" / "results.json"
    edited(path, **change)
    for lang in ("en", "zh"):
        assert main(["report", str(runs), "--output", str(runs / "out"), "--lang", lang]) == 0
    assert reason in capsys.readouterr().err
    records, problems = read_runs([runs])
    assert len(records) == 2 and reason in problems[str(path.parent)]


@pytest.mark.parametrize(
    "change",
    [
        {"stages__1__latency": [{"runtime": "openvino", "precision": "bf16", "skipped": "no bf16"}]},
        {"stages__1__metrics": {}},
        {"stages__1__seconds": {}},
        {"stages__0__params": 0},
        {"stages__0__name": "00_dense"},
        {"stages__1__params": 9 * 10**29},
        {"task__hub_dataset": None},
        {"environment": {"threads": None, "cpu": "x"}},
        {"recipe": {"steps": [{}], "task": {"max_eval_samples": "all"}, "model": {}}},
    ],
)
def test_what_is_unusual_but_readable_is_shown(runs, change):
    edited(runs / "prune" / "seed1" / "results.json", **change)
    for lang in ("en", "zh"):
        assert main(["report", str(runs), "--output", str(runs / "out"), "--lang", lang]) == 0
    assert len(read_runs([runs])[0]) == 3 and (runs / "out" / "experiment.zh.md").is_file()


def a_folder(path):
    path.mkdir()


def a_link_to_itself(path):
    path.symlink_to(path)


def a_dead_link(path):
    path.symlink_to(path.parent / "nowhere")


def a_pipe(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (b'{"format_version": 1, "name": "\xff"}', "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"format_version": 1' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[]", "no results.json of hf_compress"),
        (a_folder, "is no file"),
        (a_link_to_itself, "is no file"),
        (a_dead_link, "is no file"),
        pytest.param(a_pipe, "is no file", marks=pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")),
    ],
)
def test_what_is_no_results_file_is_left_out_with_the_reason(runs, make, reason):
    path = runs / "broken" / "results.json"
    path.parent.mkdir()
    make(path) if callable(make) else path.write_bytes(make)
    records, problems = read_runs([runs])
    assert len(records) == 3 and list(problems) == [str(path.parent)] and reason in problems[str(path.parent)]
    assert main(["report", str(runs), "--output", str(runs / "out")]) == 0


def test_a_file_that_may_not_be_read_is_left_out(runs, monkeypatch):
    read = Path.read_text

    def refuse(self, *arguments, **named):
        if "seed1" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", refuse)
    records, problems = read_runs([runs])
    assert len(records) == 2 and "cannot be read (Permission denied)" in problems[str(runs / "prune" / "seed1")]


def test_folders_are_walked_once_and_links_to_them_not_at_all(runs):
    (runs / "loop").symlink_to(runs)
    write_run(runs / "prune" / "seed0" / "model", name="a copy that was published")
    assert len(read_runs([runs, runs / "prune", str(runs) + "/.", runs / "prune" / "seed0" / "results.json"])[0]) == 3


def test_recipes_that_share_a_name_are_not_averaged(runs):
    write_run(runs / "again", 0.5, recipe={"steps": [{"prune": {"target": {"macs": 0.1}}}]})
    write_run(runs / "prune" / "seed3", 0.91, seed=3, recipe={"task": {"data_dir": "/somewhere"}})
    table = rows(read_runs([runs])[0])
    found = {row.run: row.seeds for row in table if row.last}
    assert found == {"prune": [0], "prune #2": [0, 1, 2, 3]}  # where the data lie makes no other recipe


def test_a_spread_of_no_bytes_is_not_shown(runs):
    line = comparison_table(rows(read_runs([runs])[0])).splitlines()[-1]
    assert "| 50 (50 %) |" in line and "± 0.0153" in line


def test_runs_without_results_have_their_reason(runs):
    study = runs / "study"
    write_run(study / "runs" / "a" / "seed0", name="a")
    names = {"a": "done", "b": "failed", "c": "missing", "d": "failed"}
    listed = [{"folder": f"runs/{name}/seed0", "status": status} for name, status in names.items()]
    listed[1]["error"] = "RuntimeError: boom"
    for name in ("b", "d"):
        (study / "runs" / name / "seed0").mkdir(parents=True)
    (study / "runs" / "d" / "seed0" / "error.json").write_text('{"error": "MemoryError"}')
    (study / "study.json").write_text(json.dumps({"runs": [*listed, 3, {"folder": 3, "status": "done"}]}))
    alone = runs / "alone"
    alone.mkdir()
    (alone / "recipe.yaml").touch()
    (alone / "journal.jsonl").touch()
    records, problems = read_runs([runs])
    reasons = {Path(folder).relative_to(runs).as_posix(): reason for folder, reason in problems.items()}
    assert len(records) == 4 and set(reasons) == {"alone", *(f"study/runs/{name}/seed0" for name in "bcd")}
    assert "not finished" in reasons["alone"] and "boom" in reasons["study/runs/b/seed0"]
    assert "not begun" in reasons["study/runs/c/seed0"] and "MemoryError" in reasons["study/runs/d/seed0"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"runs": 3}', '{"runs": [{"folder": "x", "status": []}]}'])
def test_a_study_file_in_any_state_makes_no_traceback(runs, content):
    (runs / "study.json").write_text(content)
    assert main(["report", str(runs), "--output", str(runs / "out")]) == 0
    (runs / "journal.jsonl").touch()
    assert main(["journal", "show", str(runs)]) == 0


def test_names_that_no_encoding_has_are_printed_escaped(runs, capfd):
    write_run(runs / "x", name="half \ud800")
    assert main(["report", str(runs), "--output", str(runs / "out")]) == 0
    assert "half \\ud800" in (runs / "out" / "comparison.md").read_text()
    (runs / os.fsdecode(b"bytes\xff")).mkdir()
    (runs / os.fsdecode(b"bytes\xff") / "results.json").touch()
    assert main(["report", str(runs), "--output", str(runs / "out")]) == 0
    assert "bytes\\udcff" in (runs / "out" / "experiment.md").read_text()
