"""The script on a small shape, in one process."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification


SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark_bert_large.py"
SHAPE = {"vocab_size": 1100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def dense_model():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SHAPE, intermediate_size=64)).eval()


def run_script(folder, monkeypatch, *options):
    script = runpy.run_path(str(SCRIPT))
    there = script["main"].__globals__
    there["dense_model"] = dense_model
    there["alone"] = lambda function, *arguments: function(*arguments)
    monkeypatch.setattr(sys, "argv", ["benchmark_bert_large.py", str(folder), "--threads", "1", *options])
    script["main"]()
    return json.loads((folder / "results.json").read_text()), (folder / "README.md").read_text()


def test_the_benchmark_runs_and_its_page_says_what_it_found(tmp_path, monkeypatch):
    found, page = run_script(tmp_path, monkeypatch, "--seconds", "1")
    for name in ("factorized", "pruned"):
        assert 0.3 < found[name]["achieved"] <= 0.5 and found[name]["cost"]["params"] < found["dense"]["params"]
        assert found[f"int8_{name}"]["size_bytes"] < found["int8_dense"]["size_bytes"]
    assert found["latency"].keys() == {"factorized", "pruned", "int8_dense", "int8_factorized", "int8_pruned"}
    assert "| pruning, repair, export and int8 in all | " in page and "| pruned | dense | torch | fp32 |" in page


def test_the_surgery_alone(tmp_path, monkeypatch):
    found, page = run_script(tmp_path, monkeypatch, "--surgery-only")
    assert found["latency"] == {} and "int8_dense" not in found and found["pruned"]["peak_over_fp32"] > 1
    assert page.count("its peak memory over the fp32 weights") == 2 and "export" not in page
