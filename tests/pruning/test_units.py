"""A masked model computes what the model without the masked units computes, whatever the units are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from hf_compress.errors import UnsupportedModelError
from hf_compress.pruning import find_units, masked, shrink
from hf_compress.pruning.units import full_selection, is_depthwise, side_size
from hf_compress.structure import Constant, LowRankConv2d, LowRankLinear, Removed, describe

from . import cases


def assert_same_when_cut(model, groups, selection):
    """Mask, then cut, and compare; returns the smaller model and its groups."""
    with masked(model, groups, selection):
        expected = cases.output_of(model)
    small = copy.deepcopy(model)
    left = shrink(small, groups, selection)
    torch.testing.assert_close(cases.output_of(small), expected, atol=1e-5, rtol=1e-5)
    return small, left


@pytest.mark.parametrize("case", cases.ALL)
def test_masked_equals_shrunken(case):
    model = cases.make(case)
    dense = cases.output_of(model)
    groups = find_units(model).groups
    for seed in range(3):
        selection = cases.random_selection(groups, seed, keep_one=seed < 2)
        small, left = assert_same_when_cut(model, groups, selection)
        assert (cases.output_of(small) - dense).abs().max() > 1e-3  # something was cut
        assert {group.name: group.size for group in left} == {
            name: int(keep.sum()) for name, keep in selection.items() if keep.any()
        }
    assert torch.equal(cases.output_of(model), dense)  # nothing stayed behind


@pytest.mark.parametrize("case", cases.ENCODERS)
def test_masked_equals_shrunken_without_head(case):
    model = cases.make(case, headless=True)
    groups = find_units(model).groups
    assert_same_when_cut(model, groups, cases.random_selection(groups, 0))


@pytest.mark.parametrize("case", cases.ALL)
def test_groups_left_over_are_those_found_anew(case):
    model = cases.make(case)
    groups = find_units(model).groups
    small, left = assert_same_when_cut(model, groups, cases.random_selection(groups, 5))
    again = {group.name: group for group in find_units(small).groups if group.size > 1}
    left = {group.name: group for group in left if group.size > 1}
    assert left.keys() == again.keys()
    for name, group in left.items():
        mine = {(part.module, part.side): part.index.tolist() for part in group.slices}
        assert mine == {(part.module, part.side): part.index.tolist() for part in again[name].slices}
    # and they can be cut again, with positions that closed up
    assert_same_when_cut(small, list(left.values()), cases.random_selection(left.values(), 6))


@pytest.mark.parametrize("case", cases.ALL)
def test_groups_are_disjoint_and_within_their_modules(case):
    model = cases.make(case)
    taken = set()
    for group in find_units(model).groups:
        assert group.consumers
        for part in group.slices:
            assert part.index.shape[0] == group.size
            module = model.get_submodule(part.module)
            places = {(part.module, part.side, position) for position in part.index.flatten().tolist()}
            assert len(places) == part.index.numel() and not places & taken
            assert max(position for *_, position in places) < side_size(module, part.side)
            taken |= places


def test_residual_stream_and_classifier_of_each_network():
    kinds = {}
    for case in cases.NETWORKS:
        model = cases.make(case)
        inventory = find_units(model)
        kinds[case] = {group.name.removeprefix("timm_model.") for group in inventory.groups}
        assert inventory.kept["timm_model.fc"] == "it makes the predictions"
        selection = cases.random_selection(inventory.groups, 0)
        small, _ = assert_same_when_cut(model, inventory.groups, selection)
        fc = small.timm_model.fc
        assert fc.out_features == 10
        assert all(
            module.num_features == module.weight.numel() == module.running_var.numel()
            for module in small.modules()
            if isinstance(module, nn.BatchNorm2d)
        )
        if case == "option_a":
            # the padding shortcuts hold the residual stream at 16, 32 and 64 channels
            assert fc.in_features == 64 and small.timm_model.conv1.out_channels == 16
        else:
            assert fc.in_features < model.timm_model.fc.in_features
    assert kinds["option_a"] == {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)}
    assert "conv1" in kinds["option_b"] and len(kinds["option_b"]) == 12
    assert {"layer1.0.conv1", "layer1.0.conv2", "conv1"} <= kinds["bottleneck"]


def emptied(groups, kind, blocks):
    """Everything but the units of one kind in some of the layers."""
    selection = full_selection(groups)
    for group in groups:
        if group.kind == kind and any(f".{block}" in group.block for block in blocks):
            selection[group.name][:] = False
    return selection


@pytest.mark.parametrize("case", cases.ENCODERS)
@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_layers_without_any_head_or_neuron(case, kind):
    model = cases.make(case)
    groups = find_units(model).groups
    for blocks in ([1], [0, 1]):
        small, left = assert_same_when_cut(model, groups, emptied(groups, kind, blocks))
        stand_ins = [module for module in small.modules() if isinstance(module, Constant)]
        assert len(stand_ins) == len(blocks)
        one_module = case == "distilbert" and kind == "heads"
        assert sum(isinstance(m, Removed) for m in small.modules()) == (0 if one_module else len(blocks))
        assert sum(group.kind == kind for group in left) == 2 - len(blocks)
        # nothing is left to be found there, and the rest goes on being pruned
        rest = find_units(small).groups
        assert {group.name for group in rest} == {group.name for group in left}
        assert_same_when_cut(small, rest, cases.random_selection(rest, 1))


@pytest.mark.parametrize("case", cases.ENCODERS)
def test_encoder_without_any_unit(case):
    model = cases.make(case)
    groups = find_units(model).groups
    nothing = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in groups}
    small, left = assert_same_when_cut(model, groups, nothing)
    assert left == []
    small.train()
    loss = small(**cases.inputs_for(small), labels=torch.tensor([0, 1, 1])).loss
    loss.backward()
    describe(small)


@pytest.mark.parametrize("case", cases.ENCODERS)
def test_attributes_of_ragged_heads(case):
    model = cases.make(case)
    groups = find_units(model, neurons=False).groups
    selection = full_selection(groups)
    selection[groups[0].name][[0, 2]] = False
    selection[groups[1].name][[1]] = False
    small, _ = assert_same_when_cut(model, groups, selection)
    for group, heads in zip(groups, (2, 3), strict=True):
        attention = small.get_submodule(group.name)
        count = attention.n_heads if case == "distilbert" else attention.num_attention_heads
        width = attention.dim if case == "distilbert" else attention.all_head_size
        assert (count, width, attention.attention_head_size) == (heads, 8 * heads, 8)


def test_masks_have_gradients_and_may_be_soft():
    model = cases.make("bert")
    groups = find_units(model).groups
    masks = {group.name: torch.full((group.size,), 0.5, requires_grad=True) for group in groups}
    with masked(model, groups, masks):
        model(**cases.inputs_for(model)).logits.square().sum().backward()
    assert all(mask.grad is not None and mask.grad.abs().sum() > 0 for mask in masks.values())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hooks_go_after_an_error():
    model = cases.make("option_b")
    groups = find_units(model).groups
    with pytest.raises(ZeroDivisionError), masked(model, groups, full_selection(groups)):
        raise ZeroDivisionError
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("case", ["bert", "distilbert"])
def test_low_rank_layers_are_cut_through_their_factors(case):
    model = cases.make(case)
    block = "bert.encoder.layer.0" if case == "bert" else "distilbert.transformer.layer.0"
    names = {
        "bert": ("attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense"),
        "distilbert": ("attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"),
    }[case]
    for name in names:
        dense = model.get_submodule(f"{block}.{name}")
        u, s, v = torch.linalg.svd(dense.weight.detach(), full_matrices=False)
        model.set_submodule(
            f"{block}.{name}", LowRankLinear.from_factors(v[:6], u[:, :6] * s[:6], dense.bias.detach())
        )
    groups = find_units(model).groups
    assert_same_when_cut(model, groups, cases.random_selection(groups, 0))
    for kind in ("heads", "neurons"):
        small, _ = assert_same_when_cut(model, groups, emptied(groups, kind, [0]))
        describe(small)


@pytest.mark.parametrize("scheme", ["spatial", "channel"])
def test_low_rank_convolutions_are_cut_through_their_factors(scheme):
    model = cases.make("option_b")
    for name in ("timm_model.layer1.0.conv1", "timm_model.layer1.0.conv2", "timm_model.layer2.0.conv2"):
        dense = model.get_submodule(name)
        low_rank = LowRankConv2d(
            dense.in_channels, dense.out_channels, 6, 3, dense.stride, 1, bias=False, scheme=scheme
        )
        model.set_submodule(name, low_rank.eval())
    groups = find_units(model).groups
    small, _ = assert_same_when_cut(model, groups, cases.random_selection(groups, 0))
    assert describe(small)["timm_model.layer1.0.conv1"]["kind"] == "LowRankConv2d"


@pytest.mark.parametrize("architecture", ["mobilenetv3_small_050", "legacy_seresnet18", "densenet121", "repvgg_a0"])
def test_other_convolutional_networks(architecture):
    extra = {"growth_rate": 4, "block_config": (2, 2)} if architecture == "densenet121" else {}
    model = cases.timm_network(architecture, **extra)
    groups = find_units(model).groups
    small, _ = assert_same_when_cut(model, groups, cases.random_selection(groups, 0))
    assert describe(small)
    for module in small.modules():
        if is_depthwise(module):
            assert module.groups == module.in_channels == module.out_channels == module.weight.shape[0]


def test_layers_that_cannot_be_pruned_are_kept_and_named():
    # ECA attention convolves across channels, ResNeXt's convolutions tie channels into groups
    narrow = {"channels": (8, 16, 24, 32), "layers": (1, 1, 1, 1)}
    for architecture, extra, reason in (
        ("ecaresnet26t", narrow, "not the same as silencing"),
        ("resnext50_32x4d", {"layers": (1, 1, 1, 1)}, "mixes its channels"),
    ):
        inventory = find_units(cases.timm_network(architecture, **extra))
        assert inventory.groups
        assert any(reason in text for text in inventory.kept.values())
        assert not {group.name for group in inventory.groups} & inventory.kept.keys()


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_vision_transformers_are_refused_by_name(architecture):
    model = cases.timm_network(architecture, img_size=32) if "vit" in architecture else None
    if model is None:
        model = cases.timm_network(architecture, img_size=32, window_size=2, embed_dim=24, depths=(1, 1))
    with pytest.raises(UnsupportedModelError, match=f"(?s){architecture}.*resnet50.*bert, roberta, .*electra"):
        find_units(model)


def test_other_architectures_are_refused_by_name():
    gpt2 = GPT2ForSequenceClassification(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(
        UnsupportedModelError,
        match="GPT2ForSequenceClassification.*bert, roberta, xlm-roberta, camembert, electra, distilbert",
    ):
        find_units(gpt2)
    decoder = BertForSequenceClassification(BertConfig(**cases.SHAPE, is_decoder=True))
    with pytest.raises(UnsupportedModelError, match="decoder"):
        find_units(decoder)
    with pytest.raises(UnsupportedModelError, match="Sequential"):
        find_units(nn.Sequential(nn.Linear(2, 2)))


def test_adapters_have_to_be_merged_first():
    class Adapter(nn.Linear):
        pass

    model = cases.make("bert")
    model.bert.encoder.layer[0].output.dense = Adapter(64, 32)
    with pytest.raises(UnsupportedModelError, match="output.dense is a Adapter.*Merge adapters"):
        find_units(model)


@pytest.mark.parametrize("case", ["bert", "option_a", "option_b"])
def test_finding_units_leaves_the_model_alone(case):
    model = cases.make(case).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)).eval()
    state = torch.get_rng_state()
    find_units(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and not frozen.training and frozen.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
