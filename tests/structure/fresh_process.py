"""Run in a process of its own: load every folder of a manifest, without hf_compress and then with it.

    python fresh_process.py manifest.json result.json

The manifest maps names to `{"folder", "task", "expected"}`; `expected` is a safetensors file of inputs and logits.
"""

import json
import sys

import torch
import transformers
from safetensors.torch import load_file


def outcome(entry: dict) -> str:
    auto = getattr(transformers, entry["task"])
    try:
        model = auto.from_pretrained(entry["folder"])
    except Exception as error:
        return f"refused: {type(error).__name__}: {error}"
    tensors = load_file(entry["expected"])
    logits = tensors.pop("logits")
    with torch.no_grad():
        return "equal" if torch.equal(model(**tensors).logits, logits) else "different"


if __name__ == "__main__":
    manifest, result = sys.argv[1:]
    with open(manifest) as file:
        entries = json.load(file)
    unaware = {name: outcome(entry) for name, entry in entries.items()}
    if "hf_compress" in sys.modules:
        raise SystemExit("hf_compress was imported already, so this shows nothing")
    import hf_compress  # noqa: F401

    aware = {name: outcome(entry) for name, entry in entries.items()}
    with open(result, "w") as file:
        json.dump({"unaware": unaware, "aware": aware}, file)
