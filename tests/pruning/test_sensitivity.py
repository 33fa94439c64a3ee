"""What layers mean to the predictions: the curves, against silencing units by hand."""

from __future__ import annotations

import copy
import gc
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForMaskedLM, BertForQuestionAnswering, BertForTokenClassification

from hf_compress.errors import CompressionError, UnsupportedModelError
from hf_compress.measurement.moments import input_moments
from hf_compress.pruning import find_units, prune, sensitivity, shrink, speed
from hf_compress.pruning.blocks import chain
from hf_compress.pruning.elimination import Order, Reader, eliminate
from hf_compress.pruning.sensitivity import TEMPERATURE, Reference, corrected, curves, divergences, stops
from hf_compress.pruning.token_weights import token_weights
from hf_compress.pruning.units import full_selection
from hf_compress.structure import Constant
from hf_compress.training import Context

from . import cases


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """What differs is no rounding to bfloat16, on whatever CPU."""
    monkeypatch.setattr(speed, "has_fast_bf16", lambda: False)


def order_of(group, seed=0):
    units = torch.randperm(group.size, generator=torch.Generator().manual_seed(seed))
    return Order(units, torch.arange(group.size + 1, dtype=torch.float64))


@pytest.mark.parametrize("case", ["bert", "option_a", "bottleneck"])
def test_divergences_are_those_of_the_network_cut(case):
    model = cases.make(case)
    groups = find_units(model, min_channels=2).groups
    context = Context(**cases.examples_for(model))
    reference = Reference(model, context.calibration(8))
    orders = {group.name: order_of(group) for group in groups}
    before = cases.output_of(model)
    found = divergences(model, groups, orders, [0.5], reference, context)
    assert torch.equal(cases.output_of(model), before)
    for group in groups:
        for gone, loss in found[group.name].items():
            selection = full_selection(groups)
            selection[group.name][orders[group.name].units[:gone]] = False
            small = copy.deepcopy(model)
            shrink(small, groups, selection)
            assert loss == pytest.approx(reference.divergence(small), rel=1e-3, abs=1e-7), (group.name, gone)
    told = curves(groups, found)
    assert told.keys() == orders.keys() and all(0 <= p["kept"] < 1 for points in told.values() for p in points)


@pytest.mark.parametrize("case", ["bert", "distilbert"])
def test_a_layer_without_units_is_judged_by_the_mean_it_gets(case):
    """As the repair leaves it: a constant, which is what the layer gave in the mean."""
    model = cases.make(case)
    groups = find_units(model).groups
    context = Context(**cases.examples_for(model))
    layers = {s.module: model.get_submodule(s.module) for group in groups for s in group.consumers}
    moments = input_moments(model, layers, context.calibration(24))
    orders, shares = {}, [0.5]
    for group in groups:
        (part,) = group.consumers
        layer, moment = layers[part.module], moments[part.module].matrix(centred=True)
        reader = Reader(layer.weight.detach(), moment, part.index, torch.ones(layer.out_features))
        orders[group.name] = eliminate([reader], stops=stops(group, shares))
    means = {name: moment.mean for name, moment in moments.items()}
    reference = Reference(model, context.calibration(16))
    found = divergences(model, groups, orders, shares, reference, context, means)
    for group in groups:
        layer = layers[group.consumers[0].module]
        given = layer.bias.detach() + layer.weight.detach() @ means[group.consumers[0].module].float()
        selection = full_selection(groups)
        selection[group.name][:] = False
        small = copy.deepcopy(model)
        shrink(small, groups, selection)
        (constant,) = (module for module in small.modules() if isinstance(module, Constant))
        bare = reference.divergence(small)
        with torch.no_grad():
            constant.bias.copy_(given)
        assert found[group.name][group.size] == pytest.approx(reference.divergence(small), rel=1e-3, abs=1e-7)
        assert found[group.name][group.size] != pytest.approx(bare, rel=1e-3)


@pytest.mark.parametrize("case", ["bert", "option_b"])
def test_what_enters_a_block_is_not_held_in_memory(case):
    model = cases.make(case)
    context = Context(**cases.examples_for(model))
    reference = Reference(model, context.calibration(24))
    before = reference.divergence(model)
    gc.collect()
    held = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    for block in chain(model):
        reference.start_from(model, block)
        gc.collect()
        assert sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()) <= held
        assert reference.divergence(model) == pytest.approx(before, abs=1e-6)


def test_of_many_predictions_of_tokens_some_are_kept(monkeypatch):
    monkeypatch.setattr(sensitivity, "ROOM", 2**14)
    torch.manual_seed(0)
    model, other = (BertForMaskedLM(BertConfig(**cases.SHAPE)).eval() for _ in range(2))
    reference = Reference(model, Context(**cases.examples_for(model, 40)).calibration(40))
    kept = sum(logits.untyped_storage().nbytes() for logits in reference.logits)
    assert 2**12 < kept < 1.2 * 2**14 and len(reference.logits) == 2
    assert reference.divergence(model) < 1e-9 < reference.divergence(other)


def test_a_head_without_logits_is_named_by_what_it_gives():
    model = BertForQuestionAnswering(BertConfig(**cases.SHAPE)).eval()
    with pytest.raises(UnsupportedModelError, match="no logits to compare, but start_logits, end_logits"):
        Reference(model, Context(**cases.examples_for(model, 4)).calibration(4))


def test_the_divergence_is_that_of_softened_classes():
    model = cases.make("bert")
    other = cases.make("bert", num_hidden_layers=3)
    batch = cases.inputs_for(model)
    with torch.no_grad():
        then, now = (F.softmax(m(**batch).logits / TEMPERATURE, -1) for m in (model, other))
    expected = float((then * (then / now).log()).sum() / 3)
    assert Reference(model, [batch]).divergence(other) == pytest.approx(expected, rel=1e-4)
    assert Reference(model, [batch]).divergence(model) == pytest.approx(0, abs=1e-6)
    with pytest.raises(CompressionError, match="no example"):
        Reference(model, [])
    for problem in ("regression", "multi_label_classification"):
        model.config.problem_type = problem
        with torch.no_grad():
            expected = float((model(**batch).logits - other(**batch).logits).square().mean())
        assert Reference(model, [batch]).divergence(other) == pytest.approx(expected, rel=1e-4)


def test_widths_that_are_tried():
    group = find_units(cases.make("option_a"), min_channels=4).groups
    inner = next(g for g in group if g.removable)
    stem = next(g for g in group if not g.removable)
    assert stops(inner, [0.75, 0.5, 0.01]) == [4, 8, 16]  # 16 channels: too few is not tried, none at all is
    assert stops(stem, [0.75, 0.5, 0.01]) == [8, 16]  # 32 channels in a block that changes the shape


def test_curves_go_through_what_was_measured():
    order = Order(torch.arange(8), torch.tensor([0, 1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.float64))
    found = corrected(order, {2: 20.0, 6: 64.0}).losses.tolist()
    assert found[2] == pytest.approx(20) and found[6] == pytest.approx(64)
    assert found[8] == pytest.approx(256)
    assert found[1] == pytest.approx(10 * 5**0.25)  # before the first point they go on as after it
    assert found[4] == pytest.approx(8 * math.sqrt(20.0))  # factors are interpolated by their logarithm
    assert found == sorted(found)
    falling = corrected(order, {2: 20.0, 6: 1.0}).losses.tolist()
    assert falling == sorted(falling)
    assert torch.equal(corrected(order, {}).losses, order.losses)


@pytest.mark.parametrize("case", ["bert", "option_b"])
@pytest.mark.parametrize("score", ["reconstruction", "masks"])
def test_fisher_meets_its_target_and_tells_what_it_measured(case, score, tmp_path):
    model = cases.make(case)
    examples = cases.examples_for(model, 48)
    report = prune(model, method="fisher", target={"macs": 0.6}, score=score, samples=48, probe_samples=24, **examples)
    assert 0.57 <= report.achieved <= 0.6 and report.notes["sensitivity"] and report.notes["repair"]
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(cases.output_of(again), cases.output_of(model))


def test_scores_look_at_examples_of_their_own_number(monkeypatch):
    model = cases.make("bert")
    asked = []
    calibration = Context.calibration
    monkeypatch.setattr(Context, "calibration", lambda self, n: asked.append(n) or calibration(self, n))
    counts = {"samples": 40, "score_samples": 24, "probe_samples": 16}
    prune(model, method="fisher", target={"macs": 0.6}, **counts, **cases.examples_for(model, 48))
    assert {n for n in asked if n > 1} == {40, 24, 16}


def test_several_passes_meet_the_target_too(tmp_path):
    for case in ("bert", "option_a"):
        model = cases.make(case)
        options = {"passes": 2, "samples": 24, "probe_samples": 16, **cases.examples_for(model, 24)}
        report = prune(model, method="fisher", target={"macs": 0.5}, **options)
        assert 0.46 <= report.achieved <= 0.5
        sizes = {group.name: group.size for group in find_units(cases.make(case)).groups}
        for name, points in report.notes["sensitivity"].items():  # of the groups as they came
            units = [point["kept"] * sizes[name] for point in points]
            assert units == pytest.approx([round(unit) for unit in units], abs=0.01)
        assert {name: line["kept"] for name, line in report.notes["layers"].items() if line["kept"]} == {
            group.name: group.size for group in find_units(model).groups
        }
        model.save_pretrained(tmp_path / case)
        again = type(model).from_pretrained(tmp_path / case).eval()
        assert torch.equal(cases.output_of(again), cases.output_of(model))


def test_padding_does_not_count_for_a_classifier_of_tokens():
    torch.manual_seed(0)
    model = BertForTokenClassification(BertConfig(**cases.SHAPE, num_labels=3, initializer_range=0.3)).eval()
    batch = next(iter(Context(**cases.examples_for(model, 8)).calibration(8)))
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    wide = {name: F.pad(values, (0, 5)) for name, values in batch.items()}
    group = find_units(model).groups[0]
    found = []
    for inputs in (batch, wide):
        order, context = order_of(group), Context(**cases.examples_for(model, 8))
        measured = divergences(model, [group], {group.name: order}, [0.5], Reference(model, [inputs]), context)
        found.append(measured[group.name])
    assert found[0] == pytest.approx(found[1], rel=1e-4) and min(found[0].values()) > 0
    weights = [token_weights(model, chain(model), inputs) for inputs in (batch, wide)]
    for name in chain(model):
        torch.testing.assert_close(weights[0][name], weights[1][name][:, :-5], rtol=1e-3, atol=1e-4)
