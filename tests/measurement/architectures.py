"""Small models with random weights, one an architecture, for the tests of this folder."""

from __future__ import annotations

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)


SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def bert(**overrides):
    return BertForSequenceClassification(BertConfig(**{**SMALL, **overrides}))


def roberta():
    return RobertaForSequenceClassification(
        RobertaConfig(**{**SMALL, "max_position_embeddings": 66}, type_vocab_size=1)
    )


def electra():
    return ElectraForSequenceClassification(ElectraConfig(**SMALL, embedding_size=16))


def distilbert():
    config = DistilBertConfig(vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64)
    return DistilBertForSequenceClassification(config)


def timm_wrapper(architecture: str, size: int = 32, num_labels: int = 10, **model_args):
    config = TimmWrapperConfig(architecture=architecture, model_args=model_args, num_labels=num_labels)
    config.pretrained_cfg = {"input_size": [3, size, size]}
    return TimmWrapperForImageClassification(config)


def timm_resnet():
    return timm_wrapper("resnet26", channels=(8, 16, 24, 32))


def timm_vit():
    return timm_wrapper("vit_tiny_patch16_224", img_size=32, embed_dim=24, num_heads=3, depth=2)


def vit():
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    return ViTForImageClassification(config)


TEXT = {"bert": bert, "roberta": roberta, "electra": electra, "distilbert": distilbert}
IMAGE = {"timm_resnet": timm_resnet, "timm_vit": timm_vit, "vit": vit}
ALL = {**TEXT, **IMAGE}


def build(name: str, seed: int = 0):
    """The architecture called `name`, in eval mode; normalization layers as different as those of a trained model."""
    torch.manual_seed(seed)
    model = ALL[name]().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)  # the default 0.02 leaves all logits alike
    return model


def batch_for(model, batch: int, length: int | None = None, seed: int = 1):
    """Random inputs with padding, segments and, for images, any content."""
    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=generator)}
    ids = torch.randint(5, 100, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, max(1, length - 2 * row) :] = 0
    inputs = {"input_ids": torch.where(mask.bool(), ids, 1 if model.config.model_type == "roberta" else 0)}
    inputs["attention_mask"] = mask
    if model.config.model_type in ("bert", "electra"):
        inputs["token_type_ids"] = (torch.arange(length) > length // 2).long().expand(batch, length).contiguous()
    return inputs
