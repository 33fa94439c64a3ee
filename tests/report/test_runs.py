from __future__ import annotations

import csv
import io
import json
import statistics

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
