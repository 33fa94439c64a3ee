from __future__ import annotations

import copy
import types

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_compress.errors import CompressionError, RecipeError, TargetError, UnsupportedModelError
from hf_compress.lowrank import SvdOptions, factorize, factorize_svd
from hf_compress.measurement import count
from hf_compress.registry import Target, get_method
from hf_compress.structure import LowRankConv2d, LowRankLinear


def context_for(model, target=None, batches=(), baseline=None):
    """A context as small as a method may rely on."""
    baseline_cost = count(baseline or model)
    notes: dict = {}
    return types.SimpleNamespace(
        seed=0,
        target=target,
        baseline_cost=baseline_cost,
        budget=None if target is None else target.fraction * baseline_cost.of(target),
        calibration=lambda n: iter(batches),
        cost=count,
        progress=lambda iterable, description, total=None: iterable,
        note=lambda **facts: notes.update(facts),
        notes=notes,
    )


def low_rank_modules(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, LowRankLinear | LowRankConv2d)}


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


TARGETS = [
    Target("params", 0.8),
    Target("macs", 0.6),
    Target("params", 0.6, "encoder"),
    Target("macs", 0.45, "encoder"),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.kind}-{t.scope}")
def test_bert_meets_its_target(tiny_bert, tiny_bert_batch, target):
    dense = copy.deepcopy(tiny_bert)
    context = context_for(tiny_bert, target)
    factorize_svd(tiny_bert, SvdOptions(round_to=1), context)
    after, before = count(tiny_bert).of(target), count(dense).of(target)
    assert 0.97 * target.fraction < after / before <= target.fraction
    assert isinstance(tiny_bert.classifier, nn.Linear) and isinstance(tiny_bert.bert.pooler.dense, nn.Linear)
    layers = context.notes["layers"]
    assert len(layers) == 12
    for name, module in low_rank_modules(tiny_bert).items():
        weight = dense.get_submodule(name).weight.detach()
        product = (module.up.weight @ module.down.weight).detach()
        error = float((weight - product).norm() / weight.norm())
        assert layers[name]["rank"] == module.rank
        assert layers[name]["of"] == min(weight.shape)
        assert layers[name]["error"] == pytest.approx(error, abs=1e-4)
        assert torch.equal(module.up.bias, dense.get_submodule(name).bias)
    assert torch.isfinite(logits(tiny_bert, tiny_bert_batch)).all()


@pytest.mark.parametrize("scheme", ["auto", "spatial", "channel"])
@pytest.mark.parametrize("kind", ["params", "macs"])
def test_resnets_meet_their_target(tiny_resnet, tiny_image_batch, scheme, kind):
    target = Target(kind, 0.7)
    dense = copy.deepcopy(tiny_resnet)
    context = context_for(tiny_resnet, target)
    factorize_svd(tiny_resnet, SvdOptions(scheme=scheme, round_to=1), context)
    # one rank of a wide stem is a few per cent of so small a network
    assert 0.92 * 0.7 < count(tiny_resnet).of(target) / count(dense).of(target) <= 0.7
    found = low_rank_modules(tiny_resnet)
    assert found
    for name, module in found.items():
        original = dense.get_submodule(name)
        assert module.scheme in (("spatial", "channel") if scheme == "auto" else (scheme, "channel"))
        assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in original.parameters())
        assert context.notes["layers"][name]["scheme"] == module.scheme
    assert torch.isfinite(logits(tiny_resnet, tiny_image_batch)).all()


def test_auto_loses_no_more_than_either_scheme(tiny_resnet):
    losses = {}
    for scheme in ("auto", "spatial", "channel"):
        model = copy.deepcopy(tiny_resnet)
        context = context_for(model, Target("params", 0.6))
        factorize_svd(model, SvdOptions(scheme=scheme, round_to=1), context)
        losses[scheme] = sum(fact["error"] ** 2 for fact in context.notes["layers"].values())
    assert losses["auto"] <= min(losses["spatial"], losses["channel"]) + 1e-3


def test_allocation_beats_the_same_rank_everywhere(tiny_bert):
    """Layers of unlike spectra: what is spent goes where the spectrum is flat."""
    with torch.no_grad():
        thin = torch.randn(64, 3) @ torch.randn(3, 32)
        tiny_bert.bert.encoder.layer[0].intermediate.dense.weight.copy_(thin + 1e-3 * torch.randn(64, 32))
    uniform, allocated = copy.deepcopy(tiny_bert), copy.deepcopy(tiny_bert)
    context = context_for(uniform)
    factorize_svd(uniform, SvdOptions(rank=8), context)
    spent = count(uniform).params / count(tiny_bert).params
    chosen = context_for(allocated, Target("params", spent))
    factorize_svd(allocated, SvdOptions(round_to=1), chosen)
    assert count(allocated).params <= count(uniform).params
    error = [sum(fact["error"] ** 2 for fact in c.notes["layers"].values()) for c in (context, chosen)]
    assert error[1] < error[0]
    assert chosen.notes["layers"]["bert.encoder.layer.0.intermediate.dense"]["rank"] <= 4


@pytest.mark.parametrize("kind", ["params", "macs"])
def test_uniform_takes_the_same_fraction_of_every_layer(tiny_resnet, kind):
    dense = copy.deepcopy(tiny_resnet)
    target = Target(kind, 0.6)
    context = context_for(tiny_resnet, target)
    factorize_svd(tiny_resnet, SvdOptions(allocation="uniform", round_to=1), context)
    assert 0.95 * 0.6 < count(tiny_resnet).of(target) / count(dense).of(target) <= 0.6
    found = low_rank_modules(tiny_resnet)
    wide = [name for name in found if dense.get_submodule(name).weight.shape[:2] == (32, 32)]
    # one for each stride, and one more for the layers that were given what was left
    assert len({found[name].rank for name in wide}) <= 3
    assert all(fact["scheme"] != "dense" for fact in context.notes["layers"].values() if fact["of"] > 8)


def test_targets_out_of_reach_or_met_already_are_refused_untouched(tiny_bert):
    before = copy.deepcopy(tiny_bert.state_dict())
    context = context_for(tiny_bert, Target("params", 0.01))
    with pytest.raises(TargetError, match="out of reach.*bring it down to 0\\.") as refusal:
        factorize_svd(tiny_bert, SvdOptions(), context)
    assert list(before) == list(tiny_bert.state_dict())
    # the range it names is right: its floor is reachable, and a little less is not
    floor = float(str(refusal.value).split("down to ")[1].split(" ")[0])
    with pytest.raises(TargetError):
        factorize_svd(tiny_bert, SvdOptions(), context_for(tiny_bert, Target("params", floor - 2e-4)))
    dense = copy.deepcopy(tiny_bert)
    factorize_svd(tiny_bert, SvdOptions(), context_for(tiny_bert, Target("params", floor + 2e-4)))
    with pytest.raises(TargetError, match="met already"):
        factorize_svd(tiny_bert, SvdOptions(), context_for(tiny_bert, Target("params", 0.99), baseline=dense))


@pytest.mark.parametrize(
    "options, target, message",
    [
        ({}, None, "exactly one of target"),
        ({"rank": 4}, Target("params", 0.5), "exactly one of target"),
        ({"energy": 0.5}, Target("macs", 0.5), "exactly one of target"),
    ],
)
def test_the_question_must_be_one(tiny_bert, options, target, message):
    with pytest.raises(RecipeError, match=message):
        factorize_svd(tiny_bert, SvdOptions(**options), context_for(tiny_bert, target))


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 0},
        {"energy": 1.5},
        {"rank": 2, "energy": 0.5},
        {"weighting": "fisher"},
        {"scheme": "tucker"},
        {"allocation": "max"},
        {"round_to": 0},
        {"exclude": "*.dense"},
    ],
)
def test_options_are_checked(options):
    with pytest.raises(RecipeError, match=next(iter(options))):
        SvdOptions(**options)


def test_fixed_ranks_and_break_even(tiny_bert):
    factorize_svd(tiny_bert, SvdOptions(rank=17), context_for(tiny_bert))
    found = low_rank_modules(tiny_bert)
    # break-even is 16 for 32 x 32 and 21 for 32 x 64
    assert len(found) == 4 and all(module.rank == 17 for module in found.values())
    with pytest.raises(UnsupportedModelError, match="rank 40"):
        factorize_svd(tiny_bert, SvdOptions(rank=40), context_for(tiny_bert))


def test_energy_is_kept_and_dense_stays_where_it_needs_too_much(tiny_bert):
    with torch.no_grad():
        tiny_bert.bert.encoder.layer[1].output.dense.weight.copy_(torch.randn(32, 2) @ torch.randn(2, 64))
    context = context_for(tiny_bert)
    factorize_svd(tiny_bert, SvdOptions(energy=0.95, round_to=1), context)
    layers = context.notes["layers"]
    assert layers["bert.encoder.layer.1.output.dense"]["rank"] <= 2
    for fact in layers.values():
        assert fact["error"] ** 2 <= 0.05 + 1e-6
        assert fact["scheme"] == "linear" or fact["error"] == 0.0
    assert any(fact["scheme"] == "dense" for fact in layers.values())


def test_activation_weighting_keeps_the_output_better_and_corrects_the_bias(tiny_bert, tiny_bert_batch):
    torch.manual_seed(1)
    batches = [{**tiny_bert_batch, "input_ids": torch.randint(5, 12, (4, 12))} for _ in range(6)]
    hidden = {}
    for weighting in ("none", "activation"):
        model = copy.deepcopy(tiny_bert)
        context = context_for(model, Target("params", 0.75), batches)
        factorize_svd(model, SvdOptions(weighting=weighting, round_to=1), context)
        with torch.no_grad():
            hidden[weighting] = torch.stack([model.bert(b["input_ids"]).last_hidden_state for b in batches])
    with torch.no_grad():
        exact = torch.stack([tiny_bert.bert(b["input_ids"]).last_hidden_state for b in batches])
    assert (hidden["activation"] - exact).norm() < 0.7 * (hidden["none"] - exact).norm()


def test_activation_error_is_the_measured_one_for_linear_and_both_schemes():
    """On the calibration data itself: the stated relative error is that of the outputs."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.spatial = nn.Conv2d(6, 8, 3, padding=1, stride=2)
            self.channel = nn.Conv2d(6, 8, (3, 1), bias=False)
            self.linear = nn.Linear(20, 9)

        def forward(self, images, rows):
            return self.spatial(images), self.channel(images), self.linear(rows)

    base = torch.randn(40, 6, 3, 3)
    images = nn.functional.interpolate(base, size=(10, 10), mode="bilinear") + 0.3
    batch = {"images": images, "rows": torch.randn(40, 4) @ torch.randn(4, 20) + 0.1 * torch.randn(40, 20) + 1}
    model = Net()

    def cost(model):
        model(**batch)

    for scheme in ("spatial", "channel"):
        small, notes = copy.deepcopy(model), {}
        context = types.SimpleNamespace(
            target=None,
            cost=cost,
            calibration=lambda n: [batch],
            progress=lambda iterable, *_, **__: iterable,
            note=notes.update,
        )
        factorize_svd(small, SvdOptions(rank=3, weighting="activation", scheme=scheme), context)
        with torch.no_grad():
            before, after = model(**batch), small(**batch)
        for name, old, new in zip(("spatial", "channel", "linear"), before, after, strict=True):
            channel_dim = -1 if old.ndim == 2 else 1
            rows = old.movedim(channel_dim, -1).flatten(0, -2)
            if model.get_submodule(name).bias is not None:  # centred, with the mean taken up by the bias
                difference = (new - old).movedim(channel_dim, -1).flatten(0, -2)
                assert difference.mean(0).abs().max() < 1e-4
                rows = rows - rows.mean(0)
            measured = float((new - old).norm() / rows.norm())
            assert isinstance(small.get_submodule(name), LowRankConv2d | LowRankLinear)
            assert notes["layers"][name]["error"] == pytest.approx(measured, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("weighting, threads", [("activation", (1, 1)), ("none", (1, 2))])
def test_is_deterministic(tiny_resnet, tiny_image_batch, weighting, threads):
    """Whatever the state of the generator; of weights alone, with any number of threads."""
    results, before = [], torch.get_num_threads()
    for seed, number in enumerate(threads):
        torch.manual_seed(seed)
        torch.set_num_threads(number)
        try:
            model = copy.deepcopy(tiny_resnet)
            options = SvdOptions(weighting=weighting, round_to=2)
            factorize_svd(model, options, context_for(model, Target("macs", 0.7), [tiny_image_batch]))
            assert torch.get_num_threads() == number
        finally:
            torch.set_num_threads(before)
        results.append(model.state_dict())
    assert list(results[0]) == list(results[1])
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_goes_on_from_a_factorized_model_and_from_ragged_widths(tiny_bert, tiny_bert_batch):
    layer = tiny_bert.bert.encoder.layer[0]
    layer.intermediate.dense = nn.Linear(32, 37)
    layer.output.dense = nn.Linear(37, 32)
    dense = copy.deepcopy(tiny_bert)
    factorize_svd(
        tiny_bert, SvdOptions(exclude=["*.attention"], round_to=1), context_for(tiny_bert, Target("params", 0.9))
    )
    first = low_rank_modules(tiny_bert)
    assert first and not any("attention" in name for name in first)
    context = context_for(tiny_bert, Target("params", 0.8), baseline=dense)
    factorize_svd(tiny_bert, SvdOptions(round_to=1), context)
    assert count(tiny_bert).params <= 0.8 * count(dense).params
    assert all(tiny_bert.get_submodule(name) is module for name, module in first.items())
    assert torch.isfinite(logits(tiny_bert, tiny_bert_batch)).all()


def test_a_pruned_bert_is_factorized_further(tiny_bert, tiny_bert_batch, tmp_path):
    check_pruned(tiny_bert, tiny_bert_batch, AutoModelForSequenceClassification, tmp_path)


def test_a_pruned_resnet_is_factorized_further(tiny_resnet, tiny_image_batch, tmp_path):
    check_pruned(tiny_resnet, tiny_image_batch, AutoModelForImageClassification, tmp_path)


def check_pruned(model, batch, auto, folder):
    """Both targets are fractions of the dense model, and the result loads."""
    from hf_compress.pruning import prune

    dense = copy.deepcopy(model)
    prune(model, target={"macs": 0.8})
    report = factorize(model, target={"macs": 0.6}, baseline=dense, round_to=1)
    assert 0.5 < report.achieved <= 0.6
    assert report.achieved == pytest.approx(count(model).macs / count(dense).macs)
    model.save_pretrained(folder)
    assert torch.allclose(logits(auto.from_pretrained(folder), batch), logits(model, batch), atol=1e-5)


def test_bfloat16_and_training_mode_are_kept(tiny_bert):
    tiny_bert.bfloat16().train()
    factorize_svd(tiny_bert, SvdOptions(rank=8), context_for(tiny_bert))
    for module in low_rank_modules(tiny_bert).values():
        assert module.training and module.down.training
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}


def test_verb_on_bert(tiny_bert, tiny_bert_batch, tmp_path):
    check_verb(tiny_bert, tiny_bert_batch, AutoModelForSequenceClassification, tmp_path)


def test_verb_on_resnets(tiny_resnet, tiny_image_batch, tmp_path):
    check_verb(tiny_resnet, tiny_image_batch, AutoModelForImageClassification, tmp_path)


def check_verb(model, batch, auto, folder):
    """Factorize, save, load with plain Transformers, and train one step."""
    whole = count(model).macs
    report = factorize(model, target={"macs": 0.7}, round_to=1)
    assert report.model is model and report.technique == "factorize" and report.method == "svd"
    assert report.achieved == pytest.approx(count(model).macs / whole) and report.achieved <= 0.7
    assert report.notes["layers"] and report.notes["kept_dense"]
    model.save_pretrained(folder)
    loaded = auto.from_pretrained(folder).eval()
    assert set(low_rank_modules(loaded)) == set(low_rank_modules(model))
    one, two = logits(loaded, batch), logits(model, batch)
    assert torch.equal(one, two), (one - two).abs().max()

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(**batch).loss.backward()
    optimizer.step()
    for name in low_rank_modules(model):
        for factor in ("down", "up"):
            weight = f"{name}.{factor}.weight"
            assert not torch.equal(before[weight], model.get_parameter(weight)), weight


def test_verb_reads_data_options_and_baseline(tiny_bert, tiny_bert_batch):
    import datasets

    columns = {name: value.tolist() for name, value in tiny_bert_batch.items()}
    data = datasets.Dataset.from_dict(columns).with_format("torch")
    dense = copy.deepcopy(tiny_bert)
    with pytest.raises(CompressionError, match="data"):
        factorize(tiny_bert, target={"params": 0.8}, weighting="activation")
    with pytest.raises(RecipeError, match="weighting"):
        factorize(tiny_bert, target={"params": 0.8}, weightning="activation")
    with pytest.raises(RecipeError, match="svd"):
        factorize(tiny_bert, method="sdv", target={"params": 0.8})
    report = factorize(tiny_bert, target={"params": 0.9}, weighting="activation", data=data, round_to=1)
    assert report.achieved <= 0.9
    again = factorize(tiny_bert, target={"params": 0.8}, baseline=dense, round_to=1)
    assert again.achieved == pytest.approx(count(tiny_bert).params / count(dense).params)
    assert again.achieved <= 0.8


def test_is_registered_as_a_method_that_does_not_train():
    method = get_method("factorize", "svd")
    assert method.targets == {"macs", "params"} and not method.trains and not method.needs
    assert method.summary.startswith("Replace") and "arXiv" in method.paper
