"""Small models with weights that make their logits depend on the input, and data for them."""

from __future__ import annotations

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

import hf_compress  # registers the CIFAR entries
from hf_compress.structure import Constant, LowRankConv2d, LowRankLinear, Removed


EXAMPLES = 48


def make_bert() -> nn.Module:
    """A two-layer BERT whose logits depend on its input far more than freshly initialized ones do."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
        num_labels=3,
        id2label={0: "no", 1: "maybe", 2: "yes"},
    )
    return BertForSequenceClassification(config).eval()


def make_small_bert() -> nn.Module:
    """`make_bert` after pruning and factorization: fewer heads and neurons, a layer without attention, low rank."""
    model = make_bert()
    first, second = model.bert.encoder.layer
    attention = first.attention.self
    for name in ("query", "key", "value"):
        setattr(attention, name, _narrow(getattr(attention, name), rows=range(16)))
    attention.num_attention_heads, attention.all_head_size = 2, 16
    first.attention.output.dense = _narrow(first.attention.output.dense, columns=range(16))
    first.intermediate.dense = _low_rank(first.intermediate.dense, 12)
    second.attention.self = Removed.replacing(second.attention.self)
    second.attention.output.dense = Constant.replacing(second.attention.output.dense)
    return hf_compress.track(model)


def make_resnet() -> nn.Module:
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture="resnet20_cifar", model_args={"shortcut": "A"}, num_labels=10)
    config.id2label = {index: f"thing {index}" for index in range(10)}
    config.label2id = {name: index for index, name in config.id2label.items()}
    config.pretrained_cfg = {
        "input_size": [3, 32, 32],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    model = TimmWrapperForImageClassification(config).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return _with_statistics(model)


def make_small_resnet() -> nn.Module:
    """`make_resnet` after pruning and factorization: a narrower block, and a convolution of low rank."""
    model = make_resnet()
    block = model.timm_model.layer1[0]
    block.conv1, block.bn1 = nn.Conv2d(16, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
    block.conv2 = nn.Conv2d(5, 16, 3, padding=1, bias=False)
    model.timm_model.layer2[1].conv2 = LowRankConv2d(32, 32, 9, (3, 3), padding=(1, 1), bias=False, scheme="spatial")
    return hf_compress.track(_with_statistics(model))


def _with_statistics(model: nn.Module) -> nn.Module:
    """Let batch normalization fit the data, without which images hardly differ in their logits."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(**images())
    return model.eval()


def _narrow(layer: nn.Linear, rows=None, columns=None) -> nn.Linear:
    weight, bias = layer.weight.detach(), layer.bias.detach()
    if rows is not None:
        weight, bias = weight[list(rows)], bias[list(rows)]
    if columns is not None:
        weight = weight[:, list(columns)]
    narrow = nn.Linear(weight.shape[1], weight.shape[0])
    narrow.load_state_dict({"weight": weight, "bias": bias})
    return narrow


def _low_rank(layer: nn.Linear, rank: int) -> nn.Module:
    left, values, right = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    return LowRankLinear.from_factors(values[:rank, None] * right[:rank], left[:, :rank], layer.bias.detach())


def dataset(columns: dict[str, torch.Tensor]) -> Dataset:
    """Without labels, which calibration does not need."""
    return Dataset.from_dict({name: value.numpy() for name, value in columns.items()}).with_format("torch")


def texts() -> dict[str, torch.Tensor]:
    """Token ids, masks and segments, each of shape (48, 20), with 4 to 20 tokens an example."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 100, (EXAMPLES, 20), generator=generator)
    lengths = torch.randint(4, 21, (EXAMPLES,), generator=generator)
    mask = (torch.arange(20) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": (torch.arange(20) > 3).long() * mask}


def images() -> dict[str, torch.Tensor]:
    """Coarse patterns, of shape (48, 3, 32, 32): of fine noise every image has the same pooled features."""
    coarse = torch.randn(EXAMPLES, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": nn.functional.interpolate(coarse, size=32, mode="bilinear")}
