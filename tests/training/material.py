"""Tiny models and data for the tests of training and distillation, the same in every process."""

from __future__ import annotations

import datasets
import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from hf_compress.structure import Constant, LowRankLinear, Removed, track
from hf_compress.tasks.dataset import ImageDataset
from hf_compress.tasks.preprocessing import ImageSettings
from hf_compress.training import TrainingData


def tiny_text_model(seed: int = 0, dropout: float = 0.0, **config) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "num_labels": 2,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    return BertForSequenceClassification(BertConfig(**{**settings, **config})).eval()


def tiny_compressed_model(seed: int = 0, dropout: float = 0.0) -> BertForSequenceClassification:
    """With a low-rank layer, and a layer that has lost all its attention heads: seals, and module types of our own."""
    model = tiny_text_model(seed, dropout)
    first, second = model.bert.encoder.layer
    dense = first.intermediate.dense
    first.intermediate.dense = LowRankLinear.from_factors(
        dense.weight[:5].clone(), torch.randn(dense.out_features, 5) / 5, dense.bias.clone()
    )
    second.attention.self = Removed.replacing(second.attention.self)
    second.attention.output.dense = Constant.replacing(second.attention.output.dense)
    return track(model)


def tiny_image_model(seed: int = 0, num_labels: int = 4, **pretrained_cfg) -> TimmWrapperForImageClassification:
    torch.manual_seed(seed)
    config = TimmWrapperConfig(
        architecture="resnet10t",
        model_args={"channels": (8, 8, 16, 16), "stem_width": 4},
        num_labels=num_labels,
    )
    config.pretrained_cfg = {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3, **pretrained_cfg}
    return TimmWrapperForImageClassification(config).eval()


def text_rows(n: int = 64, seed: int = 0, labels: bool = True, regression: bool = False) -> datasets.Dataset:
    """Sentences of 3 to 11 tokens with a raw text column, whose label can be learned."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        tokens = generator.integers(5, 100, generator.integers(3, 12)).tolist()
        row = {"input_ids": tokens, "attention_mask": [1] * len(tokens), "sentence": "some words"}
        if labels:
            row["label"] = float(np.mean(tokens)) / 50 if regression else int(tokens[0] > 50)
        rows.append(row)
    return datasets.Dataset.from_list(rows)


def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    longest = max(len(example["input_ids"]) for example in examples)
    batch = {
        name: torch.tensor([list(example[name]) + [0] * (longest - len(example[name])) for example in examples])
        for name in ("input_ids", "attention_mask")
    }
    if "label" in examples[0]:
        batch["labels"] = torch.tensor([example["label"] for example in examples])
    return batch


def image_rows(n: int = 48, seed: int = 0, augment: bool = True) -> ImageDataset:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 4, (n,), generator=generator)
    settings = ImageSettings(mean=(0.5,) * 3, std=(0.25,) * 3, size=(16, 16))
    return ImageDataset(pixels, labels, settings, augment=augment, seed=seed)


def text_data(**kwargs) -> TrainingData:
    def accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return {"accuracy": float((logits.argmax(-1) == labels).mean())}

    return TrainingData(text_rows(**kwargs), collate, text_rows(20, seed=1), accuracy)


def image_data() -> TrainingData:
    train = image_rows()
    return TrainingData(train, train.collate)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], **tolerance) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        if tolerance:
            torch.testing.assert_close(right[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)
        else:
            assert torch.equal(right[name], value), name
