"""The scores of `fisher` against what every removal loses, written down from the layers' own inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_compress.pruning import find_units, fisher
from hf_compress.pruning.blocks import chain
from hf_compress.pruning.elimination import eliminate_masked
from hf_compress.pruning.fisher import FisherOptions
from hf_compress.pruning.gradients import sensitivity
from hf_compress.pruning.token_weights import token_weights
from hf_compress.training import Context

from . import cases


EXAMPLES = 24
DAMPING = 1e-3


def inputs_of(model, layers, batches):
    """By layer, what it reads: rows or patches `(count, n)` about their mean, each times the root of its share."""
    blocks, weights = chain(model), []
    found = {name: [] for name in layers}

    def keep(name):
        module = model.get_submodule(name)

        def look(module, args):
            values = args[0].double()
            if isinstance(module, nn.Conv2d):
                values = F.unfold(values, module.kernel_size, module.dilation, module.padding, module.stride)
                values = values.transpose(1, 2)
            found[name].append(values.flatten(0, -2))

        return module.register_forward_pre_hook(look)

    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        weights.append(token_weights(model, blocks, inputs))
        handles = [keep(name) for name in layers]
        with torch.no_grad():
            model(**inputs)
        for handle in handles:
            handle.remove()
    for name, parts in found.items():
        rows = torch.cat(parts)
        home = next((block for block in blocks if name.startswith(f"{block}.")), None)
        counts = torch.ones(len(rows), dtype=torch.float64)
        if weights[0]:
            counts = torch.cat([each[home].flatten() for each in weights]).double()
        share = (counts / counts.sum())[:, None]
        found[name] = (rows - (rows * share).sum(0)) * share.sqrt()
    return found


def lost(model, group, gone, rows, worth):
    """By least squares over all that stays: what the readers' outputs lose, and the weights' way there."""
    total = 0.0
    for part in group.consumers:
        weight = model.get_submodule(part.module).weight.detach().flatten(1).double()
        moment = rows[part.module].T @ rows[part.module]
        moment += DAMPING * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
        kernel = weight.shape[1] // model.get_submodule(part.module).weight.shape[1]
        places = torch.zeros(weight.shape[1], dtype=torch.bool)
        for channel in part.index[gone].flatten().tolist():
            places[channel * kernel : (channel + 1) * kernel] = True
        change = torch.zeros_like(weight)
        change[:, places] = -weight[:, places]
        if not places.all():
            across = moment[~places][:, places] @ change[:, places].T
            change[:, ~places] = -torch.linalg.solve(moment[~places][:, ~places], across).T
        total += float((change @ moment * change).sum(1) @ worth[part.module].double()) / 2
    return total


@pytest.mark.parametrize("case", ["bert", "distilbert", "option_a", "option_b", "bottleneck"])
def test_a_unit_scores_what_its_readers_lose_without_it(case, monkeypatch):
    """Heads, neurons, channels within a block and those that blocks add to."""
    model = cases.make(case)
    groups = find_units(model, min_channels=2).groups
    context = Context(**cases.examples_for(model, EXAMPLES))
    options = FisherOptions(score_samples=EXAMPLES, probes=())
    orders = fisher._orders(model, groups, options, context, True)
    rows = inputs_of(model, {part.module for g in groups for part in g.consumers}, context.calibration(EXAMPLES))
    worth = sensitivity(model, groups, context.calibration(EXAMPLES), context).outputs
    for group in groups:
        # what a classifier reads hardly varies about its mean, which moments in single precision tell less exactly
        exact = 0.03 if any(isinstance(model.get_submodule(s.module), nn.Linear) for s in group.consumers) else 1e-3
        exact = exact if case in cases.NETWORKS else 1e-3
        order = orders[group.name]
        first, second = order.units[:2].tolist()
        alone = lost(model, group, [first], rows, worth)
        if group.size < 100:  # of more, two go at a time
            assert float(order.losses[1]) == pytest.approx(alone, rel=exact)
        assert float(order.losses[2]) == pytest.approx(lost(model, group, [first, second], rows, worth), rel=exact)
        tried = order.units[group.size // 8 :: group.size // 4].tolist()
        others = [lost(model, group, [unit], rows, worth) for unit in tried]
        assert alone <= min(others) * (1 + exact)
    monkeypatch.setattr(fisher, "MOMENT_BYTES", max(sum(fisher._moment_bytes(model, group)) for group in groups))
    assert len(list(fisher._parts(model, groups))) > 1
    again = fisher._orders(model, groups, options, context, True)
    for name, order in orders.items():
        assert torch.equal(again[name].units, order.units)
        torch.testing.assert_close(again[name].losses, order.losses)
    assert "scored_by_masks" not in context.notes


def test_units_whose_readers_read_too_much_are_scored_by_masks(monkeypatch):
    model = cases.make("bert")
    groups = find_units(model).groups
    monkeypatch.setattr(fisher, "MOMENT_BYTES", max(max(fisher._moment_bytes(model, group)) for group in groups) - 1)
    context = Context(**cases.examples_for(model, EXAMPLES))
    orders = fisher._orders(model, groups, FisherOptions(score_samples=EXAMPLES, probes=()), context, True)
    found = sensitivity(model, groups, context.calibration(EXAMPLES), context)
    neurons = [group.name for group in groups if group.kind == "neurons"]
    assert list(context.notes["scored_by_masks"]) == neurons
    for name in neurons:
        assert torch.equal(orders[name].losses, eliminate_masked(found.units[name], found.between[name]).losses)
