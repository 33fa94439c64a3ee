"""Costs of widths against a count of the model, and the selection that a budget leads to."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_compress.measurement import count
from hf_compress.pruning import find_units, magnitude_scores, shrink
from hf_compress.pruning.costs import CostModel
from hf_compress.pruning.importance import quantiles
from hf_compress.pruning.selection import floor, narrowest, select
from hf_compress.pruning.units import Slice, UnitGroup, full_selection, remaining_groups, removed_positions, widths
from hf_compress.registry import Target

from . import cases


TARGETS = [Target(kind, 0.5, scope) for kind in ("macs", "params") for scope in ("model", "encoder")]


@pytest.mark.parametrize("case", cases.ALL)
def test_computed_costs_are_those_of_the_cut_model(case):
    model = cases.make(case)
    groups = find_units(model).groups
    selection = cases.random_selection(groups, 4, keep_one=False)
    small = copy.deepcopy(model)
    left = shrink(small, groups, selection)
    counted = count(small)
    for target in TARGETS:
        costs = CostModel.measured(model, groups, target, count)
        assert costs.now == count(model).of(target) == costs.total({group.name: group.size for group in groups})
        assert costs.total(widths(selection)) == pytest.approx(counted.of(target), rel=1e-9)
        kept = widths(selection)
        for group in groups:
            gained = costs.total({**kept, group.name: group.size // 2}) - costs.total(kept)
            assert costs.change(kept, group.name, group.size // 2) == pytest.approx(gained, rel=1e-9, abs=1e-3)
        onward = costs.after(small, left, widths(selection))
        again = cases.random_selection(left, 5, keep_one=False)
        smaller = copy.deepcopy(small)
        shrink(smaller, left, again)
        assert onward.total(widths(again)) == pytest.approx(count(smaller).of(target), rel=1e-9)


def test_costs_are_per_example_at_the_counted_length():
    model = cases.make("bert")
    groups = find_units(model).groups
    target = Target("macs", 0.5)
    for length in (8, 32):
        costs = CostModel.measured(model, groups, target, lambda model, length=length: count(model, length=length))
        batch = {name: value.repeat(2, 1)[:, :1].repeat(1, length) for name, value in cases.inputs_for(model).items()}
        wide = CostModel.measured(model, groups, target, lambda model, batch=batch: count(model, inputs=batch))
        heads = {group.name: group.size - (group.kind == "heads") for group in groups}
        # a head of 8 of 32 features: four projections, and two products of queries, keys, weights and values
        assert costs.now - costs.total(heads) == 2 * (4 * length * 32 * 8 + 2 * length * length * 8)
        assert wide.now - wide.total(heads) == costs.now - costs.total(heads)


def made_up(sizes, minimum):
    """Groups of neurons between layers that do not exist, each unit of cost 1."""

    class Costs:
        def total(self, kept):
            return sum(kept.values())

    groups = [
        UnitGroup(f"g{i}", "neurons", (Slice(f"m{i}", "in", torch.arange(size)[:, None]),), min(minimum, size))
        for i, size in enumerate(sizes)
    ]
    return groups, Costs()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    minimum=st.integers(0, 3),
    round_to=st.integers(1, 4),
    share=st.floats(0, 1),
    seed=st.integers(0, 100),
)
def test_selection_meets_the_budget_and_wastes_nothing(sizes, minimum, round_to, share, seed):
    groups, costs = made_up(sizes, minimum)
    generator = torch.Generator().manual_seed(seed)
    scores = {group.name: torch.rand(group.size, generator=generator, dtype=torch.float64) for group in groups}
    lowest = floor(groups, costs, round_to)
    budget = lowest + share * (sum(sizes) - lowest)
    selection = select(groups, scores, costs, budget, round_to)
    kept = widths(selection)
    assert sum(kept.values()) <= budget
    for group in groups:
        width = kept[group.name]
        assert width >= narrowest(group, round_to) and (width == group.size or width % round_to == 0)
        # within a group nothing stays that is worth less than something that went
        keep = selection[group.name]
        if keep.any() and not keep.all():
            assert scores[group.name][keep].min() >= scores[group.name][~keep].max()
        # no group could take anything back
        wider = min(group.size, (width // round_to + 1) * round_to)
        assert width == group.size or sum(kept.values()) - width + wider > budget


def test_selection_gives_up_the_lowest_scores_of_all_groups():
    groups, costs = made_up([3, 3], 0)
    scores = {"g0": torch.tensor([0.5, 0.1, 0.9]), "g1": torch.tensor([0.2, 0.8, 0.3])}
    selection = select(groups, scores, costs, 3)
    assert selection["g0"].tolist() == [True, False, True] and selection["g1"].tolist() == [False, True, False]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000))
def test_positions_close_up(seed):
    """Two groups in one module, such as a concatenation: what is left points at the same entries."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(10, generator=generator)
    groups = [
        UnitGroup("a", "channels", (Slice("m", "in", order[:6].view(3, 2)),)),
        UnitGroup("b", "channels", (Slice("m", "in", order[6:].view(4, 1)),)),
    ]
    selection = cases.random_selection(groups, seed)
    gone = removed_positions(groups, selection)[("m", "in")] if any((~k).any() for k in selection.values()) else []
    content = [position for position in range(10) if position not in set(torch.as_tensor(gone).tolist())]
    for before, after in zip(groups, remaining_groups(groups, selection), strict=True):
        expected = before.slices[0].index[selection[before.name]]
        assert [[content[i] for i in unit] for unit in after.slices[0].index.tolist()] == expected.tolist()


def test_magnitudes_are_relative_to_the_layer():
    model = cases.make("bert")
    groups = find_units(model).groups
    scores = magnitude_scores(model, groups)
    for values in scores.values():
        assert values.mean() == pytest.approx(1.0)
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        for module in (layer.attention.self.query, layer.output.dense):
            module.weight.mul_(7.0)
        rescaled = magnitude_scores(model, groups)
        for name, values in rescaled.items():
            torch.testing.assert_close(values, scores[name])
        layer.intermediate.dense.weight[5] *= 0.1
        layer.output.dense.weight[:, 5] *= 0.1
        layer.attention.output.dense.weight[:, 16:24] *= 0.1
        layer.attention.self.query.weight[16:24] *= 0.1
    for power in (1, 2):
        lower = magnitude_scores(model, groups, power)
        assert lower["bert.encoder.layer.0.intermediate"].argmin() == 5
        assert lower["bert.encoder.layer.0.attention.self"].argmin() == 2


def test_magnitudes_of_a_layer_of_zeros_do_not_decide():
    model = cases.make("option_b")
    groups = find_units(model).groups
    conv2 = model.timm_model.layer1[0].conv2
    with torch.no_grad():
        conv2.weight.zero_()
    scores = magnitude_scores(model, groups)
    assert all(values.isfinite().all() for values in scores.values())


def test_quantiles_take_the_same_share_everywhere():
    groups, costs = made_up([4, 8], 0)
    scores = {"g0": quantiles(torch.tensor([9.0, 7, 8, 6])), "g1": quantiles(torch.arange(8.0))}
    assert scores["g0"].argsort().tolist() == [3, 1, 2, 0]
    assert widths(select(groups, scores, costs, 6)) == {"g0": 2, "g1": 4}
    assert full_selection(groups)["g0"].all()
