"""The method as its users meet it: targets, options, reports, saving and loading."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

import hf_compress as hc
from hf_compress.errors import CompressionError, RecipeError, TargetError, UnsupportedModelError
from hf_compress.measurement import count
from hf_compress.pruning import MagnitudeOptions, find_units, prune
from hf_compress.pruning.importance import magnitude_scores
from hf_compress.pruning.iteration import prune_to_target
from hf_compress.registry import Target, get_method
from hf_compress.structure import Constant, describe, structural_summary
from hf_compress.training import Context

from . import cases


@pytest.mark.parametrize("case", cases.ALL)
@pytest.mark.parametrize("target", [{"macs": 0.6}, {"params": 0.7, "scope": "encoder"}])
def test_target_is_met_and_the_model_comes_back(case, target, tmp_path):
    model = cases.make(case)
    dense = count(model)
    report = prune(model, target=target, min_channels=2)
    kind, scope = next(iter(target)), target.get("scope", "model")
    figure = kind if scope == "model" else f"encoder_{kind}"
    reached = getattr(count(model), figure) / getattr(dense, figure)
    assert report.achieved == pytest.approx(reached)
    # a unit of these tiny models is up to 3 % of them
    assert 0.97 * target[kind] <= reached <= target[kind]
    assert report.cost == count(model)
    assert any(line["kept"] < line["of"] for line in report.notes["layers"].values())
    again = cases.reload(model, tmp_path)
    assert torch.equal(cases.output_of(again), cases.output_of(model))
    assert describe(again) == describe(model) != {}


@pytest.mark.parametrize("case", ["bert", "option_b"])
@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("scope", ["model", "encoder"])
def test_every_target(case, kind, scope):
    model = cases.make(case)
    report = prune(model, target={kind: 0.75, "scope": scope}, steps=3)
    assert 0.74 <= report.achieved <= 0.75 and report.warnings == []


@pytest.mark.parametrize("options", [{"norm": "l1"}, {"scope": "local"}, {"round_to": 8}, {"steps": 1}])
def test_options(options):
    model = cases.make("option_b")
    report = prune(model, target={"macs": 0.5}, **options)
    assert 0.4 <= report.achieved <= 0.5
    kept = {name: line["kept"] for name, line in report.notes["layers"].items()}
    if options.get("round_to"):
        assert all(width % 8 == 0 for width in kept.values())
    if options.get("scope") == "local":
        shares = [line["kept"] / line["of"] for line in report.notes["layers"].values()]
        assert max(shares) - min(shares) < 0.1
    assert min(kept.values()) >= 4


def test_only_heads_or_only_neurons():
    for options, kind in (({"heads": False}, "neurons"), ({"neurons": False}, "heads")):
        model = cases.make("bert")
        before = {group.name: group.size for group in find_units(model).groups if group.kind != kind}
        prune(model, target={"params": 0.8, "scope": "encoder"}, **options)
        after = {group.name: group.size for group in find_units(model).groups if group.kind != kind}
        assert before == after
    # neurons are half of the layer's weights, so less than that is out of reach with heads kept
    with pytest.raises(TargetError, match="reached"):
        prune(cases.make("bert"), target={"params": 0.1, "scope": "encoder"}, heads=False)


def test_min_channels_holds_in_every_layer():
    model = cases.make("option_a")
    report = prune(model, target={"macs": 0.48}, min_channels=7)
    widths = [line["kept"] for line in report.notes["layers"].values()]
    assert min(widths) == 7
    for stage in (model.timm_model.layer1, model.timm_model.layer2, model.timm_model.layer3):
        for block in stage:
            assert block.conv1.out_channels == block.bn1.num_features == block.conv2.in_channels >= 7
            assert block.conv2.out_channels in (16, 32, 64)


def test_almost_everything_of_an_encoder_may_go(tmp_path):
    model = cases.make("bert")
    prune(model, target={"macs": 0.02, "scope": "encoder"})
    assert sum(isinstance(module, Constant) for module in model.modules()) >= 2
    assert torch.equal(cases.output_of(cases.reload(model, tmp_path)), cases.output_of(model))
    model.train()
    model(**cases.inputs_for(model), labels=torch.tensor([0, 1, 1])).loss.backward()


@pytest.mark.parametrize("case", ["roberta", "distilbert", "option_b"])
def test_twice_in_one_process_and_on_one_model(case, tmp_path):
    model, dense = cases.make(case), cases.make(case)
    twin = copy.deepcopy(model)
    prune(model, target={"params": 0.8, "scope": "encoder"})
    report = prune(twin, target={"params": 0.8, "scope": "encoder"})
    assert describe(model) == describe(twin)
    assert torch.equal(cases.output_of(model), cases.output_of(twin))
    # a fraction of what it was before, whatever it is now
    report = prune(model, target={"macs": 0.6}, baseline=dense)
    assert 0.57 <= count(model).macs / count(dense).macs <= 0.6
    assert report.achieved == pytest.approx(count(model).macs / count(dense).macs)
    assert torch.equal(cases.output_of(cases.reload(model, tmp_path)), cases.output_of(model))


def test_headless_model_is_pruned_and_comes_back(tmp_path):
    model = cases.make("bert", headless=True)
    prune(model, target={"params": 0.6, "scope": "encoder"})
    model.save_pretrained(tmp_path)
    assert torch.equal(cases.output_of(AutoModel.from_pretrained(tmp_path).eval()), cases.output_of(model))


@pytest.mark.parametrize("case", ["electra", "option_a", "bottleneck"])
def test_trains_afterwards_and_keeps_its_training_mode(case):
    model = cases.make(case).train()
    frozen = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)]
    frozen[0].eval()
    prune(model, target={"macs": 0.7}, steps=2)
    assert model.training and not frozen[0].training and frozen[1].training
    frozen[0].train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    labels = torch.tensor([0, 1, 1])
    before = model(**cases.inputs_for(model), labels=labels).loss
    before.backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "pooler" not in name)
    optimizer.step()
    assert model(**cases.inputs_for(model), labels=labels).loss.isfinite()


def test_frozen_and_half_precision_weights_stay_so():
    model = cases.make("bert").to(torch.bfloat16)
    layer = model.bert.encoder.layer[0]
    layer.requires_grad_(False)
    prune(model, target={"params": 0.6, "scope": "encoder"}, steps=2)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    dense = layer.intermediate.dense
    assert dense.out_features < 64 and not dense.weight.requires_grad and not dense.bias.requires_grad
    assert model.bert.encoder.layer[1].output.LayerNorm.weight.requires_grad


def test_same_result_every_time():
    models = [cases.make("option_b") for _ in range(2)]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        prune(model, target={"macs": 0.6}, steps=3)
    states = [model.state_dict() for model in models]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_what_timm_says_of_its_widths():
    model = cases.make("option_b")
    prune(model, target={"macs": 0.4})
    network = model.timm_model
    assert network.num_features == network.head_hidden_size == network.fc.in_features < 64
    features = [network.conv1, *(stage[-1].conv2 for stage in (network.layer1, network.layer2, network.layer3))]
    assert [info["num_chs"] for info in network.feature_info] == [layer.out_channels for layer in features]
    network.reset_classifier(7)
    assert model(**cases.inputs_for(model)).logits.shape == (3, 7)


@pytest.mark.parametrize("architecture", ["mobilenetv3_small_050", "regnetx_002"])
def test_a_network_with_a_head_of_its_own_takes_another_classifier(architecture, tmp_path):
    """What `forward_features` gives and what the classifier reads have widths of their own."""
    model = cases.timm_network(architecture)
    prune(model, target={"macs": 0.6})
    model = cases.reload(model, tmp_path)
    network, image = model.timm_model, cases.inputs_for(model)["pixel_values"]
    assert network.num_features == network.forward_features(image).shape[1]
    assert network.head_hidden_size == network.get_classifier().in_features
    network.reset_classifier(7)
    assert model(pixel_values=image).logits.shape == (3, 7)


@pytest.mark.parametrize("model_type", ["xlm-roberta", "camembert"])
def test_what_is_built_like_roberta_is_pruned_like_it(model_type, tmp_path):
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, **cases.SHAPE)).eval()
    report = prune(
        model, target={"macs": 0.5, "scope": "encoder"}, repair=True, samples=8, **cases.examples_for(model)
    )
    assert report.achieved <= 0.5 and len(report.notes["layers"]) == 4 and report.notes["repair"]
    assert torch.equal(cases.output_of(cases.reload(model, tmp_path)), cases.output_of(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_ranked_in_single(dtype):
    """Their squares would be zero, or round to the same few values."""
    model = cases.make("bert")
    for parameter in model.parameters():
        parameter.data.mul_(1e-4)
    groups = find_units(model).groups
    found = magnitude_scores(model.to(dtype), groups, 2)
    for name, scores in magnitude_scores(model.float(), groups, 2).items():
        assert torch.equal(found[name], scores)


def test_a_network_in_half_precision_is_pruned():
    model = cases.make("option_a").bfloat16()
    report = prune(model, target={"macs": 0.6})
    assert report.achieved <= 0.6 and model.dtype == torch.bfloat16
    assert torch.isfinite(cases.output_of(model)).all()


@pytest.mark.parametrize(
    ("method", "extra"), [("magnitude", {}), ("depth", {"repair": False}), ("fisher", {"repair": False})]
)
def test_options_of_a_repair_that_there_is_not_are_refused(method, extra):
    model = cases.make("bert")
    for option in ({"refine": 3}, {"ridge": 0.5}):
        with pytest.raises(RecipeError, match=f"{next(iter(option))}: got .*set repair to true"):
            prune(model, method=method, target={"macs": 0.6}, **extra, **option, **cases.examples_for(model))


@pytest.mark.parametrize("case", ["distilbert", "option_a"])
def test_unreachable_target_leaves_the_model_as_it_was(case):
    model = cases.make(case)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TargetError, match=r"target.params: got 0.01, .*between 0\.\d+ and 1.0000"):
        prune(model, target={"params": 0.01})
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(value, before[name]) for name, value in after.items())
    assert describe(model) == {}


def test_lowest_reachable_target_can_be_reached():
    model = cases.make("option_a")
    with pytest.raises(TargetError) as refused:
        prune(model, target={"macs": 0.001}, min_channels=2)
    lowest = float(str(refused.value).split("between ")[1].split(" ")[0])
    report = prune(model, target={"macs": lowest}, min_channels=2)
    assert report.achieved == pytest.approx(lowest, abs=2e-4)
    assert {line["kept"] for line in report.notes["layers"].values()} == {2}


def test_target_that_is_met_already():
    model, dense = cases.make("bert"), cases.make("bert")
    with pytest.raises(TargetError, match="already"):
        prune(model, target={"macs": 1.0})
    prune(model, target={"params": 0.6, "scope": "encoder"})
    with pytest.raises(TargetError, match="already"):
        prune(model, target={"params": 0.7, "scope": "encoder"}, baseline=dense)


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, True, "half"])
def test_targets_that_are_no_fractions(fraction):
    with pytest.raises(RecipeError, match="fraction"):
        prune(cases.make("bert"), target={"macs": fraction})


def test_targets_of_other_kinds():
    with pytest.raises(RecipeError, match="macs or params"):
        prune(cases.make("bert"), target={"latency": 0.5})
    with pytest.raises(RecipeError, match="target"):
        prune(cases.make("bert"), target={"flops": 0.5})
    with pytest.raises(RecipeError, match="give what is to be left"):
        method = get_method("prune", "magnitude")
        method.function(cases.make("bert"), MagnitudeOptions(), Context())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l3"}, "prune.norm: got 'l3'.*l1.*l2"),
        ({"scope": "globl"}, "did you mean 'global'"),
        ({"min_channels": 0}, "min_channels.*at least 1"),
        ({"round_to": 1.5}, "round_to"),
        ({"steps": True}, "steps"),
        ({"heads": "yes"}, "heads"),
        ({"heads": False, "neurons": False}, "prune.heads.*neurons is false too"),
        ({"norms": "l1"}, "norm"),
    ],
)
def test_options_are_refused_clearly(options, message):
    with pytest.raises(CompressionError, match=message):
        prune(cases.make("bert"), target={"macs": 0.5}, **options)


def test_unsupported_model_is_refused_before_anything_changes():
    with pytest.raises(UnsupportedModelError, match="vit_tiny_patch16_224"):
        prune(cases.timm_network("vit_tiny_patch16_224", img_size=32), target={"macs": 0.5})


def test_cost_that_comes_out_higher_than_computed_is_pruned_further():
    """The last word has what the context counts, not what the selection computed."""
    model = cases.make("option_b")
    context = Context(target=Target("macs", 0.5))
    context.baseline_cost = count(model)
    dense = count(model)
    calls = []

    def cost(model):
        measured = count(model)
        if calls and measured.macs < dense.macs:
            measured.macs = int(measured.macs * 1.1)  # a penalty that only pruned models pay
        calls.append(measured.macs)
        return measured

    context.cost = cost
    method = get_method("prune", "magnitude")
    method.function(model, MagnitudeOptions(steps=2), context)
    assert len(calls) > 2 and count(model).macs * 1.1 <= 0.5 * dense.macs * 1.001


def test_method_takes_any_scorer():
    """The way that other criteria come in: scores by group, and the rest is the same."""
    model = cases.make("bert")
    context = Context(target=Target("params", 0.8))
    context.baseline_cost = count(model)

    def prefer_late_units(model, groups):
        return {group.name: torch.arange(group.size, dtype=torch.float64) for group in groups}

    first = model.bert.encoder.layer[0].intermediate.dense.weight.detach().clone()
    prune_to_target(model, find_units(model).groups, prefer_late_units, context, steps=4)
    left = model.bert.encoder.layer[0].intermediate.dense
    assert torch.equal(left.weight, first[-left.out_features :])


def test_summary_names_heads_and_widths():
    model = cases.make("bert")
    prune(model, target={"params": 0.5, "scope": "encoder"})
    summary = structural_summary(model)
    assert any("heads" in line or "width" in line for line in summary.values())


def test_verb_trains_with_a_teacher_afterwards(tmp_path):
    from datasets import Dataset

    model = cases.make("bert")
    rows = [{"input_ids": [2, 5 + i, 7, 9], "attention_mask": [1] * 4, "labels": i % 2} for i in range(16)]
    report = hc.prune(
        model,
        target={"params": 0.7, "scope": "encoder"},
        data=Dataset.from_list(rows),
        collate_fn=lambda rows: {key: torch.tensor([row[key] for row in rows]) for key in rows[0]},
        distill={"alpha": 0.5},
        training={"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none"},
        output_dir=str(tmp_path / "work"),
    )
    assert report.seconds["train"] > 0 and report.achieved <= 0.7
    assert torch.equal(cases.output_of(cases.reload(model.eval(), tmp_path / "model")), cases.output_of(model))


@pytest.mark.parametrize(("case", "fits"), [("option_a", True), ("option_b", False)])
def test_hidden_states_that_pruning_makes_narrower_are_refused_before_the_training(case, fits):
    model = cases.make(case)
    options = {
        "distill": {"hidden": 1.0},
        "training": {"max_steps": 1, "per_device_train_batch_size": 4, "report_to": "none"},
        **cases.examples_for(model, 8),
    }
    if fits:
        assert prune(model, target={"macs": 0.7}, **options).seconds["train"] > 0
        return
    started = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CompressionError, match="hidden: the states of layer"):
        patch.setattr(Context, "train", lambda *args, **kwargs: started.append(True))
        prune(model, target={"macs": 0.7}, **options)
    assert not started


def test_macs_are_counted_at_the_length_to_be_served():
    model, dense = cases.make("bert"), cases.make("bert")
    report = prune(model, target={"macs": 0.6}, measure={"length": 32})
    assert report.cost.macs == count(model, length=32).macs < count(model).macs
    assert report.achieved == pytest.approx(report.cost.macs / count(dense, length=32).macs)


@pytest.mark.real
def test_trained_network_keeps_most_of_what_it_knows():
    """A tenth of the classes would be right by chance; magnitudes of trained weights say far more than that."""
    if "HF_COMPRESS_DATA" not in os.environ:
        pytest.skip("HF_COMPRESS_DATA is not set")
    task = hc.load_task(hc.TaskSpec(name="cifar10", max_train_samples=100, max_eval_samples=500))
    model, processor = hc.load_model("resnet56_cifar10", task=task)
    assert prune(model, target={"macs": 0.6}).achieved == pytest.approx(0.6, abs=0.006)
    images = next(iter(task.prepare(processor).evaluation.values()))
    right = 0
    with torch.no_grad():
        for _, batch in images.batches(100):
            right += int((model.eval()(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["labels"]).sum())
    assert right / 500 > 0.6
