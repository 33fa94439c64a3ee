from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast

from hf_compress.quantization import quantize

from .models import dataset, images, make_small_bert, make_small_resnet, texts


@dataclass
class Export:
    """A model, a batch, the torch model's logits on it, and what `quantize` gave."""

    model: Any
    batch: dict[str, torch.Tensor]
    reference: np.ndarray
    folder: Path
    report: Any
    logits: np.ndarray


@pytest.fixture(scope="session")
def exports(tmp_path_factory) -> dict[tuple[str, str], Export]:
    """A pruned and factorized BERT and ResNet, exported with every scheme."""
    pytest.importorskip("optimum.intel")
    base = tmp_path_factory.mktemp("exports")
    made = {}
    for name, model, batch, processor in (
        ("bert", make_small_bert(), texts(), _tokenizer(base)),
        ("resnet", make_small_resnet(), images(), None),
    ):
        with torch.no_grad():
            reference = model(**batch).logits.numpy()
        for scheme in ("static_int8", "weight_only_int8", "none"):
            folder = base / f"{name}-{scheme}"
            # random weights give larger activations than trained ones, which overflow on some CPUs
            options = {"overflow_fix": "enable"} if scheme == "static_int8" else {}
            report = quantize(
                model,
                scheme=scheme,
                data=dataset(batch),
                calibration_samples=32,
                output_dir=folder,
                processor=processor,
                **options,
            )
            logits = report.model(**batch).logits.numpy()
            made[name, scheme] = Export(model, batch, reference, folder, report, logits)
    return made


def _tokenizer(folder: Path) -> BertTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{index}" for index in range(95))]
    (folder / "vocab.txt").write_text("\n".join(words))
    return BertTokenizerFast(str(folder / "vocab.txt"))
