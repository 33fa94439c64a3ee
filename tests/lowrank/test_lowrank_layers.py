from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_compress.errors import RecipeError
from hf_compress.lowrank import decompose
from hf_compress.lowrank.layers import Layer, find_layers, observe, replace
from hf_compress.lowrank.ranks import candidate_ranks
from hf_compress.measurement import count, encoder_modules
from hf_compress.structure import LowRankConv2d, LowRankLinear


class Counting:
    """The part of a context that `observe` needs."""

    def cost(self, model):
        return count(model)


def layer_of(module, scheme):
    return Layer("layer", module, (scheme,))


def factorized(layer, scheme, rank):
    matrix = layer.matrix(scheme)
    down, up = decompose(matrix).factors(matrix, rank)
    return layer.replacement(scheme, down, up, layer.module.bias), down, up


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
convolutions = st.fixed_dictionaries(
    {
        "in_channels": st.integers(1, 6),
        "out_channels": st.integers(1, 6),
        "kernel_size": pairs,
        "stride": pairs,
        "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "bias": st.booleans(),
    }
)


@settings(max_examples=80, deadline=None)
@given(convolutions, st.sampled_from(["spatial", "channel"]), st.integers(0, 1000), st.integers(1, 18))
def test_convolution_at_full_rank_and_at_any_other(geometry, scheme, seed, rank):
    """Full rank computes the same; a lower one computes what its kernel, put together by hand, does."""
    torch.manual_seed(seed)
    module = nn.Conv2d(**geometry)
    layer = layer_of(module, scheme)
    images = torch.randn(2, geometry["in_channels"], 9, 8)
    with torch.no_grad():
        expected = module(images)
        full, *_ = factorized(layer, scheme, layer.full_rank(scheme))
        assert torch.allclose(full(images), expected, atol=1e-5)

        rank = min(rank, layer.full_rank(scheme))
        new, down, up = factorized(layer, scheme, rank)
        if scheme == "channel":
            kernel = torch.einsum("riyx,or->oiyx", new.down.weight, new.up.weight[:, :, 0, 0])
        else:
            kernel = torch.einsum("riy,orx->oiyx", new.down.weight[..., 0], new.up.weight[:, :, 0])
        dense = copy.deepcopy(module)
        dense.weight.copy_(kernel)
        assert torch.allclose(new(images), dense(images), atol=1e-5)
        assert torch.allclose(layer.rebuilt(scheme, down, up), kernel.flatten(1), atol=1e-6)
        error = (module.weight - kernel).square().sum().double()
    assert float(error) == pytest.approx(float(decompose(layer.matrix(scheme)).errors[rank]), abs=1e-5)
    assert (new.up.bias is None) == (module.bias is None)


@pytest.mark.parametrize("padding", ["same", "valid", 1])
@pytest.mark.parametrize("scheme", ["spatial", "channel"])
def test_padding_by_word(padding, scheme):
    module = nn.Conv2d(4, 5, (3, 2), padding=padding, dilation=(2, 1))
    layer = layer_of(module, scheme)
    images = torch.randn(2, 4, 9, 8)
    new, *_ = factorized(layer, scheme, layer.full_rank(scheme))
    assert torch.allclose(new(images), module(images), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.booleans(), st.integers(0, 1000))
def test_linear_at_full_rank(width_in, width_out, bias, seed):
    torch.manual_seed(seed)
    module = nn.Linear(width_in, width_out, bias=bias).eval().requires_grad_(False)
    new, *_ = factorized(layer_of(module, "linear"), "linear", min(width_in, width_out))
    inputs = torch.randn(2, 3, width_in)
    assert isinstance(new, LowRankLinear) and not new.training and not new.down.weight.requires_grad
    assert torch.allclose(new(inputs), module(inputs), atol=1e-5)


def test_channel_scheme_is_tensorly_partial_tucker_of_the_outputs():
    import tensorly
    from tensorly.decomposition import partial_tucker

    torch.manual_seed(0)
    module = nn.Conv2d(7, 9, 3, bias=False)
    new, *_ = factorized(layer_of(module, "channel"), "channel", 4)
    kernel = torch.einsum("riyx,or->oiyx", new.down.weight, new.up.weight[:, :, 0, 0]).detach().numpy()
    weight = module.weight.detach().numpy()
    (core, factors), _ = partial_tucker(weight, rank=[4], modes=[0], init="svd")
    expected = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0])
    assert abs(kernel - expected).max() < 1e-4


@settings(max_examples=60, deadline=None)
@given(convolutions, st.integers(1, 9))
def test_costs_are_those_of_the_real_modules(geometry, rank):
    geometry = {**geometry, "bias": False}
    module = nn.Conv2d(**geometry)
    images = torch.randn(1, geometry["in_channels"], 12, 10)
    model = nn.Sequential(module)

    class Flops:
        def cost(self, model):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model(images)
            return counter.get_total_flops() // 2

    layer = Layer("0", module, ("spatial", "channel"))
    assert observe(model, [layer], Flops()) == layer.macs
    for scheme in layer.schemes:
        assume(rank <= layer.full_rank(scheme))
        new, *_ = factorized(layer, scheme, rank)
        assert layer.cost("params", scheme, rank) == sum(p.numel() for p in new.parameters())
        assert layer.cost("macs", scheme, rank) == Flops().cost(new)
        largest = layer.max_rank(scheme)
        fits = [
            layer.cost("params", scheme, r) < layer.params and layer.cost("macs", scheme, r) < layer.macs
            for r in range(1, layer.full_rank(scheme) + 1)
        ]
        assert largest == sum(fits) and fits == sorted(fits, reverse=True)


def test_candidates_are_multiples_below_break_even():
    layer = Layer("x", nn.Linear(64, 64), ("linear",), outputs=1.0)
    assert candidate_ranks(layer, 8) == {"linear": [8, 16, 24]}
    assert candidate_ranks(layer, 10) == {"linear": [10, 20, 30]}
    assert candidate_ranks(layer, rank=31) == {"linear": [31]}
    assert candidate_ranks(layer, rank=32) == {}  # exactly break-even: nothing gained
    assert candidate_ranks(layer, 32) == {}


def test_finds_the_encoder_of_bert_and_leaves_head_pooler_and_embeddings(tiny_bert):
    layers, dense = find_layers(tiny_bert)
    assert len(layers) == 12 and all(layer.name.startswith("bert.encoder.layer.") for layer in layers)
    assert dense == {"bert.pooler.dense": "pooler", "classifier": "task head"}
    with_head, _ = find_layers(tiny_bert, head=True)
    assert {"classifier", "bert.pooler.dense"} < {layer.name for layer in with_head}
    layers, dense = find_layers(tiny_bert, exclude=["*.attention", "bert.encoder.layer.0.*.dense"])
    assert [layer.name for layer in layers] == [
        f"bert.encoder.layer.1.{part}.dense" for part in ("intermediate", "output")
    ]
    assert dense["bert.encoder.layer.0.attention.self.query"] == "excluded"
    with pytest.raises(RecipeError, match="'\\*.attn'"):
        find_layers(tiny_bert, exclude=["*.attn"])


def test_finds_the_convolutions_of_timm_networks(tiny_resnet):
    layers, dense = find_layers(tiny_resnet)
    convolutions = [name for name, module in tiny_resnet.named_modules() if isinstance(module, nn.Conv2d)]
    assert [layer.name for layer in layers] == convolutions
    assert set(dense.values()) == {"task head"} and len(dense) == 1
    pointwise = [layer for layer in layers if layer.module.kernel_size == (1, 1)]
    assert all(layer.schemes == ("channel",) for layer in pointwise)
    inside, outside = find_layers(tiny_resnet, scheme="spatial", within=encoder_modules(tiny_resnet))
    assert outside["timm_model.conv1"] == "outside the encoder" and len(inside) == len(layers) - 1


def test_leaves_alone_what_it_cannot_replace_and_says_why():
    class Special(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "plain": nn.Linear(4, 4),
            "special": Special(4, 4),
            "grouped": nn.Conv2d(4, 4, 3, groups=2),
            "circular": nn.Conv2d(4, 4, 3, padding_mode="circular"),
            "hooked": nn.Linear(4, 4),
            "table": nn.Embedding(4, 4),
            "tied": nn.Linear(4, 4),
            "done": LowRankLinear(4, 4, 1),
            "convolved": LowRankConv2d(4, 4, 1, 3),
        }
    )
    model["hooked"].register_forward_hook(lambda *_: None)
    model["tied"].weight = model["table"].weight
    layers, dense = find_layers(model)
    assert [layer.name for layer in layers] == ["plain"]
    assert set(dense) == {"special", "grouped", "circular", "hooked", "tied"}
    assert "shared" in dense["tied"] and "Special" in dense["special"]


def test_observes_how_often_a_layer_works(tiny_bert, tiny_resnet):
    for model in (tiny_bert, tiny_resnet):
        layers, _ = find_layers(model, head=True)
        cost = observe(model, layers, Counting())
        assert cost == count(model)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    # everything a convolutional network does is in these layers
    assert sum(layer.macs for layer in layers) == cost.macs


def test_a_layer_used_at_two_places_is_replaced_at_both_and_counted_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(16, 16)
            self.again = self.first

        def forward(self, values):
            return self.again(self.first(values))

    class Flops:
        def cost(self, model):
            model(torch.zeros(2, 5, 16))

    model = Twice()
    (layer,), _ = find_layers(model)
    observe(model, [layer], Flops())
    assert layer.outputs == 2 * 5
    new, *_ = factorized(layer, "linear", 4)
    replace(model, layer, new)
    assert model.first is new and model.again is new
