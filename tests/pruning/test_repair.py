"""The repair against dense least squares, on layers whose every input can be written down."""

from __future__ import annotations

import copy
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_compress.errors import CompressionError, DiskFullError, UnsupportedModelError
from hf_compress.lowrank import factorize
from hf_compress.measurement import PeakMemory
from hf_compress.pruning import find_units, prune, shrink
from hf_compress.pruning.blocks import chain, check_chain, first_of
from hf_compress.pruning.fits import find_fits
from hf_compress.pruning.regression import Regression
from hf_compress.pruning.repair import following_rows, pruned_readers, repair
from hf_compress.pruning.streams import Streams
from hf_compress.pruning.token_weights import token_weights
from hf_compress.pruning.units import full_selection
from hf_compress.structure import Constant, describe
from hf_compress.training import Context

from . import cases


def cut(model, wanted, keep=0.5, seed=0):
    """A copy of `model` without a part of the units of the groups named, the layers that read them, and their rows."""
    groups = find_units(model).groups
    selection = full_selection(groups)
    generator = torch.Generator().manual_seed(seed)
    for name in selection:
        if wanted(name):
            selection[name] = torch.rand(len(selection[name]), generator=generator) < keep
    small = copy.deepcopy(model)
    with following_rows(small) as rows:
        shrink(small, groups, selection)
        left = rows()
    return small, pruned_readers(small, model, groups), left


def read_and_given(model, name, batch):
    """What a module reads and gives in a forward of `model`; copies, as an activation may write into what it reads."""
    found = []
    module = model.get_submodule(name)
    handles = [
        module.register_forward_pre_hook(lambda module, args: found.append(args[0].clone())),
        module.register_forward_hook(lambda module, args, output: found.append(first_of(output).clone())),
    ]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return found


def ridge_fit(x, y, start, ridge, weights=None):
    """Rows `(count, n)` to rows `(count, m)`, with an intercept, drawn to the coefficients `start`, `(n + 1, m)`."""
    x, y = torch.cat([x, torch.ones(len(x), 1)], 1).double(), y.double()
    if weights is not None:
        x, y = x * weights.sqrt()[:, None], y * weights.sqrt()[:, None]
    penalty = torch.eye(x.shape[1], dtype=torch.float64) * (ridge * x[:, :-1].square().sum(0).mean()).sqrt()
    penalty = penalty[:-1]
    return torch.linalg.lstsq(torch.cat([x, penalty]), torch.cat([y, penalty @ start.double()])).solution


def judged_fit(x, y, start, ridge):
    """Examples `(count, ..., n)` to `(count, ..., m)`: of four penalties the one that fits every eighth example best,
    which the fit does not see."""
    judges = torch.arange(len(x)) % 8 == 7
    unseen = [rows[judges].flatten(0, -2).double() for rows in (x, y)]
    seen = [rows[~judges].flatten(0, -2) for rows in (x, y)]
    fits = [ridge_fit(*seen, start, ridge * 10**power) for power in range(4)]
    return min(fits, key=lambda found: float((unseen[0] @ found[:-1] + found[-1] - unseen[1]).square().sum()))


def context_for(model, count=48):
    return Context(**cases.examples_for(model, count))


def whole_batch(model, context, count=48):
    batches = [{k: v for k, v in batch.items() if k != "labels"} for batch in context.calibration(count)]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def weights_of(model, context, block, count=48):
    """What every token counts, `(examples, length)`, as the repair of a block weighs them: batch by batch."""
    batches = [{k: v for k, v in batch.items() if k != "labels"} for batch in context.calibration(count)]
    return torch.cat([token_weights(model, chain(model), batch)[block] for batch in batches]).double()


@pytest.mark.parametrize("ridge", [1e-4, 1e-2])
@pytest.mark.parametrize(
    ("case", "block", "group", "reader", "norm"),
    [
        ("bert", "bert.encoder.layer.1", "intermediate", "output.dense", "output.LayerNorm"),
        ("bert", "bert.encoder.layer.1", "attention.self", "attention.output.dense", "attention.output.LayerNorm"),
        ("distilbert", "distilbert.transformer.layer.1", "ffn", "ffn.lin2", "output_layer_norm"),
        ("distilbert", "distilbert.transformer.layer.1", "attention", "attention.out_lin", "sa_layer_norm"),
    ],
)
def test_heads_and_neurons_of_a_layer(case, block, group, reader, norm, ridge):
    dense = cases.make(case)
    layer, norm = f"{block}.{reader}", f"{block}.{norm}"
    small, readers, rows = cut(dense, lambda name: name == f"{block}.{group}")
    assert readers == [layer]
    start = small.get_submodule(layer)
    start = torch.cat([start.weight.detach().T, start.bias.detach()[None]])
    context = context_for(dense)
    batch = whole_batch(dense, context)
    x, _ = read_and_given(small, layer, batch)
    (now, _), (wanted, _) = (read_and_given(model, norm, batch) for model in (small, dense))
    _, gives = read_and_given(small, layer, batch)
    counts = batch["attention_mask"].bool()
    weights = weights_of(dense, context, block)[counts]
    expected = ridge_fit(x[counts], (gives + wanted - now)[counts], start, ridge, weights)
    errors = repair(small, dense, readers, context, samples=48, ridge=ridge, rows=rows)
    found = small.get_submodule(layer)
    change = torch.cat([found.weight.T, found.bias[None]]).double() - start
    assert (change - (expected - start)).norm() < 2e-2 * (expected - start).norm() > 0
    assert 0 < errors[layer] < 1


@pytest.mark.parametrize("case", ["option_a", "bottleneck"])
def test_channels_of_a_residual_block(case):
    dense = cases.make(case)
    block = "timm_model.layer2.1" if case == "option_a" else "timm_model.layer2.0"
    last, norm = ("conv2", "bn2") if case == "option_a" else ("conv3", "bn3")
    inner = "conv1" if case == "option_a" else "conv2"
    small, readers, rows = cut(dense, lambda name: name == f"{block}.{inner}")
    layer = f"{block}.{last}"
    assert readers == [layer]
    conv = small.get_submodule(layer)
    start = torch.cat([conv.weight.detach().flatten(1).T, torch.zeros(1, conv.out_channels)])
    context = context_for(dense)
    batch = whole_batch(dense, context)
    x, gives = read_and_given(small, layer, batch)
    joint = f"{block}.act{last[-1]}"
    (now, _), (wanted, _) = (read_and_given(model, joint, batch) for model in (small, dense))
    bn = small.get_submodule(norm and f"{block}.{norm}")
    scale = bn.weight.detach() / (bn.running_var + bn.eps).sqrt()
    target = gives + (wanted - now) / scale[:, None, None]
    patches = F.unfold(x, conv.kernel_size, padding=conv.padding, stride=conv.stride).transpose(1, 2).flatten(0, 1)
    expected = ridge_fit(patches, target.flatten(2).transpose(1, 2).flatten(0, 1), start, 1e-3)
    shift = bn.bias.detach().clone()
    repair(small, dense, readers, context, samples=48, ridge=1e-3, rows=rows)
    torch.testing.assert_close(conv.weight.flatten(1).T.double(), expected[:-1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close((bn.bias - shift).double(), expected[-1] * scale, rtol=1e-3, atol=1e-4)


def test_the_classifier_reads_what_is_left_of_the_last_channels():
    dense = cases.make("option_b")
    small, readers, rows = cut(dense, lambda name: name == "timm_model.layer3.0.conv2")  # channels that layer3 adds to
    assert "timm_model.fc" in readers
    context = context_for(dense)
    batch = whole_batch(dense, context)
    start = small.timm_model.fc.weight.detach().T
    start = torch.cat([start, small.timm_model.fc.bias.detach()[None]])
    repair(small, dense, readers, context, samples=48, ridge=1e-1, rows=rows)
    x, _ = read_and_given(small, "timm_model.fc", batch)
    _, wanted = read_and_given(dense, "timm_model.fc", batch)
    expected = judged_fit(x, wanted, start, 1e-1)
    torch.testing.assert_close(small.timm_model.fc.weight.T.double(), expected[:-1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(small.timm_model.fc.bias.double(), expected[-1], rtol=1e-3, atol=1e-4)
    assert "unrepaired" not in context.notes


def test_the_last_convolution_is_fitted_with_its_normalization():
    dense = cases.timm_network("tf_efficientnetv2_b0")
    small, readers, rows = cut(dense, lambda name: name == "timm_model.blocks.5.0.conv_pwl", keep=0.3)
    context, layer = context_for(dense), "timm_model.conv_head"
    conv, norm = small.get_submodule(layer), small.timm_model.bn2
    start = torch.cat([conv.weight.detach().flatten(1).T, torch.zeros(1, conv.out_channels)])
    shift, scale = norm.bias.detach().clone(), norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    repair(small, dense, [layer], context, samples=48, ridge=0.1, rows=rows)
    batch = whole_batch(dense, context)
    (x, _), (_, wanted) = (read_and_given(model, layer, batch) for model in (small, dense))
    expected = judged_fit(*(t.flatten(2).transpose(1, 2) for t in (x, wanted)), start, 0.1)
    torch.testing.assert_close(conv.weight.flatten(1).T.double(), expected[:-1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close((norm.bias - shift).double(), expected[-1] * scale, rtol=1e-3, atol=1e-4)


def test_a_classifier_is_not_fitted_to_what_it_cannot_learn_from_so_few_examples():
    """300 inputs and 280 examples; on others the dense classifier's predictions have to come nearer all the same."""
    torch.manual_seed(0)
    layer, others = nn.Linear(300, 10), torch.randn(500, 300)
    wanted = nn.Linear(300, 10)
    fits = {}
    for unseen in (False, True):
        fitted = copy.deepcopy(layer)
        sums = [Regression("fc", fitted) for _ in range(2)]
        generator = torch.Generator().manual_seed(1)
        for number in range(10):
            reads = torch.randn(32, 300, generator=generator)
            target = wanted(reads).detach() + 5 * torch.randn(32, 10, generator=generator)
            sums[number == 9].add(reads, target)
        share = sums[0].fit(1e-3, unseen=sums[1] if unseen else None)
        fits[unseen] = float((fitted(others) - wanted(others)).detach().square().mean())
        assert share <= 1
    before = float((layer(others) - wanted(others)).detach().square().mean())
    assert fits[True] <= before < fits[False]


@pytest.mark.parametrize("samples", [1, 5, 100])
def test_a_wide_classifier_with_few_examples_does_not_get_worse(samples):
    """It reads more channels than there are examples."""
    dense = cases.timm_network("resnet26", channels=(8, 16, 24, 128))  # 512 inputs
    small, readers, rows = cut(dense, lambda name: name == "timm_model.layer4.0.conv3", keep=0.9)
    assert "timm_model.fc" in readers
    before = copy.deepcopy(small.timm_model.fc)
    share = repair(small, dense, ["timm_model.fc"], context_for(dense, samples), samples=samples, rows=rows)
    others = Context(**cases.examples_for(dense, 200, seed=4))
    x, _ = read_and_given(small, "timm_model.fc", whole_batch(dense, others, 200))
    _, wanted = read_and_given(dense, "timm_model.fc", whole_batch(dense, others, 200))
    errors = [float((layer(x) - wanted).detach().square().mean()) for layer in (small.timm_model.fc, before)]
    assert errors[0] <= errors[1] * (1 + 1e-3) and share["timm_model.fc"] <= 1
    assert samples == 100 or errors[0] == errors[1]


def test_the_error_that_is_left_is_that_of_the_channels_that_were_set():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    reads, wanted, usable = torch.randn(64, 4), torch.randn(64, 3), torch.tensor([True, False, True])
    regression = Regression("fc", layer)
    regression.add(reads, wanted)
    before = float((layer(reads) - wanted).detach().double().square().sum())
    share = regression.fit(1e-3, usable)
    assert share == pytest.approx(float((layer(reads) - wanted).detach().double().square().sum()) / before, rel=1e-4)


@pytest.mark.parametrize("margin", [1, -1])
def test_a_layer_that_gives_other_positions_than_its_geometry_tells_is_not_fitted(margin):
    class Other(nn.Conv2d):
        def forward(self, images):
            return super().forward(F.pad(images, [margin] * 4))

    layer = Other(3, 4, 3)
    reads = torch.randn(2, 3, 8, 8)
    with pytest.raises(UnsupportedModelError, match=r"stem \(Other\) gives (128|32) positions, .* tell of 72"):
        Regression("stem", layer).add(reads, layer(reads).detach().movedim(1, -1))


def test_weights_in_half_precision_are_not_repaired_and_nothing_is_cut():
    model = cases.make("bert").bfloat16()
    with pytest.raises(CompressionError, match=r"bfloat16; call model.float\(\)"):
        prune(model, method="magnitude", target={"macs": 0.6}, repair=True, samples=8, **cases.examples_for(model))
    assert describe(model) == {}


def test_what_runs_before_the_blocks_is_told_to_be_as_it_was():
    dense = cases.make("option_b")
    context = context_for(dense)
    for _ in range(2):
        assert not repair(copy.deepcopy(dense), dense, ["timm_model.conv1"], context, samples=8)
    assert set(context.notes["unrepaired"]) == {"timm_model.conv1"}


@pytest.mark.parametrize("case", ["bert", "distilbert", "option_a", "option_b", "bottleneck"])
@pytest.mark.parametrize("seed", [0, 1])
def test_blocks_come_nearer_to_the_dense_ones(case, seed):
    dense = cases.make(case)
    small, readers, rows = cut(dense, lambda name: ".layer" in name or "transformer" in name, keep=0.6, seed=seed)
    context = context_for(dense)
    batch = whole_batch(dense, context)
    last = chain(dense)[-1]
    (_, wanted), (_, before) = (read_and_given(model, last, batch) for model in (dense, small))
    if hasattr(dense, "timm_model"):
        wanted = wanted[:, [kept for name, kept in rows.items() if name.startswith(last) and ".conv" in name][-1]]
    errors = repair(small, dense, readers, context, samples=48, ridge=1e-4, rows=rows)
    _, after = read_and_given(small, last, batch)
    assert (after - wanted).square().sum() < 0.9 * (before - wanted).square().sum()
    assert set(errors) <= set(readers) and all(0 <= error <= 1 + 1e-6 for error in errors.values())


@pytest.mark.parametrize("case", ["bert", "distilbert", "option_a", "option_b", "bottleneck"])
def test_refined_blocks_come_nearer_still(case):
    """In one block, so that what enters it is the same; the share that is noted is that of its errors. A pass over 48
    examples is two steps, so there are many."""
    dense = cases.make(case)
    first = chain(dense)[0]
    small, readers, rows = cut(dense, lambda name: name.startswith(first), keep=0.6)
    context, batch = context_for(dense), whole_batch(dense, context_for(dense))
    weights = None if hasattr(dense, "timm_model") else weights_of(dense, context, first)
    errors, figures = {}, {}
    for refine in (0, 32):
        model = copy.deepcopy(small)
        figures[refine] = repair(model, dense, readers, context, samples=48, refine=refine, rows=rows)
        (_, wanted), (_, given) = (read_and_given(each, first, batch) for each in (dense, model))
        if hasattr(dense, "timm_model"):
            wanted = wanted[:, [kept for name, kept in rows.items() if name.startswith(first) and ".conv" in name][-1]]
        squares = (given - wanted).double().square()
        errors[refine] = float(squares.mean() if weights is None else (squares.mean(-1) * weights).mean())
    assert errors[32] < 0.99 * errors[0] and first not in figures[0]
    assert figures[32][first] == pytest.approx(errors[32] / errors[0], rel=0.1)


def test_a_refinement_that_makes_it_worse_is_taken_back(monkeypatch):
    monkeypatch.setattr("hf_compress.pruning.refinement.RATE", 1e3)
    dense = cases.make("bert")
    small, readers, rows = cut(dense, lambda name: "layer.0" in name)
    models = [copy.deepcopy(small) for _ in range(2)]
    for model, refine in zip(models, (0, 3), strict=True):
        found = repair(model, dense, readers, context_for(dense), samples=48, refine=refine, rows=rows)
    assert found["bert.encoder.layer.0"] == 1.0
    assert torch.equal(*map(cases.output_of, models))
    assert all(p.requires_grad and p.grad is None for p in models[1].parameters())


def test_a_block_that_joins_several_outputs_is_not_refined(monkeypatch):
    monkeypatch.setattr("hf_compress.pruning.fisher._orders", lambda *args: pytest.fail("takes long"))
    model = cases.timm_network("densenet121", growth_rate=4, block_config=(2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = {"target": {"macs": 0.8}, "min_channels": 2, "samples": 24, **cases.examples_for(model)}
    for method in ("magnitude", "fisher"):
        with pytest.raises(UnsupportedModelError, match="refine: .*denseblock1 gives .*; give refine 0"):
            prune(model, method=method, repair=True, refine=1, **run)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert prune(model, repair=True, **run).achieved <= 0.8


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_examples_that_are_not_numbers_are_refused_before_anything_is_cut(value):
    model = cases.make("option_a")
    examples = cases.examples_for(model)
    examples["data"][20]["pixel_values"][0, 5, 5] = value
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CompressionError, match="pixel_values of a training example .*NaN or infinite"):
        prune(model, target={"macs": 0.6}, repair=True, samples=24, **examples)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    small, readers, rows = cut(model, lambda name: "layer1" in name)
    with pytest.raises(CompressionError, match="layer1.* values that are not finite"):
        repair(small, model, readers, Context(**examples), samples=24, rows=rows)


def test_a_disk_without_room_is_found_before_anything_is_cut(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        "hf_compress.pruning.preconditions.shutil.disk_usage", lambda folder: usage(10**9, 10**9, 10**5)
    )
    model = cases.make("option_a")
    with pytest.raises(DiskFullError, match="GB are free; give fewer samples.*TMPDIR"):
        prune(model, target={"macs": 0.6}, repair=True, samples=24, **cases.examples_for(model))
    assert find_units(model).groups[1].size == 16


@pytest.mark.parametrize("case", ["option_a", "bert"])
@pytest.mark.parametrize("place", ["hf_compress.pruning.regression.Regression.add", "torch.nn.functional.kl_div"])
def test_an_interruption_leaves_nothing_behind(place, case, monkeypatch):
    """Where batches are consumed, with the traceback at hand, as a notebook keeps it."""

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    model = cases.make(case).train()
    attention = model.config._attn_implementation
    monkeypatch.setattr(place, interrupt)
    options = {"repair": True, "samples": 24} if "regression" in place else {"method": "depth", "probe_samples": 8}
    with pytest.raises(KeyboardInterrupt) as caught:
        prune(model, target={"macs": 0.6}, **options, **cases.examples_for(model))
    assert caught.tb is not None and torch.is_grad_enabled()
    assert all(module.training for module in model.modules())
    assert model.config._attn_implementation == attention
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def low_rank():
    model = cases.make("bert")
    factorize(model, target={"params": 0.9})
    return model


@pytest.mark.parametrize(
    ("make", "block", "group", "layer"),
    [
        (lambda: cases.make("bert"), "bert.encoder.layer.1", "intermediate", "output.dense"),
        (lambda: cases.make("bert"), "bert.encoder.layer.1", "attention.self", "attention.output.dense"),
        (low_rank, "bert.encoder.layer.1", "intermediate", "output.dense"),
        (lambda: cases.make("distilbert"), "distilbert.transformer.layer.1", "ffn", "ffn.lin2"),
        (lambda: cases.make("distilbert"), "distilbert.transformer.layer.1", "attention", "attention"),
    ],
)
def test_a_layer_with_no_unit_left_gets_the_mean(make, block, group, layer):
    dense = make()
    groups = find_units(dense).groups
    selection = full_selection(groups)
    selection[f"{block}.{group}"][:] = False
    small = copy.deepcopy(dense)
    shrink(small, groups, selection)
    readers = pruned_readers(small, dense, groups)
    assert readers == [f"{block}.{layer}"]
    context = context_for(dense)
    _, gives = read_and_given(dense, readers[0], whole_batch(dense, context))
    repair(small, dense, readers, context, samples=48)
    found = small.get_submodule(readers[0])
    assert isinstance(found, Constant)
    weights = weights_of(dense, context, block)[..., None].float()
    mean = (gives * weights).sum((0, 1)) / weights.sum()
    torch.testing.assert_close(found.bias.detach(), mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "block", "layer", "norm", "joint"),
    [
        ("option_a", "timm_model.layer2.1", "conv2", "bn2", ("act2", "reads")),
        ("bert", "bert.encoder.layer.0", "output.dense", None, ("output.LayerNorm", "reads")),
        ("distilbert", "distilbert.transformer.layer.1", "ffn.lin2", None, ("output_layer_norm", "reads")),
        # whose normalizations hold their activations, and whose blocks end with the sum
        ("mobilenetv3_small_050", "timm_model.blocks.1.1", "conv_pwl", "bn3", ("", "gives")),
    ],
)
def test_what_stands_behind_a_layer_is_found(case, block, layer, norm, joint, tmp_path):
    model = cases.make(case) if case in cases.ALL else cases.timm_network(case)
    streams = Streams({"pruned": model}, [cases.inputs_for(model)], tmp_path)
    for before in streams.blocks[: streams.blocks.index(block)]:
        for _ in streams.play(before, keep=True):
            pass
    (fit,) = find_fits(streams, block, [f"{block}.{layer}"])
    assert fit.layer == f"{block}.{layer}" and fit.norm == (norm and f"{block}.{norm}")
    assert fit.joint == (f"{block}.{joint[0]}".rstrip("."), joint[1])


@pytest.mark.parametrize("case", cases.ALL)
def test_block_by_block_is_the_network(case, tmp_path):
    model = cases.make(case)
    batch = cases.inputs_for(model)
    streams = Streams({"one": model}, [batch, batch], tmp_path)
    last = {}
    handle = model.get_submodule(streams.blocks[-1]).register_forward_hook(
        lambda module, args, output: last.update(output=output[0] if isinstance(output, tuple) else output)
    )
    cases.output_of(model)
    expected = last["output"]
    for block in streams.blocks:
        for _ in streams.play(block, keep=True):
            pass
    handle.remove()
    assert torch.equal(last["output"], expected)


def gathered(model, name, streams, block):
    """What a module and the block around it give, while the block is played."""
    found, handles = ([], []), []
    for place, outputs in zip((name, block), found, strict=True):

        def keep(module, args, output, outputs=outputs):
            outputs.append((output[0] if isinstance(output, tuple) else output).clone())

        handles.append(model.get_submodule(place).register_forward_hook(keep))
    for _ in streams.play(block, keep=True):
        pass
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("case", ["bert", "option_a"])
def test_what_a_look_found_is_what_the_block_gives(case, tmp_path):
    model, other = cases.make(case), cases.make(case)
    batches = [cases.inputs_for(model)] * 2
    plain, looked = tmp_path / "plain", tmp_path / "looked"
    plain.mkdir(), looked.mkdir()
    first, second = (Streams({"dense": model, "pruned": other}, batches, folder) for folder in (plain, looked))
    for number, block in enumerate(first.blocks):
        name = next(n for n, m in model.named_modules() if n.startswith(f"{block}.") and not list(m.children()))
        if number % 2 == 0:  # every second block is not looked at, as if nothing in it were to fit
            second.look(block, "dense", [(name, "gives")])
            given = [pair[2] for pair in second.pairs(block, "pruned", "dense", [1, 0])]
        found = gathered(model, name, first, block)
        seen = [seen for _, seen in second.play(block, keep=True)]
        assert [set(one) for one in seen] == [{(name, "gives")} if number % 2 == 0 else set()] * 2
        if number % 2 == 0:
            assert all(torch.equal(one[name, "gives"], output) for one, output in zip(seen, found[0], strict=True))
            assert all(torch.equal(*pair) for pair in zip(given, reversed(found[1]), strict=True))
    for ours, theirs in zip(sorted(plain.iterdir()), sorted(looked.iterdir()), strict=True):
        held, again = (torch.load(path, weights_only=True) for path in (ours, theirs))
        assert held.keys() == again.keys()
        assert all(torch.equal(held[v]["args"][0], again[v]["args"][0]) for v in ("dense", "pruned"))


def test_a_network_that_is_no_chain_is_refused():
    model = cases.make("option_b")
    model.timm_model.layer2[1].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    with pytest.raises(UnsupportedModelError, match="layer2.1 does not read what timm_model.layer2.0 gives"):
        check_chain(model, cases.inputs_for(model))


def test_memory_does_not_grow_with_the_examples():
    """Neither that of the fits nor that of the refinement."""
    dense = cases.make("option_a")
    small, readers, rows = cut(dense, lambda name: "layer1" in name)
    peaks = []
    for count in (64, 256, 1536):  # the first one warms up; a few batches more or less do not tell
        model, context = copy.deepcopy(small), context_for(dense, count)
        with PeakMemory() as peak:
            repair(model, dense, readers, context, samples=count, refine=1, rows=rows)
        peaks.append(peak.bytes)
    activations = (1536 - 256) * 2 * 16 * 32 * 32 * 4
    assert peaks[2] - peaks[1] < activations / 4
