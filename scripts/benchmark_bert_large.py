"""Size, speed and memory work on the shape of bert-large-uncased with random weights; accuracy means nothing here.

`python scripts/benchmark_bert_large.py OUTPUT.json [--threads N]`: an SVD of every encoder Linear to half the
parameters of the encoder, the OpenVINO export and int8 quantization of the dense and of the factorized model with 300
examples of 32 tokens, and their latencies at batch 1 and 128 tokens, timed in turn in one process.
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
    return [{"input_ids": row, **rest} for row in ids]


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

    small = copy.deepcopy(dense)
    held = weights  # the copy that the comparison below needs is no part of what the factorization takes
    clock = Clock()
    report = hc.factorize(small, method="svd", allocation="uniform", target={"params": 0.5, "scope": "encoder"})
    figures = clock.read()
    found["factorize"] = {
        **figures,
        "achieved": report.achieved,
        "peak_over_fp32": (figures["peak_bytes"] - held) / weights,
        "cost": vars(count(small, length=SERVED_LENGTH)),
    }
    print(found["factorize"], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folders = {}
        for name, model, other in (("dense", dense, small), ("factorized", small, dense)):
            folders[name] = Path(folder) / name
            held = sum(parameter.nbytes for parameter in other.parameters())
            clock = Clock()
            hc.quantize(model, scheme="static_int8", calibration_samples=EXAMPLES, data=data, output_dir=folders[name])
            figures = clock.read()
            found[f"int8_{name}"] = {
                **figures,
                "peak_over_fp32": (figures["peak_bytes"] - held) / weights,
                "size_bytes": folder_size(folders[name]),
                "smaller": weights / folder_size(folders[name]),
            }
            print(name, found[f"int8_{name}"], flush=True)
        common = {"batch": 1, "length": SERVED_LENGTH, "threads": threads, "seconds": options.seconds}
        found["latency"] = {
            "factorized": latency_rows(small, dense, **common),
            "int8_dense": latency_rows(served(folders["dense"]), dense, **common),
            "int8_factorized": latency_rows(served(folders["factorized"]), dense, **common),
        }
    write_json(options.output, found)
    for name, rows in found["latency"].items():
        for row in rows:
            print(name, row["role"], row["runtime"], row["precision"], row.get("p50", row.get("skipped")))


if __name__ == "__main__":
    main()
