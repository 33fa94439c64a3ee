from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertForMultipleChoice

from hf_compress.errors import CompressionError, UnsupportedModelError
from hf_compress.measurement import count, encoder_modules, example_inputs

from .architectures import ALL, batch_for, bert, build, distilbert, timm_wrapper


def bert_encoder_macs(config, tokens: int) -> int:
    width, inner = config.hidden_size, config.intermediate_size
    layer = tokens * (4 * width * width + 2 * width * inner) + 2 * tokens * tokens * width
    return config.num_hidden_layers * layer


def bert_macs(config, tokens: int) -> int:
    return bert_encoder_macs(config, tokens) + config.hidden_size**2 + config.hidden_size * config.num_labels


@pytest.mark.parametrize("tokens", [1, 16, 64])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bert_agrees_with_the_closed_formula(tokens, attention):
    model = bert(attn_implementation=attention)
    cost = count(model, length=tokens)
    assert cost.macs == bert_macs(model.config, tokens)
    assert cost.encoder_macs == bert_encoder_macs(model.config, tokens)
    assert cost.params == sum(parameter.numel() for parameter in model.parameters())
    assert cost.encoder_params == sum(parameter.numel() for parameter in model.bert.encoder.parameters())


@pytest.mark.parametrize(("depth", "millions"), [(20, 40.8), (56, 125.7)])
def test_cifar_resnets_agree_with_their_published_cost(depth, millions):
    import hf_compress.models  # noqa: F401  (registers the entries)

    model = timm_wrapper(f"resnet{depth}_cifar", shortcut="A")
    cost = count(model)
    blocks = (depth - 2) // 6
    stem, pixels = 27 * 16 * 1024, 1024
    first = 2 * blocks * 9 * 16 * 16 * pixels
    second = (9 * 16 * 32 + (2 * blocks - 1) * 9 * 32 * 32) * pixels // 4
    third = (9 * 32 * 64 + (2 * blocks - 1) * 9 * 64 * 64) * pixels // 16
    assert cost.macs == stem + first + second + third + 640
    assert cost.encoder_macs == first + second + third
    assert round(cost.macs / 1e6, 1) == pytest.approx(millions, abs=0.4)


def test_pruned_and_factorized_layers_count_as_what_they_are():
    model = bert()
    width, inner, tokens = model.config.hidden_size, model.config.intermediate_size, 16
    dense = count(model, length=tokens)
    layer = model.bert.encoder.layer[0]
    layer.intermediate.dense, layer.output.dense = nn.Linear(width, 24), nn.Linear(24, width)
    pruned = count(model, length=tokens)
    assert dense.macs - pruned.macs == dense.encoder_macs - pruned.encoder_macs == tokens * 2 * width * (inner - 24)

    query = model.bert.encoder.layer[1].attention.self
    query.query = nn.Sequential(nn.Linear(width, 5, bias=False), nn.Linear(5, width))
    factorized = count(model, length=tokens)
    assert pruned.macs - factorized.macs == tokens * (width * width - 2 * 5 * width)
    assert pruned.params - factorized.params == width * width - 2 * 5 * width
    assert pruned.encoder_params - factorized.encoder_params == width * width - 2 * 5 * width


def test_low_rank_modules_of_the_package():
    from hf_compress.structure import LowRankLinear

    model = bert()
    dense = count(model, length=8)
    model.bert.encoder.layer[0].intermediate.dense = LowRankLinear(32, 64, 7)
    cost = count(model, length=8)
    assert dense.macs - cost.macs == 8 * (32 * 64 - 7 * (32 + 64))
    assert dense.params - cost.params == 32 * 64 - 7 * (32 + 64)  # the zero-size seal counts as nothing


def test_removed_sub_layers_cost_nothing():
    from hf_compress.structure import Constant, Removed

    model, tokens = bert(), 16
    width, inner = model.config.hidden_size, model.config.intermediate_size
    dense = count(model, length=tokens)
    first, second = model.bert.encoder.layer
    first.attention.self = Removed("query.weight", "tuple")
    first.attention.output.dense = Constant(width)
    second.intermediate, second.output.dense = Removed("dense.weight"), Constant(width)
    cost = count(model, length=tokens)
    removed = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * inner
    assert dense.macs - cost.macs == dense.encoder_macs - cost.encoder_macs == removed


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "timm_resnet", "timm_vit"])
def test_meta_device_and_frozen_models_cost_the_same(name):
    model = build(name)
    cost = count(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert count(model) == cost
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    assert skeleton.device.type == "meta"
    assert cost.nonzero_params == sum(int(parameter.count_nonzero()) for parameter in model.parameters())
    found = count(skeleton)
    assert found.nonzero_params is None
    assert (found.macs, found.params, found.encoder_macs, found.encoder_params) == (
        cost.macs,
        cost.params,
        cost.encoder_macs,
        cost.encoder_params,
    )


@pytest.mark.parametrize("name", ALL)
def test_batches_are_counted_by_the_example(name):
    model = build(name)
    one = count(model, batch_for(model, 1, 9))
    assert count(model, batch_for(model, 5, 9)) == one
    assert count(model, {**batch_for(model, 5, 9), "labels": torch.zeros(5, dtype=torch.long)}) == one
    assert 0 < one.encoder_macs <= one.macs
    assert 0 < one.encoder_params < one.params


@pytest.mark.parametrize("name", ["bert", "timm_resnet"])
def test_model_is_not_altered(name):
    model = build(name).train()
    next(model.children()).eval()
    next(model.parameters()).requires_grad_(False)
    requires = [parameter.requires_grad for parameter in model.parameters()]
    flags = [module.training for module in model.modules()]
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    count(model)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == requires
    assert torch.equal(torch.get_rng_state(), random_state)

    with pytest.raises((TypeError, ValueError)):
        count(model, {"nonsense": torch.zeros(1)})
    assert [parameter.requires_grad for parameter in model.parameters()] == requires
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_zeros_and_shared_parameters():
    model = bert()
    nonzero, params = count(model).nonzero_params, count(model).params
    weight = model.bert.encoder.layer[0].output.dense.weight
    with torch.no_grad():
        weight[:10] = 0
    assert count(model).nonzero_params == nonzero - 10 * weight.shape[1]
    assert count(model).params == params
    model.bert.encoder.layer[1].output.dense.weight = weight
    assert count(model).params == params - weight.numel()


def test_encoder_is_found():
    model = build("bert")
    assert encoder_modules(model) == list(model.bert.encoder.layer)
    assert encoder_modules(model.bert) == list(model.bert.encoder.layer)
    assert encoder_modules(distilbert())[0].__class__.__name__ == "TransformerBlock"
    resnet = build("timm_resnet").timm_model
    assert encoder_modules(build("timm_resnet"))[0].__class__ is nn.Sequential
    assert encoder_modules(resnet) == [resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
    assert len(encoder_modules(build("timm_vit"))) == len(encoder_modules(build("vit"))) == 2


def test_encoder_of_an_unknown_architecture():
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.inner = nn.Linear(width, width)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.small = nn.ModuleList([Block(2), Block(2), Block(2)])
            self.large = nn.Sequential(Block(8), nn.ReLU(), Block(8))
            self.head = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))

    network = Network()
    assert encoder_modules(network) == list(network.large)
    with pytest.raises(CompressionError, match="repeated blocks"):
        encoder_modules(network.head)


def test_exported_models_are_refused():
    with pytest.raises(UnsupportedModelError, match="torch model it was exported from"):
        count(object())


def test_example_inputs():
    model = build("bert")
    assert example_inputs(model)["input_ids"].shape == (1, 64)  # no more than its positions
    inputs = example_inputs(model, batch=3, length=5)
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (3, 5)
    )
    assert torch.equal(inputs["input_ids"], example_inputs(model, batch=3, length=5)["input_ids"])
    assert not (inputs["input_ids"] == model.config.pad_token_id).any()
    assert list(example_inputs(build("roberta"))) == ["input_ids", "attention_mask"]
    assert example_inputs(build("timm_resnet"), batch=2)["pixel_values"].shape == (2, 3, 32, 32)
    assert example_inputs(build("vit"))["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("bert", {"length": 65}, "1 to 64"),
        ("roberta", {"length": 65}, "1 to 64"),
        ("bert", {"length": 0}, "1 to 64"),
        ("bert", {"batch": 0}, "batch"),
        ("timm_resnet", {"length": 8}, "images"),
    ],
)
def test_impossible_inputs_are_refused(name, arguments, message):
    with pytest.raises(CompressionError, match=message):
        example_inputs(build(name), **arguments)


def test_a_head_that_reads_several_texts_is_refused_by_name():
    model = BertForMultipleChoice(bert().config)
    with pytest.raises(CompressionError, match="BertForMultipleChoice reads several texts"):
        count(model)
