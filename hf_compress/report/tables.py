"""Tables made from `results.json` alone."""

from __future__ import annotations

from dataclasses import dataclass

from ..results import latency_row
from .markdown import table as markdown_table


MISSING = "–"
LEFT_ALONE = {"kept": "not pruned", "kept_dense": "not factorized", "unrepaired": "not repaired"}  # notes of steps
OPERATIONS = ("train", "calibrate", "surgery", "evaluate", "measure", "save")
COLUMNS = (
    "stage",
    "metric",
    "Δ",
    "params",
    "MACs",
    "size",
    "latency",
    "vs PyTorch fp32",
    "vs same runtime",
    "vs its bf16",
    "seconds",
)


@dataclass(frozen=True)
class ServedLatency:
    """The row by which a stage is judged, and the dense model's rows timed beside it."""

    runtime: str
    precision: str
    batch: int
    p50: float
    p90: float
    speedup_torch: float | None
    speedup_same_runtime: float | None
    speedup_bf16: float | None  # over the dense model in the same runtime in bf16


def main_metric(results: dict) -> str:
    """The full name of the metric by which the run is judged."""
    return results["task"]["main_metric"]


def baseline_stage(results: dict) -> dict | None:
    """The record of the dense model, or `None` while the run has not got there."""
    return next((stage for stage in results["stages"] if stage["name"].endswith("_baseline")), None)


def served_latency(stage: dict) -> ServedLatency | None:
    """The stage in the runtime and precision that would serve it, at the largest batch measured.

    An exported stage is served as it was exported, a torch stage in OpenVINO f32 where that is installed.
    """
    rows = [row for row in stage.get("latency", []) if row.get("role", "stage") == "stage" and "p50" in row]
    if not rows:
        return None
    batch = max(row["batch"] for row in rows)
    order = {("openvino", "int8"): 0, ("openvino", "f32"): 1, ("torch", "fp32"): 2}
    rows = [row for row in rows if row["batch"] == batch and (row["runtime"], row["precision"]) in order]
    if not rows:
        return None
    row = min(rows, key=lambda row: order[row["runtime"], row["precision"]])
    # the dense stage is its own baseline and was timed alone
    role = "baseline" if any(other.get("role") == "baseline" for other in stage["latency"]) else "stage"
    full = "f32" if row["runtime"] == "openvino" else "fp32"
    dense_rows = [("torch", "fp32"), (row["runtime"], full), (row["runtime"], "bf16")]
    dense = [latency_row(stage, runtime, precision, batch, role) for runtime, precision in dense_rows]
    return ServedLatency(
        row["runtime"],
        row["precision"],
        batch,
        row["p50"],
        row["p90"],
        *(found["p50"] / row["p50"] if found else None for found in dense),
    )


def stage_rows(results: dict) -> list[dict[str, str]]:
    """One row of formatted text a stage, with the keys of `COLUMNS`."""
    metric = main_metric(results)
    baseline = baseline_stage(results)
    rows = []
    for stage in results["stages"]:
        value = stage["metrics"].get(metric)
        dense = baseline["metrics"].get(metric) if baseline else None
        served = served_latency(stage)
        is_baseline = stage is baseline
        rows.append(
            {
                "stage": stage["name"],
                "metric": MISSING if value is None else f"{value:.4f}",
                "Δ": MISSING if None in (value, dense) or is_baseline else f"{value - dense:+.4f}",
                "params": human_count(stage["params"]) + ratio(stage, baseline, "params"),
                "MACs": human_count(stage["macs"]) + ratio(stage, baseline, "macs"),
                "size": human_bytes(stage["size_bytes"]) + ratio(stage, baseline, "size_bytes"),
                "latency": MISSING
                if served is None
                else f"{1000 * served.p50:.1f} ms ({served.runtime} {served.precision}, batch {served.batch})",
                "vs PyTorch fp32": speedup(served and served.speedup_torch),
                "vs same runtime": speedup(served and served.speedup_same_runtime),
                "vs its bf16": speedup(served and served.speedup_bf16),
                "seconds": f"{stage.get('seconds', {}).get('total', 0.0):.0f}",
            }
        )
    return rows


def stage_table(results: dict) -> str:
    """The stages as a Markdown table."""
    header = ["stage", main_metric(results), *COLUMNS[2:]]
    return markdown_table(header, [[row[column] for column in COLUMNS] for row in stage_rows(results)])


def latency_table(results: dict) -> str:
    """Every latency row of every stage as a Markdown table, the dense model's rows of its comparison beside it."""
    header = ["stage", "model", "runtime", "precision", "batch", "length", "threads", "p50 ms", "p90 ms", "samples"]
    rows = []
    for stage in results["stages"]:
        for row in stage.get("latency", []):
            if "p50" not in row:
                continue
            figures = [f"{1000 * row['p50']:.2f}", f"{1000 * row['p90']:.2f}", str(row["samples"])]
            rows.append(
                [
                    stage["name"],
                    "dense" if row.get("role") == "baseline" else "this stage",
                    row["runtime"],
                    row["precision"] + (f" (rest {row['rest']})" if "rest" in row else ""),
                    str(row["batch"]),
                    str(row.get("length") or MISSING),
                    str(row["threads"]),
                    *figures,
                ]
            )
    return markdown_table(header, rows)


def seconds_table(results: dict) -> str:
    """Seconds by operation and stage as a Markdown table."""
    kinds = (*OPERATIONS, "total")
    rows = [
        [stage["name"], *(f"{stage.get('seconds', {}).get(kind, 0.0):.1f}" for kind in kinds)]
        for stage in results["stages"]
    ]
    return markdown_table(["stage", *kinds], rows)


def left_alone(results: dict) -> list[str]:
    """What steps could not prune, factorize or repair, a line for every stage and reason."""
    lines = []
    for stage in results["stages"]:
        for key, verb in LEFT_ALONE.items():
            reasons: dict[str, list[str]] = {}
            for name, reason in stage.get("notes", {}).get(key, {}).items():
                reasons.setdefault(reason, []).append(f"`{name}`")
            lines += [f"{stage['name']}: {verb} ({reason}): {', '.join(names)}" for reason, names in reasons.items()]
    return lines


def print_stages(results: dict) -> None:
    """Print the table of stages on the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{results['name']}: {results['task']['name']}, {main_metric(results)}")
    for column in COLUMNS:
        table.add_column(main_metric(results) if column == "metric" else column, justify="left")
    for row in stage_rows(results):
        table.add_row(*(Text(row[column]) for column in COLUMNS))
    Console(width=None if Console().is_terminal else 170).print(table)


def human_count(value: float) -> str:
    """`853018` -> `"853.0 k"`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"


def human_bytes(value: float) -> str:
    """`3434552` -> `"3.43 MB"`, decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} B"


def ratio(stage: dict, baseline: dict | None, key: str) -> str:
    """`" (47 %)"` of the baseline; empty for the baseline itself."""
    if baseline is None or stage is baseline or not baseline.get(key):
        return ""
    return f" ({100 * stage[key] / baseline[key]:.0f} %)"


def speedup(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}x"
