"""Size, speed and memory work on the shape of bert-large-uncased with random weights; accuracy means nothing here.

`python scripts/benchmark_bert_large.py OUTPUT.json [--threads N]`: an SVD of every encoder Linear to half the
parameters of the encoder; half the encoder's MACs pruned by second-order information, with the repair, on 256 examples
of 32 tokens; the OpenVINO export and int8 quantization of the dense and of both smaller models with 300 examples of 32
tokens; and their latencies at batch 1 and 128 tokens, timed in turn in one process.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import numpy as np
import torch

import hf_compress as hc
from hf_compress.journal import Clock
from hf_compress.measurement import configure_threads, count, environment, folder_size, latency_rows
from hf_compress.quantization import load_exported, served_precision
from hf_compress.storage import write_json


EXAMPLES, LENGTH, SERVED_LENGTH = 300, 32, 128


def examples(vocabulary: int) -> list[dict[str, torch.Tensor]]:
    generator = np.random.default_rng(0)
    ids = torch.from_numpy(generator.integers(1000, vocabulary, (EXAMPLES, LENGTH)))
    rest = {"attention_mask": torch.ones(LENGTH, dtype=torch.int64), "token_type_ids": torch.zeros(LENGTH).long()}
    labels = generator.integers(0, 2, EXAMPLES)
    return [{"input_ids": row, "labels": int(label), **rest} for row, label in zip(ids, labels, strict=True)]


def factorize(model, data):
    return hc.factorize(model, method="svd", allocation="uniform", target={"params": 0.5, "scope": "encoder"})


def prune(model, data):
    # on random weights one score is as good as another: those that need no inverse of 4096 x 4096 matrices
    scores = {"score": "masks", "score_samples": 256, "probes": (0.5,), "probe_samples": 8}
    options = {**scores, "samples": 256, "refine": 0}
    return hc.prune(model, method="fisher", target={"macs": 0.5, "scope": "encoder"}, data=data, **options)


def weights_of(*models) -> int:
    return sum(parameter.nbytes for model in models for parameter in model.parameters())


def figures_of(clock: Clock, held: int, weights: int) -> dict:
    """Seconds and peak memory; the latter without `held`, as a multiple of the dense weights."""
    figures = clock.read()
    return figures | {"peak_over_fp32": (figures["peak_bytes"] - held) / weights}


def served(folder: Path):
    """The exported model in `folder`, as a run would time it."""
    return load_exported(folder, precision=served_precision(folder))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long a comparison may take")
    options = parser.parse_args()
    threads = configure_threads(options.threads)
    dense, _ = hc.load_model("bert-large-uncased", from_config=True)
    data = examples(dense.config.vocab_size)
    dense_cost = count(dense, length=SERVED_LENGTH)
    weights = 4 * dense_cost.params
    found = {"environment": environment(), "threads": threads, "fp32_bytes": weights, "dense": vars(dense_cost)}

    models = {"dense": dense}
    for name, smaller in (("factorized", factorize), ("pruned", prune)):
        models[name] = copy.deepcopy(dense)
        held = weights_of(*models.values()) - weights  # the copies that stay for the comparison are no part of it
        clock = Clock()
        report = smaller(models[name], data)
        found[name] = figures_of(clock, held, weights) | {
            "operations": report.seconds,
            "achieved": report.achieved,
            "cost": vars(count(models[name], length=SERVED_LENGTH)),
        }
        print(name, found[name], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: Path(folder) / name for name in models}
        for name, model in models.items():
            held = weights_of(*models.values()) - weights_of(model)
            clock = Clock()
            hc.quantize(model, scheme="static_int8", calibration_samples=EXAMPLES, data=data, output_dir=folders[name])
            found[f"int8_{name}"] = figures_of(clock, held, weights) | {
                "size_bytes": folder_size(folders[name]),
                "smaller": weights / folder_size(folders[name]),
            }
            print(name, found[f"int8_{name}"], flush=True)
        common = {"batch": 1, "length": SERVED_LENGTH, "threads": threads, "seconds": options.seconds}
        found["latency"] = {
            "factorized": latency_rows(models["factorized"], dense, **common),
            "pruned": latency_rows(models["pruned"], dense, **common),
            **{f"int8_{name}": latency_rows(served(folders[name]), dense, **common) for name in models},
        }
    write_json(options.output, found)
    for name, rows in found["latency"].items():
        for row in rows:
            print(name, row["role"], row["runtime"], row["precision"], row.get("p50", row.get("skipped")))


if __name__ == "__main__":
    main()
