"""Tables, plots and model cards, all pure functions of `results.json`."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..storage import whole_folder, write_text
from .card import card_data, model_card
from .plots import plot_all
from .tables import latency_table, left_alone, print_stages, seconds_table, stage_table


__all__ = ["card_data", "latency_table", "model_card", "plot_all", "print_stages", "seconds_table", "stage_table"]


def write_report(results: dict, run_dir: str | Path) -> None:
    """Write `results.md`, `plots/` and, for the card that is there, `model/plots/` of a run folder."""
    run_dir = Path(run_dir)
    with whole_folder(run_dir / "plots") as aside:
        plots = plot_all(results, aside)
    text = [f"# {results['name']}\n", stage_table(results), "## Latency\n", latency_table(results), "## Seconds\n"]
    text.append(seconds_table(results))
    for stage in results["stages"]:
        text += [f"- {stage['name']}: {warning}\n" for warning in stage.get("warnings", [])]
    text += [f"- {line}\n" for line in left_alone(results)]
    text += [f"![{path.stem}](plots/{path.name})\n" for path in plots]
    write_text(run_dir / "results.md", "\n".join(text))
    with whole_folder(run_dir / "model" / "plots") as aside:
        shutil.copytree(run_dir / "plots", aside, dirs_exist_ok=True)
