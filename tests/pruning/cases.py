"""Tiny models of every architecture that can be pruned, with random weights, and inputs for them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

import hf_compress  # noqa: F401  (registers the CIFAR networks)


ENCODERS = ("bert", "roberta", "distilbert", "electra")
NETWORKS = {
    "option_a": ("resnet20_cifar", {"shortcut": "A"}),
    "option_b": ("resnet20_cifar", {"shortcut": "B"}),
    "bottleneck": ("resnet26", {"channels": (8, 16, 24, 32)}),
}
ALL = (*ENCODERS, *NETWORKS)

SHAPE = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
}
DISTILBERT_SHAPE = {
    "vocab_size": 100,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 66,
}


def make(case: str, headless: bool = False, **config) -> nn.Module:
    """The model of a case, in eval mode, with nothing left at zero or one that a trained model would have changed."""
    model = _network(*NETWORKS[case]) if case in NETWORKS else _encoder(case, headless, config)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(std=0.2, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        if getattr(module, "bias", None) is not None:
            module.bias.data.normal_(std=0.1, generator=generator)
    return model.eval()


def _encoder(model_type: str, headless: bool, extra: dict) -> nn.Module:
    configs = {
        "bert": lambda: BertConfig(**{**SHAPE, **extra}),
        "roberta": lambda: RobertaConfig(**{**SHAPE, **extra}),
        "electra": lambda: ElectraConfig(**{**SHAPE, "embedding_size": 16, **extra}),
        "distilbert": lambda: DistilBertConfig(**{**DISTILBERT_SHAPE, **extra}),
    }
    torch.manual_seed(0)
    return (AutoModel if headless else AutoModelForSequenceClassification).from_config(configs[model_type]())


def _network(architecture: str, model_args: dict) -> nn.Module:
    return timm_network(architecture, **model_args)


def timm_network(architecture: str, **model_args) -> nn.Module:
    """Any timm network with ten classes on 32 x 32 images."""
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture=architecture, model_args=model_args, num_labels=10)
    config.pretrained_cfg = {
        "input_size": [3, 32, 32],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    return TimmWrapperForImageClassification(config).eval()


def inputs_for(model: nn.Module) -> dict[str, torch.Tensor]:
    """Three examples, the texts among them padded."""
    generator = torch.Generator().manual_seed(2)
    if hasattr(model, "timm_model"):
        return {"pixel_values": torch.randn(3, 3, 32, 32, generator=generator)}
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[1, 7:] = 0
    ids = torch.randint(5, 100, (3, 12), generator=generator)
    return {"input_ids": ids * mask + (1 - mask), "attention_mask": mask}


def output_of(model: nn.Module) -> torch.Tensor:
    """Logits, or the hidden states of a model without a head."""
    with torch.no_grad():
        return model(**inputs_for(model))[0]


def reload(model: nn.Module, folder: Path) -> nn.Module:
    """A model with a head, saved in `folder` and loaded from there."""
    model.save_pretrained(folder)
    auto = AutoModelForImageClassification if hasattr(model, "timm_model") else AutoModelForSequenceClassification
    return auto.from_pretrained(folder).eval()


def random_selection(groups, seed: int, keep_one: bool = True) -> dict[str, torch.Tensor]:
    """Some units of each group, a different share in each."""
    generator = torch.Generator().manual_seed(seed)
    selection = {}
    for group in groups:
        keep = torch.rand(group.size, generator=generator) < torch.rand(1, generator=generator)
        if not keep.any() and (keep_one or group.minimum):
            keep[torch.randint(group.size, (1,), generator=generator)] = True
        selection[group.name] = keep
    return selection


def examples_for(model: nn.Module, count: int = 24, seed: int = 3) -> dict:
    """`data` and `collate_fn` for a verb: labelled examples of one length, the texts among them padded."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    if hasattr(model, "timm_model"):
        columns = {"pixel_values": torch.randn(count, 3, 32, 32, generator=generator)}
    else:
        mask = (torch.arange(12) < torch.randint(6, 13, (count, 1), generator=generator)).long()
        ids = torch.randint(5, 100, (count, 12), generator=generator)
        columns = {"input_ids": ids * mask + (1 - mask), "attention_mask": mask}
    rows = [{name: values[i] for name, values in columns.items()} | {"labels": labels[i]} for i in range(count)]

    def collate(rows: list[dict]) -> dict:
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    return {"data": rows, "collate_fn": collate}
