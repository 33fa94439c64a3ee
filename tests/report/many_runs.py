"""Run folders as the runner and the study runner leave them, with made-up numbers."""

from __future__ import annotations

import json
from pathlib import Path


ENVIRONMENT = {
    "versions": {"torch": "2.14.1", "evaluate": "0.4.6", "onnxruntime": None},
    "python": "3.11.7",
    "cpu": "CPU of a test",
    "instruction_sets": ["avx2", "avx512f"],
    "threads": 2,
    "usable_cores": 2,
    "memory_bytes": 16_000_000_000,
}
TASK = {
    "name": "cifar10",
    "modality": "image",
    "main_metric": "accuracy",
    "hub_dataset": "uoft-cs/cifar10",
    "hub_config": "plain_text",
    "eval_split": "test",
}
DEFAULTS = {"prune": {"method": "magnitude", "target": {"macs": 0.5}}, "quantize": {"scheme": "static_int8"}}
PRUNE = ("prune", 0.90, 0.5, 0.5)  # technique, accuracy, size and latency as fractions of the dense model's
INT8 = ("quantize", 0.93, 0.25, 0.25)


def latency(runtime, precision, p50, role):
    settings = {"runtime": runtime, "precision": precision, "batch": 8, "threads": 2, "length": None, "samples": 20}
    return {**settings, "p50": p50, "p90": 1.2 * p50, "role": role}


def stage(index, technique, accuracy, size, speed, key=None, **changes):
    dense = [latency("torch", "fp32", 0.4, "baseline"), latency("openvino", "f32", 0.3, "baseline")]
    precision = "int8" if technique == "quantize" else "f32"
    return {
        "name": f"{index:02d}_{'baseline' if technique == 'none' else technique}",
        "technique": technique,
        "method": "none",
        "metrics": {"accuracy": accuracy},
        "params": int(1000 * size),
        "macs": int(10_000 * size),
        "size_bytes": int(4000 * size),
        "latency": [*(dense if index else []), latency("openvino", precision, 0.4 * speed, "stage")],
        "seconds": {"total": 10.0, "train": 6.0, "evaluate": 3.0, "load": 1.0},
        **({"key": key} if key else {}),
        **changes,
    }


def recipe(name, seed, techniques):
    return {
        "name": name,
        "seed": seed,
        "output_dir": "/home/someone/outputs",
        "threads": 2,
        "task": {"name": "cifar10", "data_dir": None, "max_train_samples": None, "max_eval_samples": None},
        "model": {"name_or_path": "resnet20_cifar10"},
        "training": {"num_train_epochs": 2},
        "measure": {"runtime": "openvino", "batch": 8},
        "steps": [{technique: dict(DEFAULTS.get(technique, {}))} for technique in techniques],
        "hub": {"push": False, "repo_id": "someone/secret"},
    }


def write_run(folder, *steps, seed=0, name="run", keys=True, shared=(), change=None):
    """A finished run of the dense model and `steps`, with its journal; `change` may edit the results."""
    parts = [("none", 0.94, 1.0, 1.0), *steps]
    stages = [
        stage(index, part[0], part[1] + 0.001 * seed, *part[2:], key=f"{name}-{index}-{seed}" if keys else None)
        for index, part in enumerate(parts)
    ]
    if keys:
        stages[0]["key"] = f"dense-{seed}"  # all recipes begin with the same model
    results = {
        "format_version": 1,
        "name": name,
        "recipe": recipe(name, seed, [part[0] for part in steps]),
        "seed": seed,
        "environment": ENVIRONMENT,
        "task": dict(TASK),
        "stages": stages,
    }
    if change:
        change(results)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "recipe.yaml").write_text("name: run\n")
    write_journal(folder, [entry["name"] for entry in stages if isinstance(entry, dict)], shared)
    return folder


def write_journal(folder, stages, shared=(), end=True):
    events = [{"operation": "run", "status": "started"}]
    for name in stages:
        if name in shared:
            events.append({"operation": "shared", "stage": name, "status": "done", "notes": {"key": "k"}})
            continue
        for operation in ("load", "train", "evaluate"):
            events.append({"operation": operation, "stage": name, "status": "started"})
            events.append({"operation": operation, "stage": name, "status": "done", "wall_seconds": 3.0})
            events[-1]["peak_bytes"] = 10**9
    events += [{"operation": "run", "status": "done"}] if end else []
    times = (f"2026-11-25T10:{index // 60 % 60:02d}:{index % 60:02d}.000+00:00" for index in range(len(events)))
    lines = (json.dumps({"time": time, **event}) for time, event in zip(times, events, strict=True))
    (folder / "journal.jsonl").write_text("".join(f"{line}\n" for line in lines))


def write_study(folder, variants, seeds=(0, 1, 2), failed=()):
    """A study whose runs share the dense model; `failed` are runs such as "int8/seed1" that have no results."""
    rows = []
    for variant, steps in variants.items():
        for seed in seeds:
            run = f"{variant}/seed{seed}"
            row = {"variant": variant, "seed": seed, "folder": f"runs/{run}", "status": "done"}
            rows.append(row)
            if run in failed:
                row |= {"status": "failed", "error": f"RuntimeError: {run} <went> wrong"}
                continue
            shared = () if variant == next(iter(variants)) else ("00_baseline",)
            write_run(folder / "runs" / run, *steps, seed=seed, name=f"{folder.name}-{variant}", shared=shared)
    study = {"format_version": 1, "name": folder.name, "runs": rows}
    (folder / "study.json").write_text(json.dumps(study))
    return folder
