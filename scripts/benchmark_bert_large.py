"""Size, speed and memory work on the shape of bert-large-uncased with random weights; accuracy means nothing here.

`python scripts/benchmark_bert_large.py FOLDER [--threads N] [--surgery-only]`: an SVD of every encoder Linear to half
the parameters of the encoder; half the encoder's MACs pruned by second-order information, with the repair, on 256
examples of 32 tokens; the OpenVINO export and int8 quantization of the dense and of both smaller models with 300
examples of 32 tokens, each in a process of its own; and their latencies at batch 1 and 128 tokens, timed in turn in
one process. With `--surgery-only` nothing is exported or timed. `results.json` and a card come into FOLDER.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

import hf_compress as hc
from hf_compress.journal import Clock
from hf_compress.measurement import configure_threads, count, environment, folder_size, latency_rows
from hf_compress.quantization import load_exported, served_precision
from hf_compress.storage import write_json, write_text


EXAMPLES, LENGTH, SERVED_LENGTH = 300, 32, 128
SMALLER = ("factorized", "pruned")
MODELS = ("dense", *SMALLER)
INT8 = tuple(f"int8_{name}" for name in MODELS)


def examples(vocabulary: int) -> list[dict[str, torch.Tensor]]:
    generator = np.random.default_rng(0)
    ids = torch.from_numpy(generator.integers(1000, vocabulary, (EXAMPLES, LENGTH)))
    rest = {"attention_mask": torch.ones(LENGTH, dtype=torch.int64), "token_type_ids": torch.zeros(LENGTH).long()}
    labels = generator.integers(0, 2, EXAMPLES)
    return [{"input_ids": row, "labels": int(label), **rest} for row, label in zip(ids, labels, strict=True)]


def dense_model():
    torch.manual_seed(0)
    return hc.load_model("bert-large-uncased", from_config=True)[0]


def factorize(model, data):
    return hc.factorize(model, method="svd", allocation="uniform", target={"params": 0.5, "scope": "encoder"})


def prune(model, data):
    # on random weights one score is as good as another: those that need no inverse of 4096 x 4096 matrices
    scores = {"score": "masks", "score_samples": 256, "probes": (0.5,), "probe_samples": 8}
    options = {**scores, "samples": 256, "refine": 0}
    return hc.prune(model, method="fisher", target={"macs": 0.5, "scope": "encoder"}, data=data, **options)


def alone(function, *args):
    """What `function` returns, from a process of its own: memory that others gave back late is not counted."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def compressed(name: str, folder: Path, threads: int) -> dict:
    """Figures of the smaller model, which is saved in `folder`."""
    configure_threads(threads)
    model = dense_model()
    with Clock() as clock:
        report = {"factorized": factorize, "pruned": prune}[name](model, examples(model.config.vocab_size))
    model.save_pretrained(folder)
    cost = vars(count(model, length=SERVED_LENGTH))
    return clock.read() | {"operations": report.seconds, "achieved": report.achieved, "cost": cost}


def exported(name: str, source: Path, folder: Path, threads: int) -> dict:
    """Figures of the model in int8, which is saved in `folder`."""
    configure_threads(threads)
    model = dense_model() if name == "dense" else hc.load_model(source)[0]
    data = examples(model.config.vocab_size)
    with Clock() as clock:
        hc.quantize(model, scheme="static_int8", calibration_samples=EXAMPLES, data=data, output_dir=folder)
    return clock.read() | {"size_bytes": folder_size(folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long a comparison may take")
    parser.add_argument("--surgery-only", action="store_true", help="no exports to int8, and no latencies")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)  # before anything takes long
    threads = configure_threads(options.threads)
    dense = dense_model()
    cost = count(dense, length=SERVED_LENGTH)
    weights = 4 * cost.params
    found = {"environment": environment(), "threads": threads, "fp32_bytes": weights, "dense": vars(cost)}
    with tempfile.TemporaryDirectory() as place:
        for name in SMALLER:
            found[name] = alone(compressed, name, Path(place, name), threads)
            print(name, found[name], flush=True)
        served = () if options.surgery_only else INT8
        for source, name in zip(MODELS, served, strict=False):
            figures = alone(exported, source, Path(place, source), Path(place, name), threads)
            found[name] = figures | {"smaller": weights / figures["size_bytes"]}
            print(name, found[name], flush=True)
        for name in (*SMALLER, *served):
            found[name]["peak_over_fp32"] = found[name]["peak_bytes"] / weights
        common = {"batch": 1, "length": SERVED_LENGTH, "threads": threads, "seconds": options.seconds}
        found["latency"] = {}
        for name in SMALLER if served else ():
            found["latency"][name] = latency_rows(hc.load_model(Path(place, name))[0], dense, **common)
        for name in served:
            model = load_exported(Path(place, name), precision=served_precision(Path(place, name)))[0]
            found["latency"][name] = latency_rows(model, dense, **common)
    write_json(options.folder / "results.json", found)
    write_text(options.folder / "README.md", card(found))
    print(card(found))


def card(found: dict) -> str:
    """The figures as a page, with the bars they are held against."""
    machine = found["environment"]
    cpu = f"{found['threads']} cores ({machine['cpu']}, {', '.join(machine['instruction_sets'])})"
    lines = [
        "# The shape of bert-large-uncased, with random weights",
        "",
        "For time, memory and speed alone: the weights are random, so accuracy means nothing here. Made by `python "
        f"scripts/benchmark_bert_large.py FOLDER` on {cpu}; every step ran in a process of its own, and the peaks are "
        "of the whole process, libraries included.",
        "",
        "|  | measured | at most |  |",
        "| --- | --- | --- | --- |",
    ]
    pruning = "half the encoder's MACs by Fisher scores of masks, one measured width a layer, and the refit"
    for name, what, seconds, peak in (
        ("factorized", "SVD of every encoder Linear to half the encoder's parameters", 90, 3),
        ("pruned", f"{pruning}, 256 examples of 32 tokens", 600, 3),
        ("int8_dense", "export and int8, 300 examples of 32 tokens", 240, 5),
    ):
        if name not in found:
            continue
        lines.append(_row(what, found[name]["wall_seconds"], seconds, "{:.0f} s"))
        lines.append(_row("its peak memory over the fp32 weights", found[name]["peak_over_fp32"], peak, "{:.2f}x"))
    if not found["latency"]:
        return "\n".join([*lines, "", "[All figures](results.json)", ""])
    for name in SMALLER:
        figures = found[f"int8_{name}"]
        measured = f"{figures['wall_seconds']:.0f} s, {figures['peak_over_fp32']:.2f}x"
        lines.append(f"| the same of the {name} model | {measured} |  |  |")
    minutes = sum(found[name]["wall_seconds"] for name in ("pruned", "int8_pruned")) / 60
    lines.append(_row("pruning, repair, export and int8 in all", minutes, 10, "{:.1f} min"))
    rows = {(row["role"], row["runtime"], row["precision"]): row for row in found["latency"]["int8_pruned"]}
    ratio = rows["baseline", "torch", "fp32"]["p50"] / rows["stage", "openvino", "int8"]["p50"]
    what = "PyTorch fp32 of the dense model over the pruned one in int8, batch 1 of 128 tokens"
    lines.append(_row(what, ratio, 10, "{:.1f}x", at_least=True))
    columns = ("comparison", "model", "runtime", "precision", "batch", "length", "p50 ms", "p90 ms", "samples")
    lines += [
        "",
        "Latency, batch 1 and 128 tokens, each compressed model and the dense one timed in turn in one process:",
        "",
        f"| {' | '.join(columns)} |",
        f"|{' --- |' * len(columns)}",
    ]
    for name, rows in found["latency"].items():
        for row in rows:
            values = (name, "this" if row["role"] == "stage" else "dense", row["runtime"], row["precision"])
            if "skipped" in row:
                values += ("", "", row["skipped"], "", "")
            else:
                times = (f"{1e3 * row[quantile]:.1f}" for quantile in ("p50", "p90"))
                values += (row["batch"], row["length"], *times, row["samples"])
            lines.append(f"| {' | '.join(map(str, values))} |")
    return "\n".join([*lines, "", "[All figures](results.json)", ""])


def _row(what: str, value: float, bar: float, form: str, at_least: bool = False) -> str:
    met = value >= bar if at_least else value <= bar
    limit = ("at least " if at_least else "") + form.format(bar).replace(".00", "").replace(".0", "")
    return f"| {what} | {form.format(value)} | {limit} | {'met' if met else '**not met**'} |"


if __name__ == "__main__":
    main()
