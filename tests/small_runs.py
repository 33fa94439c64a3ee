"""Small real runs: recipes on the CIFAR-10 sample and on a tiny GLUE folder, with tiny models of random weights.

And runs that nobody ran: whole folders with the committed results of the quickstart and a model that loads.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast


ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "model_cards" / "quickstart"
RESNET20 = ROOT / "hf_compress" / "data" / "models" / "hf_compress" / "resnet20_cifar10"
WORDS = "the a film plot actor story is was feels good great fine bad dull awful poor very not so".split()


def image_recipe(folder: Path, steps: list[dict], **changes) -> dict:
    """ResNet-20 of random weights on 60 images of the sample; an epoch is two optimizer steps."""
    return {
        "name": "image",
        "output_dir": str(folder),
        "threads": 1,
        "task": {"name": "cifar10", "data_dir": "sample", "max_train_samples": 60, "max_eval_samples": 40},
        "model": {"name_or_path": "resnet20_cifar", "from_config": True},
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": 32, "learning_rate": 0.01},
        "measure": {"batch": 4, "seconds": 0.2},
        "steps": steps,
        **changes,
    }


def text_recipe(folder: Path, root: Path, steps: list[dict], **changes) -> dict:
    """A two-layer BERT on 96 made-up sentences in the original form of SST-2; `root` is made by `make_text_root`."""
    return {
        "name": "text",
        "output_dir": str(folder),
        "threads": 1,
        "task": {"name": "glue", "subset": "sst2", "data_dir": str(root / "glue"), "max_length": 16},
        "model": {"name_or_path": str(root / "bert")},
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 32, "learning_rate": 1e-3},
        "measure": {"batch": 1, "seconds": 0.2},
        "steps": steps,
        **changes,
    }


def make_text_root(root: Path) -> Path:
    """Write `root/glue/SST-2/*.tsv` and `root/bert`, a BERT with a word-piece tokenizer and no head."""
    generator = np.random.default_rng(0)
    folder = root / "glue" / "SST-2"
    folder.mkdir(parents=True)
    for name, size in (("train", 96), ("dev", 32)):
        lines = ["sentence\tlabel"]
        for _ in range(size):
            words = generator.choice(WORDS, generator.integers(4, 11))
            lines.append(f"{' '.join(words)}\t{int('good' in words or 'great' in words)}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    bert = root / "bert"
    bert.mkdir()
    (bert / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
    )
    BertForSequenceClassification(config).bert.save_pretrained(bert)
    BertTokenizerFast(vocab=str(bert / "vocab.txt"), do_lower_case=True, model_max_length=32).save_pretrained(bert)
    return root


def finished_run(folder: Path, name: str = "fake", seed: int = 0, steps: int = 1) -> Path:
    """Write the folder of a finished run of the first `steps` steps of the quickstart, at most three."""
    from hf_compress.report import model_card  # reads torch, which some users of this module set up first

    results = json.loads((QUICKSTART / "results.json").read_text())
    results |= {"name": name, "seed": seed, "stages": results["stages"][: steps + 1]}
    results["recipe"] |= {"name": name, "seed": seed, "steps": results["recipe"]["steps"][:steps]}
    model = folder / "model"
    model.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(RESNET20 / file, model / file)
    results["stages"][-1]["size_bytes"] = (model / "model.safetensors").stat().st_size
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "results.md").write_text(f"# {name}\n")
    (folder / "recipe.yaml").write_text(json.dumps(results["recipe"]))
    (folder / "journal.jsonl").write_text('{"operation": "run", "status": "done"}\n')
    shutil.copytree(QUICKSTART / "plots", folder / "plots")
    (model / "README.md").write_text(model_card(results))
    return folder


def finished_study(folder: Path, runs: dict[str, int], seeds: tuple[int, ...] = (0,), **others: str) -> Path:
    """Write the folder of a study with a [`finished_run`] of so many steps for each variant and seed.

    `others` are variants without a run, by status.
    """
    entries = []
    for variant, steps in runs.items():
        for seed in seeds:
            place = f"runs/{variant}/seed{seed}"
            finished_run(folder / place, f"{folder.name}-{variant}", seed, steps)
            entries.append({"variant": variant, "seed": seed, "folder": place, "status": "done"})
    for variant, status in others.items():
        place = f"runs/{variant}/seed0"
        entries.append({"variant": variant, "seed": 0, "folder": place, "status": status, "error": "no luck"})
    (folder / "study.json").write_text(json.dumps({"format_version": 1, "name": folder.name, "runs": entries}))
    return folder
