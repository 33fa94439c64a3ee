"""Describing: what is found, what is refused, and that nothing is disturbed by looking."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune
from transformers import BertModel

from hf_compress.errors import StructureError
from hf_compress.structure import (
    Constant,
    LowRankConv2d,
    Removed,
    build_skeleton,
    describe,
    rebuild,
    register_attributes,
    structural_summary,
    track,
)

from . import cases


STOCK_TIMM = {
    "regnet": ("regnetx_002", {}),  # BatchNormAct2d, grouped convolutions
    "convnext": ("convnext_atto", {"drop_path_rate": 0.1}),  # LayerNorm2d, Mlp, DropPath
    "vit": ("vit_tiny_patch16_224", {"depth": 2, "img_size": 32, "drop_path_rate": 0.1}),
    "mobilenet": ("mobilenetv3_small_050", {"drop_path_rate": 0.1}),  # SqueezeExcite, SelectAdaptivePool2d
    "resnetblur": ("resnetblur18", {}),  # BlurPool's buffers
}


@pytest.mark.parametrize("name", STOCK_TIMM)
def test_stock_timm_modules_pass_unharmed(name):
    architecture, model_args = STOCK_TIMM[name]
    model = cases.timm_model(architecture, **model_args)
    model.train()
    assert describe(model) == {}
    # an added difference is the only one found
    layer_name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear))
    cases.keep(layer, out=list(range(3)))
    assert describe(model) == {
        layer_name: {
            "kind": "Resized",
            "class": "Linear",
            "shapes": {"weight": [3, None], "bias": [3]},
            "attributes": {"out_features": 3},
        }
    }


def test_description_is_json_and_names_only_what_differs():
    model = cases.encoder("bert")
    cases.keep_heads(cases.layers_of(model)[0], [1, 3])
    specs = describe(model)
    assert json.loads(json.dumps(specs)) == specs
    prefix = "bert.encoder.layer.0.attention."
    assert set(specs) == {prefix + name for name in ("self", "self.query", "self.key", "self.value", "output.dense")}
    assert specs[prefix + "self"]["attributes"] == {"num_attention_heads": 2, "all_head_size": 16}
    assert specs[prefix + "output.dense"]["shapes"] == {"weight": [None, 16]}


@pytest.mark.parametrize("case", ["bert-everything", "resnet20_cifar-channels", "resnext-groups"])
def test_rebuild_reverses_describe(case):
    model = cases.make(case)
    skeleton = build_skeleton(model)
    dense_size = sum(p.numel() for p in skeleton.parameters())
    rebuild(skeleton, describe(model))
    assert {n: t.shape for n, t in skeleton.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    assert all(tensor.device.type == "meta" for tensor in [*skeleton.parameters(), *skeleton.buffers()])
    assert sum(p.numel() for p in skeleton.parameters()) < dense_size
    # also on a real device, followed by an ordinary load_state_dict
    real = cases.build(cases.CASES[case][0])
    rebuild(real, describe(model))
    real.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(cases.logits_of(real.eval()), cases.logits_of(model))
    assert describe(real) == describe(model)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    heads=st.lists(st.sets(st.integers(0, 3)), min_size=3, max_size=3),
    neurons=st.lists(st.integers(0, 48), min_size=3, max_size=3),
    rank=st.integers(0, 6),
    family=st.sampled_from(cases.ENCODERS),
)
def test_any_widths_survive(heads, neurons, rank, family):
    model = cases.encoder(family)
    for layer, kept, width in zip(cases.layers_of(model), heads, neurons, strict=True):
        if kept:
            cases.keep_heads(layer, sorted(kept))
        else:
            cases.remove_heads(layer)
        if width:
            cases.keep_neurons(layer, list(range(width)))
        else:
            cases.remove_neurons(layer)
        if rank and kept and width:
            cases.factorize_layer(layer, min(rank, width))
    specs = describe(model)
    other = cases.encoder(family)
    rebuild(other, json.loads(json.dumps(specs)))
    other.load_state_dict(model.state_dict())
    assert describe(other) == specs
    assert torch.equal(cases.logits_of(other.eval()), cases.logits_of(model))


def test_looking_changes_nothing():
    for family in ("bert", "resnet18"):
        model = cases.build(family)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        attributes, seed = dict(vars(model)), torch.get_rng_state()
        describe(model)
        assert torch.equal(seed, torch.get_rng_state())
        assert vars(model) == attributes
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def spoil_class(model):
    model.bert.pooler.activation = nn.ReLU()


def spoil_subclass(model):
    class Linear(nn.Linear):
        pass

    model.classifier = Linear(32, 3)


def spoil_forward(model):
    layer = model.bert.encoder.layer[1].output
    layer.forward = lambda hidden, residual: residual


def spoil_hook(model):
    model.bert.encoder.layer[1].output.register_forward_hook(lambda module, args, output: output * 2)


def spoil_pre_hook(model):
    prune.l1_unstructured(model.bert.encoder.layer[1].output.dense, "weight", 0.5)


def spoil_parametrization(model):
    nn.utils.parametrizations.weight_norm(model.bert.encoder.layer[1].output.dense)


def spoil_child(model):
    model.bert.encoder.layer[1].output.adapter = nn.Linear(32, 32)


def spoil_missing(model):
    del model.bert.encoder.layer[1]


def spoil_tensor(model):
    model.bert.encoder.layer[1].output.register_parameter("scale", nn.Parameter(torch.ones(1)))


def spoil_attribute(model):
    model.bert.encoder.layer[1].attention.self.scaling = 1.0


def spoil_inside(model):
    cases.factorize_layer(model.bert.encoder.layer[1], 4)
    model.bert.encoder.layer[1].output.dense.up = nn.Sequential(model.bert.encoder.layer[1].output.dense.up)


def spoil_mode(model):
    model.bert.encoder.layer[1].output.LayerNorm.eps = 0.1


SPOILED = {
    spoil_class: ("bert.pooler.activation", "ReLU"),
    spoil_subclass: ("classifier", "Linear"),
    spoil_forward: ("bert.encoder.layer.1.output", "forward"),
    spoil_hook: ("bert.encoder.layer.1.output", "hook"),
    spoil_pre_hook: ("bert.encoder.layer.1.output.dense", "hook"),
    spoil_parametrization: ("bert.encoder.layer.1.output.dense", "Parametrized"),
    spoil_child: ("bert.encoder.layer.1.output.adapter", "does not describe"),
    spoil_missing: ("bert.encoder.layer.2", "lacks"),
    spoil_tensor: ("bert.encoder.layer.1.output", "scale"),
    spoil_attribute: ("bert.encoder.layer.1.attention.self", "scaling"),
    spoil_inside: ("bert.encoder.layer.1.output.dense", "up is a Sequential"),
    spoil_mode: ("bert.encoder.layer.1.output.LayerNorm", "no weight has another shape"),
}


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_stored_is_refused_by_name(spoil, tmp_path):
    name, reason = SPOILED[spoil]
    model = track(cases.encoder("bert"))
    spoil(model)
    with pytest.raises(StructureError, match=reason) as error:
        track(model)
    assert str(error.value).startswith(f"{name}: ")
    with pytest.raises(StructureError):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_wrong_seal_is_refused():
    model = cases.encoder("bert")
    model.bert.encoder.layer[1].intermediate = Removed("weight")
    with pytest.raises(StructureError, match=r"layer\.1\.intermediate: the seal 'weight'.*'dense.weight'"):
        describe(model)
    model.bert.encoder.layer[1].intermediate = cases.encoder("bert").bert.encoder.layer[1].intermediate
    model.bert.encoder.layer[1].attention.self.dropout = Removed("weight")
    with pytest.raises(StructureError, match=r"has none, so it cannot be replaced"):
        describe(model)


def test_not_a_transformers_model():
    with pytest.raises(StructureError, match="TimmWrapperForImageClassification"):
        track(nn.Linear(2, 2))


def test_harmless_differences_are_left_alone():
    """Hooks of Transformers, autocast wrappers of Accelerate, and training settings do not count."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model = cases.encoder("bert")
    model(**cases.inputs_for(model), output_hidden_states=True, output_attentions=True)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.some_note = 3
    assert describe(model) == {}
    AcceleratorState._reset_state()  # which an earlier training in another precision has left
    prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model)
    assert "forward" in vars(prepared)
    assert describe(prepared) == {}
    model = cases.timm_model("resnet20_cifar")
    model.timm_model.set_grad_checkpointing(True)
    model.timm_model.bn1.momentum = 0.01
    assert describe(model) == {}


def test_base_model_without_pooler():
    model = BertModel(cases.encoder("bert").config, add_pooling_layer=False)
    assert describe(model) == {}


def test_registered_attributes_are_kept():
    model = cases.encoder("bert")
    cases.keep_heads(cases.layers_of(model)[0], [0])
    attention = cases.layers_of(model)[0].attention.self
    attention.scaling = 0.5
    with pytest.raises(StructureError, match="register_attributes"):
        describe(model)
    from hf_compress.structure import attributes

    known = {cls: set(names) for cls, names in attributes._ATTRIBUTES.items()}
    try:
        register_attributes(type(attention), ["scaling"])
        specs = describe(model)
        assert specs["bert.encoder.layer.0.attention.self"]["attributes"]["scaling"] == 0.5
        skeleton = build_skeleton(model)
        rebuild(skeleton, specs)
        assert skeleton.bert.encoder.layer[0].attention.self.scaling == 0.5
    finally:
        attributes._ATTRIBUTES.clear()
        attributes._ATTRIBUTES.update(known)


def test_summary_says_what_is_left():
    model = cases.make("bert-everything")
    summary = structural_summary(model)
    assert summary["bert.encoder.layer.0.attention.self"] == {"heads": 2, "of": 4}
    assert summary["bert.encoder.layer.0.attention.self.query"] == {"rank": 4, "of": 32, "width": 16}
    assert summary["bert.encoder.layer.1.attention.self"] == {"heads": 0, "of": 4}
    assert summary["bert.encoder.layer.1.intermediate"] == {"width": 0, "of": 48}
    assert summary["bert.encoder.layer.2"] == {"blocks": 0, "of": 1}
    assert "bert.encoder.layer.1.output.dense" not in summary

    summary = structural_summary(cases.make("distilbert-no_heads"))
    assert summary == {"distilbert.transformer.layer.1.attention": {"heads": 0, "of": 4}}
    summary = structural_summary(cases.make("resnet20_cifar-low_rank_channels_on_pruned"))
    assert summary["timm_model.layer1.0.conv1"] == {"width": 11, "of": 16}
    assert summary["timm_model.layer2.0.conv2"] == {"rank": 3, "of": 32}
    assert summary["timm_model.fc"] == {"rank": 2, "of": 10}
    assert structural_summary(cases.encoder("bert")) == {}


def test_modules_compute_what_they_say():
    x = torch.randn(2, 5, 7)
    layer = nn.Linear(7, 6)
    low = cases.factorize_linear(layer, 6)
    torch.testing.assert_close(low(x), layer(x), atol=1e-5, rtol=1e-5)
    assert (low.in_features, low.out_features, low.rank) == (7, 6, 6)
    constant = Constant.replacing(layer)
    torch.testing.assert_close(constant(x), layer(torch.zeros_like(x)))
    torch.testing.assert_close(Constant.replacing(low)(torch.randn(2, 5, 3)), layer(torch.zeros_like(x)))
    assert Removed("weight", "tuple")(x, None, mask=3)[0] is x


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
@pytest.mark.parametrize("geometry", [(1, 1, 1), (2, (1, 0), 1), ((2, 1), 2, 2), (1, "same", 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_low_rank_convolution_is_the_composed_one(scheme, geometry, groups):
    """Against the dense convolution whose kernel is the product of the factors."""
    stride, padding, dilation = geometry
    rank, into, out, (kh, kw) = 4, 4, 6, (3, 3)
    conv = nn.Conv2d(into, out, (kh, kw), stride, padding, dilation, groups)
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "channel": ((rank, into // groups, kh, kw), (out, rank // groups, 1, 1)),
        "spatial": ((rank, into // groups, kh, 1), (out, rank // groups, 1, kw)),
    }[scheme]
    down, up = (torch.randn(shape, generator=generator) for shape in shapes)
    with torch.no_grad():
        for group in range(groups):
            rows = slice(group * out // groups, (group + 1) * out // groups)
            ranks = slice(group * rank // groups, (group + 1) * rank // groups)
            if scheme == "channel":
                kernel = torch.einsum("or,rihw->oihw", up[rows, :, 0, 0], down[ranks])
            else:
                kernel = torch.einsum("orw,rih->oihw", up[rows, :, 0], down[ranks, :, :, 0])
            conv.weight[rows] = kernel
    low = LowRankConv2d.from_factors(
        down, up, conv.bias, stride=stride, padding=padding, dilation=dilation, groups=groups, scheme=scheme
    )
    x = torch.randn(2, into, 11, 9, generator=generator)
    torch.testing.assert_close(low(x), conv(x), atol=1e-4, rtol=1e-4)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(low, name) == getattr(conv, name), name
