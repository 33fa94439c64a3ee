"""Run folders of studies that were never run: plausible numbers, by seed, with everything a report can show."""

from __future__ import annotations

import json
import random
from pathlib import Path


LAYERS = [f"timm_model.layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]
CHAINS = (
    ("prune",),
    ("factorize",),
    ("prune", "distill"),
    ("quantize",),
    ("prune", "distill", "quantize"),
    ("prune", "factorize", "distill", "quantize"),
)
ENVIRONMENT = {
    "cpu": "Example CPU",
    "instruction_sets": ["avx2", "avx512f"],
    "threads": 2,
    "cores": 2,
    "python": "3.11.7",
    "os": "Linux",
    "versions": {"hf_compress": "0.1.0", "torch": "2.14.1", "onnxruntime": None},
}


def latency_rows(fraction: float, dense: float, quantized: bool, chance: random.Random) -> list[dict]:
    def row(role: str, runtime: str, precision: str, p50: float) -> dict:
        below = sorted(p50 * (1 - min(0.5, abs(chance.gauss(0, 0.02)))) for _ in range(10))
        times = [*below, p50, *sorted(p50 * (1 + abs(chance.gauss(0, 0.06))) for _ in range(10))]
        settings = {"role": role, "runtime": runtime, "precision": precision, "batch": 128, "length": None}
        figures = {"p50": p50, "p90": p50 * 1.15, "mean": p50 * 1.03, "samples": 60, "quantiles": times}
        return {**settings, "threads": 2, **figures}

    own = (
        [row("stage", "openvino", "int8", dense * fraction * 0.25)]
        if quantized
        else [row("stage", "torch", "fp32", dense * fraction), row("stage", "openvino", "f32", dense * fraction * 0.6)]
    )
    return own + [
        row("baseline", "torch", "fp32", dense),
        row("baseline", "openvino", "f32", dense * 0.6),
        row("baseline", "openvino", "bf16", dense * 0.3),
    ]


def stage(index: int, technique: str, kept: float, accuracy: float, quantized: bool, chance: random.Random) -> dict:
    rows = latency_rows(kept**0.7, 0.24 * chance.uniform(0.97, 1.03), quantized, chance)
    made = {
        "name": f"{index:02d}_{'baseline' if technique == 'none' else technique}",
        "technique": technique,
        "method": {"prune": "magnitude", "factorize": "svd", "quantize": "openvino"}.get(technique, "logits"),
        "metrics": {"accuracy": accuracy},
        "params": int(269_722 * kept),
        "macs": int(40_551_040 * kept),
        "size_bytes": int(1_094_304 * kept * (0.27 if quantized else 1)),
        "latency": rows if index else [row | {"role": "stage"} for row in rows[-3:]],
        "layers": {},
        "epochs": [],
        "events": [],
        "warnings": [],
        "seconds": {"total": 31.0, "evaluate": 5.0, "measure": 20.0 + chance.random(), "surgery": 1.0, "save": 0.1},
    }
    if technique in ("prune", "factorize"):
        key = "kept" if technique == "prune" else "rank"
        made["layers"] = {name: {key: max(1, int(64 * kept ** chance.uniform(0.5, 2))), "of": 64} for name in LAYERS}
        made["target"] = {"macs": kept, "scope": "model"}
    if technique == "distill":
        made["epochs"] = [
            {"epoch": epoch, "loss": 1 / epoch, "holdout_accuracy": accuracy - 0.3 / epoch**2}
            for epoch in range(1, 11)
        ]
        made["events"] = [{"epoch": 4.5, "kind": "prune"}]
        made["seconds"] |= {"total": 431.0, "train": 400.0 * chance.uniform(0.9, 1.0)}
    return made


def run(name: str, seed: int, steps: tuple[str, ...], kept: float) -> dict:
    chance = random.Random(f"{name}/{seed}")
    accuracy, left, stages = 0.917, 1.0, [stage(0, "none", 1.0, 0.917, False, random.Random(0))]
    stages[0]["key"] = "dense"
    for index, technique in enumerate(steps, start=1):
        if technique in ("prune", "factorize"):
            left *= kept
            accuracy -= 0.35 * (1 - kept) ** 3 + abs(chance.gauss(0, 0.004))
        elif technique == "distill":
            accuracy += 0.75 * (0.915 - accuracy)
        else:
            accuracy -= 0.003
        stages.append(
            stage(index, technique, left, accuracy + chance.gauss(0, 0.002), technique == "quantize", chance)
        )
    target = {"target": {"macs": kept}}
    recipe = {
        "name": name,
        "task": {"name": "cifar10"},
        "model": {"name_or_path": "resnet20_cifar10"},
        "training": {"num_train_epochs": 10},
        "steps": [{step: dict(target) if step in ("prune", "factorize") else {}} for step in steps],
    }
    return {
        "format_version": 1,
        "name": name,
        "seed": seed,
        "recipe": recipe,
        "environment": ENVIRONMENT,
        "task": {"name": "cifar10", "main_metric": "accuracy", "eval_split": "test", "modality": "image"},
        "stages": stages,
    }


def write(folder: Path, results: dict) -> Path:
    """Write a run folder; numbers that are not finite too, as another program might."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (folder / "journal.jsonl").write_text("")
    return folder


def study(folder: Path, recipes: int, seeds: int = 3) -> Path:
    """`recipes` times `seeds` run folders under `folder`, laid out as a study's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text("{}")
    for index in range(recipes):
        steps = CHAINS[index % len(CHAINS)]
        kept = 0.25 + 0.7 * ((index // len(CHAINS)) / max(1, (recipes - 1) // len(CHAINS)))
        variant = f"{'-'.join(steps)}-macs{kept:.3g}-{index}"
        for seed in range(seeds):
            results = run(f"cifar10-resnet20-{variant}", seed, steps, kept)
            write(folder / "runs" / variant / f"seed{seed}", results)
    return folder
