"""Tiny models of every supported family, and each kind of change that surgery makes to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
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
)

from hf_compress.structure import Constant, LowRankConv2d, LowRankLinear, Removed


HEAD_SIZE = 8
ENCODERS = ("bert", "roberta", "distilbert", "electra")
RESNETS = ("resnet18", "resnet20_cifar")


def encoder(family: str, **overrides) -> nn.Module:
    common = {"vocab_size": 60, "max_position_embeddings": 40, "num_labels": 3}
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config, cls = {
        "bert": (BertConfig, BertForSequenceClassification),
        "roberta": (RobertaConfig, RobertaForSequenceClassification),
        "electra": (ElectraConfig, ElectraForSequenceClassification),
        "distilbert": (DistilBertConfig, DistilBertForSequenceClassification),
    }[family]
    if family == "distilbert":
        sizes = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}
    if family == "electra":
        sizes["embedding_size"] = 16
    torch.manual_seed(0)
    model = cls(config(**{**common, **sizes, **overrides}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)  # as in a trained model; a constant of zeros would hide mistakes
    return model.eval()


def timm_model(architecture: str, num_labels: int = 10, **model_args) -> nn.Module:
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture=architecture, model_args=model_args, num_labels=num_labels)
    model = TimmWrapperForImageClassification(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def resnext() -> nn.Module:
    return timm_model("resnet26", cardinality=4, base_width=16, channels=(8, 16, 24, 32))


def build(family: str) -> nn.Module:
    if family in ENCODERS:
        return encoder(family)
    return resnext() if family == "resnext" else timm_model(family)


def inputs_for(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    ids = torch.randint(5, 60, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


# --- surgery on single layers ---------------------------------------------------------------------------------------


def keep(module: nn.Module, out: list[int] | None = None, into: list[int] | None = None) -> None:
    """Keep some outputs or inputs of a linear layer or convolution, as pruning does."""
    names = ("out_features", "in_features") if isinstance(module, nn.Linear) else ("out_channels", "in_channels")
    with torch.no_grad():
        if out is not None:
            module.weight = nn.Parameter(module.weight[out].clone())
            if module.bias is not None:
                module.bias = nn.Parameter(module.bias[out].clone())
            setattr(module, names[0], len(out))
        if into is not None:
            module.weight = nn.Parameter(module.weight[:, into].clone())
            setattr(module, names[1], len(into))


def keep_normalized(norm: nn.BatchNorm2d, channels: list[int]) -> None:
    for name in ("weight", "bias"):
        setattr(norm, name, nn.Parameter(getattr(norm, name).detach()[channels].clone()))
    for name in ("running_mean", "running_var"):
        setattr(norm, name, getattr(norm, name)[channels].clone())
    norm.num_features = len(channels)


def factorize_linear(layer: nn.Linear, rank: int) -> LowRankLinear:
    u, s, v = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    return LowRankLinear.from_factors(v[:rank], u[:, :rank] * s[:rank], layer.bias)


def factorize_conv(layer: nn.Conv2d, rank: int, scheme: str) -> LowRankConv2d:
    torch.manual_seed(2)
    out, into, kh, kw = layer.weight.shape
    shapes = ((rank, into, kh, kw), (out, rank, 1, 1))
    if scheme == "spatial":
        shapes = ((rank, into, kh, 1), (out, rank, 1, kw))
    down, up = (torch.randn(shape) * 0.1 for shape in shapes)
    geometry = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    return LowRankConv2d.from_factors(down, up, layer.bias, scheme=scheme, **geometry)


# --- surgery on encoders --------------------------------------------------------------------------------------------


def layers_of(model: nn.Module) -> nn.ModuleList:
    base = model.base_model
    return base.transformer.layer if model.config.model_type == "distilbert" else base.encoder.layer


def attention_parts(layer: nn.Module) -> tuple[nn.Module, tuple[str, str, str], tuple[nn.Module, str]]:
    """The attention module, the names of its projections, and where its output projection hangs."""
    if hasattr(layer, "ffn"):
        return layer.attention, ("q_lin", "k_lin", "v_lin"), (layer.attention, "out_lin")
    return layer.attention.self, ("query", "key", "value"), (layer.attention.output, "dense")


def neuron_parts(layer: nn.Module) -> tuple[tuple[nn.Module, str], tuple[nn.Module, str]]:
    if hasattr(layer, "ffn"):
        return (layer.ffn, "lin1"), (layer.ffn, "lin2")
    return (layer.intermediate, "dense"), (layer.output, "dense")


def keep_heads(layer: nn.Module, heads: list[int]) -> None:
    attention, names, (owner, output) = attention_parts(layer)
    units = [head * HEAD_SIZE + unit for head in heads for unit in range(HEAD_SIZE)]
    for name in names:
        keep(getattr(attention, name), out=units)
    keep(getattr(owner, output), into=units)
    if hasattr(attention, "n_heads"):
        attention.n_heads, attention.dim = len(heads), len(units)
    else:
        attention.num_attention_heads, attention.all_head_size = len(heads), len(units)


def keep_neurons(layer: nn.Module, neurons: list[int]) -> None:
    (first, a), (second, b) = neuron_parts(layer)
    keep(getattr(first, a), out=neurons)
    keep(getattr(second, b), into=neurons)


def remove_heads(layer: nn.Module) -> None:
    if hasattr(layer, "ffn"):
        layer.attention = Constant.replacing(layer.attention, layer.attention.out_lin.bias)
    else:
        layer.attention.output.dense = Constant.replacing(layer.attention.output.dense)
        layer.attention.self = Removed.replacing(layer.attention.self)


def remove_neurons(layer: nn.Module) -> None:
    if hasattr(layer, "ffn"):
        layer.ffn.lin1, layer.ffn.lin2 = Removed.replacing(layer.ffn.lin1), Constant.replacing(layer.ffn.lin2)
    else:
        layer.intermediate = Removed.replacing(layer.intermediate)
        layer.output.dense = Constant.replacing(layer.output.dense)


def factorize_layer(layer: nn.Module, rank: int) -> None:
    attention, names, output = attention_parts(layer)
    for owner, name in [(attention, name) for name in names] + [output, *neuron_parts(layer)]:
        setattr(owner, name, factorize_linear(getattr(owner, name), rank))


def heads(model):
    keep_heads(layers_of(model)[0], [0, 2, 3])
    keep_heads(layers_of(model)[1], [1])


def neurons(model):
    keep_neurons(layers_of(model)[0], list(range(1, 20)))
    keep_neurons(layers_of(model)[2], [5])


def no_heads(model):
    remove_heads(layers_of(model)[1])


def no_neurons(model):
    remove_neurons(layers_of(model)[0])


def low_rank(model):
    factorize_layer(layers_of(model)[0], 5)
    factorize_layer(layers_of(model)[2], 1)


def low_rank_on_pruned(model):
    heads(model)
    neurons(model)
    factorize_layer(layers_of(model)[0], 4)


def no_layer(model):
    layers_of(model)[1] = Removed.replacing(layers_of(model)[1])


def everything(model):
    keep_heads(layers_of(model)[0], [0, 2])
    factorize_layer(layers_of(model)[0], 4)
    remove_heads(layers_of(model)[1])
    remove_neurons(layers_of(model)[1])
    layers_of(model)[2] = Removed.replacing(layers_of(model)[2])


# --- surgery on ResNets ---------------------------------------------------------------------------------------------


def channels(model):
    """Ragged widths inside blocks, and a narrower last stage with its shortcut and classifier."""
    net = model.timm_model
    for stage, block, kept in ((1, 0, 11), (1, 1, 3), (2, 1, 20)):
        block = getattr(net, f"layer{stage}")[block]
        units = list(range(1, kept + 1))
        keep(block.conv1, out=units)
        keep_normalized(block.bn1, units)
        keep(block.conv2, into=units)
    last = getattr(net, "layer4", None) or net.layer3
    units = list(range(last[-1].conv2.out_channels - 5))
    for index, block in enumerate(last):
        if index:
            keep(block.conv1, into=units)
        keep(block.conv2, out=units)
        keep_normalized(block.bn2, units)
    shortcut = last[0].downsample
    if isinstance(shortcut, nn.Sequential):
        keep(shortcut[0], out=units)
        keep_normalized(shortcut[1], units)
    else:
        shortcut.out_channels = len(units)
    keep(net.fc, into=units)
    net.num_features = net.head_hidden_size = len(units)


def groups(model):
    """One of four groups taken out of a grouped convolution."""
    block = model.timm_model.layer2[0]
    width = block.conv2.out_channels
    units = list(range(width // 4, width))
    keep(block.conv1, out=units)
    keep_normalized(block.bn1, units)
    keep(block.conv2, out=units)
    block.conv2.groups, block.conv2.in_channels = 3, len(units)
    keep_normalized(block.bn2, units)
    keep(block.conv3, into=units)


def low_rank_channel(model):
    for block in model.timm_model.layer2:
        block.conv1 = factorize_conv(block.conv1, 4, "channel")


def low_rank_spatial(model):
    for block in model.timm_model.layer2:
        block.conv1, block.conv2 = (factorize_conv(conv, 3, "spatial") for conv in (block.conv1, block.conv2))


def low_rank_channels_on_pruned(model):
    channels(model)
    low_rank_spatial(model)
    net = model.timm_model
    net.layer1[0].conv2 = factorize_conv(net.layer1[0].conv2, 3, "channel")
    net.fc = factorize_linear(net.fc, 2)


def no_block(model):
    model.timm_model.layer1[1] = Removed.replacing(model.timm_model.layer1[1])


ENCODER_CHANGES = (heads, neurons, no_heads, no_neurons, low_rank, low_rank_on_pruned, no_layer, everything)
RESNET_CHANGES = (channels, low_rank_channel, low_rank_spatial, low_rank_channels_on_pruned, no_block)

CASES: dict[str, tuple[str, Callable]] = {
    **{f"{family}-{change.__name__}": (family, change) for family in ENCODERS for change in ENCODER_CHANGES},
    **{f"{family}-{change.__name__}": (family, change) for family in RESNETS for change in RESNET_CHANGES},
    "resnext-groups": ("resnext", groups),
}


def make(case: str) -> nn.Module:
    family, change = CASES[case]
    model = build(family)
    change(model)
    return model


@torch.no_grad()
def logits_of(model: nn.Module) -> torch.Tensor:
    return logits_of_any(model, model)


@torch.no_grad()
def logits_of_any(callable_model: nn.Module, model: nn.Module) -> torch.Tensor:
    """The logits that `callable_model`, such as a wrapper, gives for the inputs of `model`."""
    inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs_for(model).items()}
    return callable_model(**inputs).logits
