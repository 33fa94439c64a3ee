from __future__ import annotations

import pytest
from huggingface_hub import constants
from transformers import BertTokenizer, TimmWrapperImageProcessor


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    """A cache of its own for every test, and no data roots unless a test names them."""
    home = tmp_path_factory.mktemp("hf_home")
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    return home / "hf_compress"


@pytest.fixture
def no_data_roots(monkeypatch, tmp_path):
    """Nothing is found in a data root or in the working folder."""
    monkeypatch.delenv("HF_COMPRESS_DATA", raising=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)


@pytest.fixture
def tokenizer():
    """A lower-case WordPiece tokenizer that reads letters, digits and a few signs, at most 64 tokens."""
    signs = list("abcdefghijklmnopqrstuvwxyz0123456789.,'\"-")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *(f"##{sign}" for sign in signs)]
    return BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}, model_max_length=64)


def image_processor(**changes):
    """The processor of a model for CIFAR images."""
    config = {
        "input_size": (3, 32, 32),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    return TimmWrapperImageProcessor(pretrained_cfg={**config, **changes})
