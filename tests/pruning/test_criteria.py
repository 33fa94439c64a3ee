"""Every method that prunes on every architecture, and each criterion against a plain computation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hf_compress.errors import CompressionError, RecipeError, TargetError, UnsupportedModelError
from hf_compress.measurement import count
from hf_compress.pruning import CriterionOptions, find_units, prune
from hf_compress.pruning.importance import (
    activation_scores,
    distance_scores,
    lamp_scores,
    magnitude_scores,
    norm_scale_scores,
    random_scores,
    shared_quantiles,
)
from hf_compress.registry import get_method, methods
from hf_compress.structure import describe

from . import cases


CRITERIA = [method.name for method in methods("prune") if issubclass(method.options, CriterionOptions)]
MODELS = ("bert", "option_a", "option_b", "bottleneck")


def can_prune(method, case):
    return not (method == "bn_scale" and case in cases.ENCODERS)


def test_all_criteria_are_here():
    assert {"magnitude", "fpgm", "lamp", "bn_scale", "activation", "taylor", "hessian", "random"} == set(CRITERIA)


@pytest.mark.parametrize(
    ("method", "case"), [(method, case) for method in CRITERIA for case in MODELS if can_prune(method, case)]
)
def test_target_is_met_and_the_model_comes_back(method, case, tmp_path):
    """In two steps and with a repair."""
    model = cases.make(case)
    dense = count(model)
    options = {"min_channels": 2, "steps": 2, "samples": 8, "repair": True}
    report = prune(model, method=method, target={"macs": 0.7}, **cases.examples_for(model), **options)
    assert 0.66 <= report.achieved <= 0.7 and report.achieved == pytest.approx(count(model).macs / dense.macs)
    again = cases.reload(model, tmp_path)
    assert torch.equal(cases.output_of(again), cases.output_of(model))
    assert describe(again) == describe(model) != {}
    assert report.notes["repair"]


@pytest.mark.parametrize("scope", ["local", "isomorphic"])
@pytest.mark.parametrize("method", ["lamp", "random"])
def test_scopes_take_the_same_fraction(method, scope):
    model = cases.make("option_b")
    report = prune(model, method=method, target={"macs": 0.5}, scope=scope, steps=1)
    stages = {}
    for name, line in report.notes["layers"].items():
        stages.setdefault(name if scope == "local" else line["of"], []).append(line)
    shares = [sum(line["kept"] for line in lines) / sum(line["of"] for line in lines) for lines in stages.values()]
    assert max(shares) - min(shares) < 0.1


def test_groups_that_look_the_same_are_ranked_together():
    model = cases.make("option_b")
    groups = find_units(model).groups
    scores = {group.name: torch.full((group.size,), float(index)) for index, group in enumerate(groups)}
    ranks = shared_quantiles(model, groups, scores)
    inner = [group.name for group in groups if group.name.startswith("timm_model.layer1") and ".conv1" in group.name]
    assert len(inner) == 3 and torch.cat([ranks[name] for name in inner]).unique().numel() == 48
    means = [float(ranks[name].mean()) for name in inner]
    assert means == sorted(means)
    alone = next(group.name for group in groups if group.name == "timm_model.conv1")
    assert float(ranks[alone].mean()) == pytest.approx(0.5)


def test_layers_that_are_told_how_much_to_keep(tmp_path):
    model = cases.make("option_a")
    report = prune(model, method="magnitude", target=None, keep={"*layer1.0.conv1": 0.5, "*layer3.*": 0.75})
    kept = {name: line["kept"] / line["of"] for name, line in report.notes["layers"].items()}
    assert kept["timm_model.layer1.0.conv1"] == 0.5
    assert {share for name, share in kept.items() if "layer3" in name} == {0.75}
    assert {share for name, share in kept.items() if "layer2" in name} == {1.0}
    assert torch.equal(cases.output_of(cases.reload(model, tmp_path)), cases.output_of(model))
    # beside a target, the others make up for them
    model = cases.make("option_a")
    report = prune(model, method="magnitude", target={"macs": 0.6}, keep={"*layer3.*": 1.0})
    kept = {name: line["kept"] / line["of"] for name, line in report.notes["layers"].items()}
    assert {share for name, share in kept.items() if "layer3" in name} == {1.0} and report.achieved <= 0.6


def test_a_fraction_of_few_heads_is_one_of_them_at_least():
    for fraction, kept in ((0.1, 1), (0.0, 0)):
        model = cases.make("bert")
        report = prune(model, method="magnitude", keep={"*layer.0.attention.self": fraction})
        assert report.notes["layers"]["bert.encoder.layer.0.attention.self"] == {"kept": kept, "of": 4}


def test_a_layer_that_is_to_keep_all_keeps_what_does_not_fit_the_steps():
    model = cases.timm_network("resnet20_cifar", channels=(20, 32, 64))
    report = prune(model, method="magnitude", keep={"*layer1.0.conv1": 1.0, "*layer1.1.conv1": 0.5}, round_to=16)
    kept = {name: line["kept"] for name, line in report.notes["layers"].items()}
    assert kept["timm_model.layer1.0.conv1"] == 20 and kept["timm_model.layer1.1.conv1"] == 16


def test_fractions_to_keep_that_cannot_be():
    model = cases.make("option_a")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RecipeError, match="keep.layer9.*no layer of this model.*timm_model.layer1.0.conv1"):
        prune(model, target={"macs": 0.6}, keep={"layer9": 0.5})
    with pytest.raises(RecipeError, match="keep.a: got 2"):
        prune(model, target={"macs": 0.6}, keep={"a": 2.0})
    with pytest.raises(TargetError, match="out of reach"):
        prune(model, target={"macs": 0.3}, keep={"*": 0.9})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("case", ["bert", "bottleneck"])
def test_distances_against_a_plain_computation(case):
    model = cases.make(case)
    for group in find_units(model).groups:
        expected = []
        for part in group.producers:
            module = model.get_submodule(part.module)
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            units = [module.weight.detach()[rows].double().flatten() for rows in part.index]
            sums = torch.tensor([math.fsum(float((one - two).norm()) for two in units) for one in units]).double()
            expected.append(sums / sums.mean())
        found = distance_scores(model, [group])[group.name]
        torch.testing.assert_close(found, sum(expected) / len(expected), rtol=1e-5, atol=1e-8)
        assert float(found.mean()) == pytest.approx(1)  # or what many layers make would outrank the rest


def test_chance_is_not_the_same_in_every_step(monkeypatch):
    drawn = []

    def scores(groups, generator):
        drawn.append(random_scores(groups, generator))
        return drawn[-1]

    monkeypatch.setattr("hf_compress.pruning.criteria.random_scores", scores)
    sizes = []
    for seed in (0, 0, 1):
        model = cases.make("option_a")
        prune(model, method="random", target={"macs": 0.7}, steps=3, seed=seed)
        sizes.append([tuple(value.shape) for value in model.state_dict().values()])
    assert sizes[0] == sizes[1] != sizes[2] and len(drawn) == 9
    first = next(iter(drawn[0]))
    assert len({float(values[first][0]) for values in drawn[:3]}) == 3


def test_lamp_against_its_formula():
    model = cases.make("option_b")
    groups = find_units(model).groups
    energies = magnitude_scores(model, groups)
    for name, scores in lamp_scores(model, groups).items():
        energy = energies[name].tolist()
        for unit, score in enumerate(scores.tolist()):
            rest = math.fsum(other for other in energy if other >= energy[unit])
            assert score == pytest.approx(energy[unit] / rest)
        assert float(scores.max()) == 1.0


def test_scales_of_batch_normalizations():
    model = cases.make("option_a")
    found = norm_scale_scores(model, find_units(model).groups)
    assert torch.allclose(found["timm_model.layer2.1.conv1"], model.timm_model.layer2[1].bn1.weight.detach().double())
    with pytest.raises(UnsupportedModelError, match="no batch normalization.*magnitude"):
        prune(cases.make("bert"), method="bn_scale", target={"macs": 0.5})
    model = cases.timm_network("mobilenetv3_small_050")  # whose channel attention and last convolution have none
    report = prune(model, method="bn_scale", target={"macs": 0.8}, steps=2)
    reasons = {name: reason for name, reason in report.notes["kept"].items() if "no batch normalization" in reason}
    assert report.achieved <= 0.8 and len(reasons) > 1
    assert all(".se." in name or name.endswith("conv_head") for name in reasons)
    assert not reasons.keys() & report.notes["layers"].keys()


@pytest.mark.parametrize("case", ["bert", "option_b"])
def test_activations_against_a_plain_computation(case):
    model = cases.make(case)
    batch = cases.inputs_for(model)
    group = find_units(model).groups[-1]
    part = group.consumers[0]
    seen = []
    handle = model.get_submodule(part.module).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    cases.output_of(model)
    handle.remove()
    x = seen[0].movedim(1, -1)[:, ..., :] if case != "bert" else seen[0][batch["attention_mask"].bool()]
    size = x.flatten(0, -2).abs().double().mean(0)[part.index].mean(1)
    assert len(group.consumers) == 1
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 2), slice(2, 3))]
    for batches in ([batch], parts):  # however the examples are put together
        found = activation_scores(model, [group], batches)[group.name]
        torch.testing.assert_close(found, size / size.mean(), rtol=1e-5, atol=1e-8)
    assert not model.get_submodule(part.module)._forward_pre_hooks


@pytest.mark.parametrize("method", ["taylor", "hessian", "activation"])
def test_what_looks_at_data_says_when_there_is_none(method):
    model = cases.make("bert")
    with pytest.raises(CompressionError, match="got no data"):
        prune(model, method=method, target={"macs": 0.5})
    if method != "activation":
        examples = cases.examples_for(model)
        for row in examples["data"]:
            del row["labels"]
        with pytest.raises(CompressionError, match="labels"):
            prune(model, method=method, target={"macs": 0.5}, **examples)


def test_repair_says_when_there_is_no_data_before_anything_changes():
    model = cases.make("bert")
    with pytest.raises(CompressionError, match="got no data"):
        prune(model, target={"macs": 0.5}, repair=True)
    assert describe(model) == {}


def test_chance_depends_on_the_seed_alone():
    outputs = []
    for seed in (0, 0, 1):
        model = cases.make("bert")
        prune(model, method="random", target={"macs": 0.6}, seed=seed)
        outputs.append(cases.output_of(model))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples.*at least 1"),
        ({"ridge": 0.0}, "ridge.*above 0"),
        ({"scope": "isomorfic"}, "isomorphic"),
    ],
)
def test_options_are_refused_clearly(options, message):
    with pytest.raises(CompressionError, match=message):
        prune(cases.make("bert"), target={"macs": 0.5}, **options)
    assert get_method("prune", "lamp").options().scope == "global"
