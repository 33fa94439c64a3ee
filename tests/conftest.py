from __future__ import annotations

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import BertConfig, BertForSequenceClassification


# a busy machine says nothing about the code
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture
def tiny_bert():
    """A two-layer BERT classifier with random weights, in eval mode."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=2,
    )
    return BertForSequenceClassification(config).eval()


@pytest.fixture
def tiny_bert_batch():
    """Four labelled sentences of at most twelve tokens, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (4, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    mask[3, 4:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.tensor([0, 1, 1, 0])}


@pytest.fixture
def tiny_image_batch():
    """Four labelled 32 x 32 images."""
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(4, 3, 32, 32, generator=generator),
        "labels": torch.tensor([0, 3, 9, 1]),
    }


@pytest.fixture(params=["tiny_resnet_option_a", "tiny_resnet_option_b", "tiny_resnet_bottleneck"])
def tiny_resnet(request):
    """A small ResNet through TimmWrapper: CIFAR shortcuts A and B, and a stock timm bottleneck network."""
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    import hf_compress  # noqa: F401  (registers the CIFAR entries)

    architecture, model_args = {
        "tiny_resnet_option_a": ("resnet20_cifar", {"shortcut": "A"}),
        "tiny_resnet_option_b": ("resnet20_cifar", {"shortcut": "B"}),
        "tiny_resnet_bottleneck": ("resnet26", {"channels": (8, 16, 24, 32)}),
    }[request.param]
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture=architecture, model_args=model_args, num_labels=10)
    config.pretrained_cfg = {
        "input_size": [3, 32, 32],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    model = TimmWrapperForImageClassification(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # statistics and scales of a trained network differ between channels
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model
