"""Every method that prunes on every kind of model: what is cut, what comes back, and what is refused."""

from __future__ import annotations

import copy
import gc
import itertools
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from hf_compress.errors import CompressionError, StructureError, TargetError, UnsupportedModelError
from hf_compress.lowrank import factorize
from hf_compress.measurement import count
from hf_compress.measurement.moments import input_moments
from hf_compress.pruning import find_units, masked, prune, shrink
from hf_compress.pruning.blocks import chain, without
from hf_compress.pruning.costs import CostModel
from hf_compress.pruning.elimination import Order
from hf_compress.pruning.gradients import sensitivity
from hf_compress.pruning.importance import activation_scores
from hf_compress.pruning.latency_costs import inner_groups, measure_latency_costs
from hf_compress.pruning.selection import choose
from hf_compress.pruning.streams import Streams
from hf_compress.pruning.units import Slice, UnitGroup, full_selection, widths
from hf_compress.registry import Target, get_method, methods
from hf_compress.structure import Constant, Removed, describe, track
from hf_compress.training import Context
from hf_compress.training.data import TrainingData

from . import cases
from .test_latency import Products, Staircase


METHODS = [method.name for method in methods("prune")]
MODELS = ("bert", "option_a", "option_b", "bottleneck")
MATRIX = [pair for pair in itertools.product(METHODS, MODELS) if pair != ("bn_scale", "bert")]
SOME = list(zip(METHODS, itertools.cycle(MODELS), strict=False))  # each method with one model
EXAMPLES = 8


def make(case, method=None):
    """The model of a case, with layers to spare where whole ones go."""
    return cases.make(case, **({"num_hidden_layers": 4} if (method, case) == ("depth", "bert") else {}))


def options_for(method, **others):
    """Options that make a method fast."""
    known = get_method("prune", method).options.__dataclass_fields__
    fast = {"samples": EXAMPLES, "probe_samples": EXAMPLES, "probes": [0.5], "steps": 1, "min_channels": 2}
    return {name: value for name, value in {**fast, "repair": False, **others}.items() if name in known}


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@contextmanager
def left_as_it_was(model):
    """Whatever happens inside, weights, structure, flags and hooks are the same afterwards."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = {name: module.training for name, module in model.named_modules()}
    yield
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in after.items())
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and not hasattr(module, "kept_rows")


@pytest.mark.parametrize(("method", "case"), MATRIX)
def test_what_is_cut_out_is_what_masks_silence(method, case, monkeypatch):
    model = make(case, method)
    dense = copy.deepcopy(model)
    cuts = []

    def checked(model, groups, selection):
        blocks = [group.block for group in groups if group.removable and not selection[group.name].any()]
        with masked(model, groups, selection), without(model, blocks):
            expected = cases.output_of(model)
        left = shrink(model, groups, selection)
        torch.testing.assert_close(cases.output_of(model), expected, atol=1e-5, rtol=1e-5)
        cuts.append(widths(selection))
        return left

    for module in ("iteration", "criteria", "fisher"):
        monkeypatch.setattr(f"hf_compress.pruning.{module}.shrink", checked)
    target = (0.95 if case == "bottleneck" else 0.85) if method == "depth" else 0.7
    options = options_for(method)
    report = prune(model, method=method, target={"macs": target}, **cases.examples_for(model, EXAMPLES), **options)
    assert report.achieved == pytest.approx(count(model).macs / count(dense).macs)
    assert report.achieved <= target and (report.achieved > 0.99 * target or report.warnings)
    if method == "depth":
        gone = [name for name, line in report.notes["layers"].items() if not line["kept"]]
        with without(dense, gone):
            torch.testing.assert_close(cases.output_of(model), cases.output_of(dense), atol=1e-5, rtol=1e-5)
    else:
        assert cuts and cuts[-1].keys() == report.notes["layers"].keys()


FRESH = """
import sys, torch
from pathlib import Path
import hf_compress
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification
torch.set_num_threads(int(sys.argv[2]))
for folder in sorted(Path(sys.argv[1]).iterdir()):
    inputs = torch.load(folder / "inputs.pt")
    auto = AutoModelForImageClassification if "pixel_values" in inputs else AutoModelForSequenceClassification
    model = auto.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.save(model(**inputs).logits, folder / "logits.pt")
"""


def test_models_come_back_in_a_fresh_process(tmp_path, monkeypatch):
    """All of them, those with layers without units, and two that met a target of latency."""
    expected = {}

    def keep(model, name):
        folder = tmp_path / "models" / name
        model.save_pretrained(folder)
        torch.save(cases.inputs_for(model), folder / "inputs.pt")
        expected[folder] = cases.output_of(model)

    for method, case in MATRIX:
        model = make(case, method)
        options = options_for(method, repair=True)
        target = (0.95 if case == "bottleneck" else 0.85) if method == "depth" else 0.7
        prune(model, method=method, target={"macs": target}, **cases.examples_for(model, EXAMPLES), **options)
        keep(model, f"{method}-{case}")
    for method in (method for method, case in MATRIX if case == "bert" and method != "depth"):
        model = make("bert")  # of which hardly a unit is left
        options = options_for(method, repair=True, passes=2)
        target = {"macs": 0.02, "scope": "encoder"}
        report = prune(model, method=method, target=target, **cases.examples_for(model, EXAMPLES), **options)
        assert report.achieved <= 0.02 and any(isinstance(module, Constant) for module in model.modules())
        keep(model, f"{method}-bert-empty")
    monkeypatch.setattr("hf_compress.pruning.latency_costs.cache_directory", lambda: tmp_path / "cache")
    for case in ("bert", "option_a"):
        model = make(case)
        serving = Staircase(inner_groups(find_units(model).groups, chain(model))[0])
        monkeypatch.setattr("hf_compress.pruning.verb.serving", lambda context, serving=serving, **settings: serving)
        options = options_for("fisher", repair=True, min_channels=16)
        prune(model, method="fisher", target={"latency": 0.5}, **cases.examples_for(model, EXAMPLES), **options)
        keep(model, f"latency-{case}")
    subprocess.run([sys.executable, "-c", FRESH, str(tmp_path / "models"), str(torch.get_num_threads())], check=True)
    for folder, logits in expected.items():
        assert torch.equal(torch.load(folder / "logits.pt"), logits), folder.name


@pytest.mark.parametrize(
    ("method", "case"), [pair for pair in MATRIX if pair in SOME or pair[0] in ("depth", "fisher")]
)
def test_two_prunings_in_one_process(method, case, tmp_path):
    """Nothing of the first one reaches the second, and the second one of the same model goes on from the first."""
    first, second = make(case, method), make(case, method)
    dense = copy.deepcopy(first)
    examples = cases.examples_for(first, EXAMPLES)
    once, twice = (0.95, 0.94) if (method, case) == ("depth", "bottleneck") else (0.85, 0.6)
    for model in (first, second):
        prune(model, method=method, target={"macs": once}, **examples, **options_for(method))
    assert describe(first) == describe(second)
    assert torch.equal(cases.output_of(first), cases.output_of(second))
    report = prune(first, method=method, target={"macs": twice}, baseline=dense, **examples, **options_for(method))
    assert report.achieved == pytest.approx(count(first).macs / count(dense).macs) and report.achieved <= twice
    assert torch.equal(cases.output_of(cases.reload(first, tmp_path)), cases.output_of(first))


def ragged(groups):
    """Every layer of another width; one without heads, one without neurons, one without both."""
    selection = cases.random_selection(groups, 7)
    for group in groups:
        if f"{group.block}.".endswith((".3.", ".11.") if group.kind == "heads" else (".7.", ".11.")):
            selection[group.name][:] = False
    return selection


def test_ragged_encoder_of_24_layers(tmp_path):
    model = cases.make("bert", num_hidden_layers=24)
    groups = find_units(model).groups
    assert len(groups) == 48
    selection = ragged(groups)
    costs = CostModel.measured(model, groups, Target("macs", 0.5), count)
    exact = copy.deepcopy(model).double()  # rounding adds up over so many layers
    with masked(exact, groups, selection):
        expected = cases.output_of(exact)
    shrink(exact, groups, selection)
    torch.testing.assert_close(cases.output_of(exact), expected, atol=1e-5, rtol=1e-5)
    left = shrink(model, groups, selection)
    track(model)
    assert len(left) == 44 and costs.total(widths(selection)) == pytest.approx(count(model).macs, rel=1e-9)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert describe(again) == describe(model) and torch.equal(cases.output_of(again), cases.output_of(model))


@pytest.mark.parametrize("method", [method for method, case in MATRIX if case == "bert"])
def test_methods_on_24_layers(method):
    model = cases.make("bert", num_hidden_layers=24)
    target = {"params": 0.5, "scope": "encoder"}
    report = prune(model, method=method, target=target, **cases.examples_for(model, EXAMPLES), **options_for(method))
    assert 0.49 <= report.achieved <= 0.5
    assert torch.isfinite(cases.output_of(model)).all()


@pytest.mark.parametrize("seed", range(5))
def test_widths_are_the_best_of_all(seed):
    """Against trying every combination; one of the layers may leave with its block."""
    generator = torch.Generator().manual_seed(seed)
    groups = [
        UnitGroup("a", "neurons", (Slice("a", "in", torch.arange(4)[:, None]),), 0),
        UnitGroup("b", "channels", (Slice("b", "in", torch.arange(5)[:, None]),), 3, block="block"),
        UnitGroup("c", "channels", (Slice("c", "in", torch.arange(3)[:, None]),), 1),
    ]
    options = {"a": range(5), "b": (0, 3, 4, 5), "c": range(1, 4)}
    prices = {g.name: torch.rand(g.size + 1, generator=generator).cumsum(0).tolist() for g in groups}
    orders = {}
    for g in groups:
        losses = torch.cat([torch.zeros(1), torch.rand(g.size, generator=generator)]).double().cumsum(0)
        orders[g.name] = Order(torch.randperm(g.size, generator=generator), losses)

    class Costs:
        now = sum(prices[g.name][-1] for g in groups)

        def total(self, kept):
            return sum(prices[name][width] for name, width in kept.items())

        def change(self, kept, name, width):
            return prices[name][width] - prices[name][kept[name]]

        def widths(self, group):
            return range(group.size + 1)

    def loss(kept):
        return sum(float(orders[g.name].losses[g.size - kept[g.name]]) for g in groups)

    every = [dict(zip(options, chosen, strict=True)) for chosen in itertools.product(*options.values())]
    lowest = min(Costs().total(kept) for kept in every)
    for share in (0.1, 0.3, 0.6, 0.9):
        budget = lowest + share * (Costs.now - lowest)
        selection = choose(groups, orders, Costs(), budget)
        kept = widths(selection)
        assert Costs().total(kept) <= budget
        assert loss(kept) == pytest.approx(min(loss(other) for other in every if Costs().total(other) <= budget))
        for g in groups:
            assert set((~selection[g.name]).nonzero().flatten().tolist()) == set(
                orders[g.name].units[: g.size - kept[g.name]].tolist()
            )


@pytest.mark.parametrize("seed", range(10))
def test_widths_are_the_best_of_all_where_costs_multiply(seed):
    """The real MACs of a network, its residual streams and three inner layers, against trying every combination."""
    model = cases.make("option_b")
    generator = torch.Generator().manual_seed(seed)
    found = find_units(model).groups
    streams = [group for group in found if len({part.module for part in group.slices}) > 4]
    others = [group for group in found if group not in streams]
    groups = streams + [others[i] for i in torch.randperm(len(others), generator=generator)[:3]]
    assert len(streams) == 3
    costs = CostModel.measured(model, groups, Target("macs", 0.5), count)
    costs.widths = lambda group: range(group.size // 4, group.size + 1, group.size // 4)
    orders = {}
    for group in groups:
        losses = torch.rand(group.size, generator=generator, dtype=torch.float64) / group.size
        orders[group.name] = Order(torch.arange(group.size), torch.cat([torch.zeros(1), losses.cumsum(0)]).double())

    def loss(kept):
        return sum(float(orders[g.name].losses[g.size - kept[g.name]]) for g in groups)

    names = [group.name for group in groups]
    every = [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*(costs.widths(g) for g in groups))]
    totals, losses = [costs.total(kept) for kept in every], [loss(kept) for kept in every]
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        budget = min(totals) + share * (costs.now - min(totals))
        kept = widths(choose(groups, orders, costs, budget))
        assert costs.total(kept) <= budget
        assert loss(kept) == pytest.approx(
            min(each for each, total in zip(losses, totals, strict=True) if total <= budget)
        )


def gradients(model, groups, batches, folder):
    sensitivity(model, groups, batches, Context())


def activations(model, groups, batches, folder):
    activation_scores(model, groups, batches)


def moments(model, groups, batches, folder):
    input_moments(model, {s.module: model.get_submodule(s.module) for g in groups for s in g.consumers}, batches)


def streams(model, groups, batches, folder):
    Streams({"one": model}, batches, folder)


@pytest.mark.parametrize("case", ["bert", "option_b"])
@pytest.mark.parametrize("look", [gradients, activations, moments, streams])
def test_no_activation_is_held_longer_than_its_batch(look, case, tmp_path):
    model = cases.make(case)
    held = []

    def batches():
        for number in range(6):
            if number in (2, 5):
                gc.collect()
                storages = [t.untyped_storage() for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
                held.append(sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()))
            yield {**cases.inputs_for(model), "labels": torch.tensor([0, 1, 1])}

    look(model, find_units(model).groups, batches(), tmp_path)
    assert held[1] <= held[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("fraction", "message"), [(0.0001, "out of reach.*can be reached"), (1.0, "already")])
def test_targets_that_cannot_be_are_refused(method, fraction, message):
    model = make("option_a", method).train()
    target = {"macs": fraction}
    with left_as_it_was(model), pytest.raises(TargetError, match=message):
        prune(model, method=method, target=target, **cases.examples_for(model, EXAMPLES), **options_for(method))


@pytest.mark.parametrize("method", ["magnitude", "fisher"])  # it is the verb that refuses
def test_an_empty_calibration_set_is_refused(method):
    model = make("option_a", method)
    collate = cases.examples_for(model, 1)["collate_fn"]
    for data in ([], TrainingData([], collate)):
        with left_as_it_was(model), pytest.raises(CompressionError, match="(?i)empty|no example"):
            options = options_for(method, repair=True)
            prune(model, method=method, target={"macs": 0.6}, data=data, collate_fn=collate, **options)


@pytest.mark.parametrize("method", [method.name for method in methods("prune") if "labels" in method.needs])
@pytest.mark.parametrize("case", ["bert", "option_a"])
def test_missing_labels_and_gradients_that_are_not_numbers(method, case):
    model = make(case).train()
    examples = cases.examples_for(model, EXAMPLES)
    unlabelled = [{name: value for name, value in row.items() if name != "labels"} for row in examples["data"]]
    run = {"method": method, "target": {"macs": 0.6}, "collate_fn": examples["collate_fn"], **options_for(method)}
    with left_as_it_was(model), pytest.raises(CompressionError, match="needs labels.*'labels'"):
        prune(model, data=unlabelled, **run)
    with torch.no_grad():
        (model.classifier if case == "bert" else model.timm_model.fc).weight[0, 0] = float("nan")
    with left_as_it_was(model), pytest.raises(CompressionError, match="not finite.*magnitude"):
        prune(model, data=examples["data"], **run)


@pytest.mark.parametrize("method", ["magnitude", "bn_scale", "taylor", "fisher"])
def test_modules_that_nobody_can_prune_are_kept_and_named_in_the_report(method):
    model = cases.timm_network("ecaresnet26t", channels=(8, 16, 24, 32), layers=(1, 1, 1, 1))
    kept = find_units(model).kept
    before = {name: model.get_submodule(name).weight.shape[0] for name in kept}
    options = options_for(method)
    report = prune(model, method=method, target={"macs": 0.95}, **cases.examples_for(model, EXAMPLES), **options)
    assert report.achieved <= 0.95 and report.notes["kept"] == kept
    assert {name: model.get_submodule(name).weight.shape[0] for name in kept} == before
    assert any("not the same as silencing" in reason for reason in kept.values())
    assert not report.notes["layers"].keys() & kept.keys()


def test_a_network_that_is_no_chain_is_refused_before_anything_changes():
    model = cases.make("option_b")

    def double(module, args):
        return (args[0] * 2,)

    double.__module__ = "accelerate.hooks"  # whose hooks may stay on a model that is saved
    handle = model.timm_model.layer2[1].register_forward_pre_hook(double)
    before = shapes(model)
    for method in ("magnitude", "fisher"):
        with pytest.raises(UnsupportedModelError, match="leave the repair out"):
            options = options_for(method, repair=True)
            prune(model, method=method, target={"macs": 0.6}, **cases.examples_for(model, EXAMPLES), **options)
    assert shapes(model) == before
    handle.remove()


def _foreign_layer(model):
    class Foreign(nn.Linear):
        pass

    model.bert.encoder.layer[1].output.dense = Foreign(64, 32)


def _hook(model):
    model.bert.encoder.layer[1].register_forward_hook(lambda module, args, output: None)


def _other_quantizer(model):
    model.hf_quantizer = object()


@pytest.mark.parametrize("spoil", [_foreign_layer, _hook, _other_quantizer])
@pytest.mark.parametrize("verb", [prune, partial(factorize, method="svd")])
def test_a_model_that_could_not_be_saved_is_refused_before_anything_changes(verb, spoil):
    model = cases.make("bert")
    spoil(model)
    before = shapes(model)
    with pytest.raises(StructureError):
        verb(model, target={"params": 0.8})
    assert shapes(model) == before


# what once went wrong


@pytest.mark.parametrize("refine", [1, 2, 9, 10, 11])
def test_refinement_of_any_number_of_steps(refine):
    model = cases.make("bert")
    options = options_for("magnitude", repair=True, refine=refine)  # one batch, so as many steps
    prune(model, target={"macs": 0.7}, **cases.examples_for(model, EXAMPLES), **options)
    assert torch.isfinite(cases.output_of(model)).all()


@pytest.mark.parametrize("case", MODELS)
def test_refinement_where_the_stream_is_narrower(case):
    model = cases.make(case)
    options = options_for("magnitude", repair=True, refine=2)
    report = prune(model, target={"macs": 0.6}, **cases.examples_for(model, EXAMPLES), **options)
    assert any(name in chain(model) for name in report.notes["repair"])


@pytest.mark.parametrize("kind", [Staircase, Products])
@pytest.mark.parametrize("case", ["bottleneck", "option_b", "bert", "mobilenetv3_small_050"])
@pytest.mark.parametrize("share", [0.75, 0.5, 0.25, 0.0])
def test_seconds_of_a_block_do_not_count_twice(case, kind, share, tmp_path, monkeypatch):
    """Two groups of a bottleneck live in one block and meet in its middle layer, and so do channels and those of their
    attention: what both save is what it saves."""
    monkeypatch.setattr("hf_compress.pruning.latency_costs.cache_directory", lambda: tmp_path)
    model = cases.make(case) if case in cases.ALL else cases.timm_network(case)
    groups, _ = inner_groups(find_units(model, min_channels=2).groups, chain(model))
    serving = kind(groups)
    costs = measure_latency_costs(model, groups, serving, Context())
    kept = {
        g.name: min((w for w in costs.widths(g) if w or g.minimum == 0), key=lambda w: abs(w - share * g.size))
        for g in groups
    }
    small = copy.deepcopy(model)
    shrink(small, groups, {g.name: torch.arange(g.size) < kept[g.name] for g in groups})
    seconds = sum(serving.module_seconds(small).values())
    assert costs.total(kept) == pytest.approx(seconds)
    step = 0.0
    now = {group.name: group.size for group in groups}
    for group in groups:
        step += costs.change(now, group.name, kept[group.name])
        now[group.name] = kept[group.name]
    assert costs.now + step == pytest.approx(seconds)
    groups = [group for group in groups if kept[group.name]]
    left = costs.after(small, groups, kept)
    assert left.total(kept) == pytest.approx(seconds) == left.now
    narrow = {g.name: min(w for w in costs.widths(g) if w) for g in groups}
    assert left.total(narrow) == pytest.approx(costs.total({**kept, **narrow}))


@pytest.mark.parametrize("steps", [1, 4])
def test_layers_that_looked_the_same_stay_together_over_all_steps(steps):
    model = cases.make("option_b")
    with torch.no_grad():
        model.timm_model.layer1[0].bn1.weight.mul_(0.01)
    options = options_for("bn_scale", scope="isomorphic", steps=steps)
    report = prune(model, method="bn_scale", target={"macs": 0.75}, **options)
    first, *others = (report.notes["layers"][f"timm_model.layer1.{block}.conv1"]["kept"] for block in range(3))
    assert first < 16 and others == [16, 16]


def test_layers_without_any_unit_leave_too():
    model, dense = (cases.make("bert", num_hidden_layers=4) for _ in range(2))
    groups = find_units(model).groups
    selection = full_selection(groups)
    for group in groups:
        if ".layer.1." in group.name:
            selection[group.name][:] = False
    shrink(model, groups, selection)
    examples = cases.examples_for(model, EXAMPLES)
    report = prune(model, method="depth", target={"macs": 0.5}, baseline=dense, **examples, **options_for("depth"))
    assert report.achieved <= 0.5


def test_depth_is_refused_before_anything_changes():
    model = cases.timm_network("vit_tiny_patch16_224", img_size=32, depth=3)
    options = options_for("depth", repair=True)
    with pytest.raises(UnsupportedModelError):
        prune(model, method="depth", target={"macs": 0.8}, **cases.examples_for(model, EXAMPLES), **options)
    assert not any(isinstance(module, Removed) for module in model.modules())
    headless = cases.make("bert", headless=True, num_hidden_layers=4)
    with left_as_it_was(headless), pytest.raises(CompressionError, match="logits"):
        examples = cases.examples_for(headless, EXAMPLES)
        prune(headless, method="depth", target={"macs": 0.8}, **examples, **options)


@pytest.mark.parametrize("method", ["magnitude", "fpgm", "activation", "depth"])
def test_weights_that_are_not_numbers_are_refused(method):
    model = make("bert", method)
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight[0, 0] = float("nan")
    examples = cases.examples_for(model, EXAMPLES)
    with left_as_it_was(model), pytest.raises(CompressionError, match="finite"):
        prune(model, method=method, target={"macs": 0.8}, **examples, **options_for(method))


def test_a_layer_that_reads_nothing_but_zeros_is_repaired_by_its_shift():
    model = cases.make("option_a")
    nn.init.constant_(model.timm_model.layer2[1].bn1.bias, -50.0)
    options = options_for("magnitude", repair=True)
    prune(model, target={"macs": 0.7}, **cases.examples_for(model, EXAMPLES), **options)
    assert torch.isfinite(cases.output_of(model)).all()
