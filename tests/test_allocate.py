from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_compress.allocate import Choice, allocate, total_cost, total_loss
from hf_compress.errors import CompressionError, TargetError


def best_by_enumeration(units, budget, cost=total_cost):
    """The least loss among all selections whose `cost` is within `budget`, `None` if there is none."""
    selections = [dict(zip(units, choices, strict=True)) for choices in itertools.product(*units.values())]
    losses = [total_loss(selection) for selection in selections if cost(selection) <= budget]
    return min(losses, default=None)


choices = st.lists(
    st.builds(
        Choice,
        option=st.integers(0, 9),
        loss=st.one_of(st.integers(0, 20).map(float), st.floats(0, 3, allow_nan=False)),
        cost=st.one_of(st.integers(0, 30).map(float), st.floats(0, 5, allow_nan=False)),
    ),
    min_size=1,
    max_size=5,
)
problems = st.lists(choices, min_size=1, max_size=5).map(lambda units: {f"unit{i}": u for i, u in enumerate(units)})


@settings(max_examples=300, deadline=None)
@given(problems, st.floats(0, 100))
def test_is_the_optimum_of_all_selections(units, budget):
    expected = best_by_enumeration(units, budget)
    if expected is None:
        with pytest.raises(TargetError):
            allocate(units, budget)
        return
    selection = allocate(units, budget)
    assert list(selection) == list(units)
    assert all(selection[name] in units[name] for name in units)
    assert total_cost(selection) <= budget
    assert total_loss(selection) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_keeps_dense_where_the_jump_pays():
    """Near break-even the dense layer costs as much as the factors and loses nothing."""

    def layer(weight):
        return [Choice(r, weight * (10 - r) ** 2, 2.0 * r) for r in range(1, 9)] + [Choice(None, 0.0, 17.0)]

    units = {"a": layer(10.0), "b": layer(1.0)}
    selection = allocate(units, 25.0)
    assert selection["a"].option is None
    assert selection["b"].option == 4


def test_infinite_budget_takes_the_least_loss_and_the_cheapest_of_equals():
    units = {"a": [Choice("dear", 0.0, 9.0), Choice("cheap", 0.0, 3.0), Choice("lossy", 1.0, 1.0)]}
    assert allocate(units, math.inf)["a"].option == "cheap"
    assert allocate({}, 0.0) == {}


def test_equal_choices_are_settled_by_their_order():
    units = {name: [Choice("first", 1.0, 1.0), Choice("second", 1.0, 1.0), Choice(None, 0.0, 2.0)] for name in "abcd"}
    selections = [allocate(units, 6.0) for _ in range(3)]
    assert selections[0] == selections[1] == selections[2]
    assert sorted(str(choice.option) for choice in selections[0].values()) == ["None", "None", "first", "first"]


def test_below_the_floor_names_the_least_cost():
    units = {"a": [Choice(1, 2.0, 3.0), Choice(2, 0.0, 8.0)], "b": [Choice(1, 2.0, 4.0), Choice(2, 0.0, 9.0)]}
    with pytest.raises(TargetError, match="at least 7"):
        allocate(units, 6.9)
    assert total_cost(allocate(units, 7.0)) == 7.0


@pytest.mark.parametrize("loss, cost", [(math.nan, 1.0), (1.0, math.inf)])
def test_refuses_what_is_no_number(loss, cost):
    with pytest.raises(CompressionError, match="'a'"):
        allocate({"a": [Choice(1, loss, cost)]}, 5.0)
    with pytest.raises(CompressionError, match="no choice"):
        allocate({"a": []}, 5.0)
    with pytest.raises(CompressionError, match="not a number"):
        allocate({"a": [Choice(1, 1.0, 1.0)]}, math.nan)


def test_a_hundred_layers_at_the_bound():
    """The size of bert-large with all ranks: the relaxation's bound proves how near the result is."""
    generator = np.random.default_rng(0)
    units = {}
    for index in range(144):
        spectrum = np.sort(generator.gamma(0.6, size=512))[::-1] ** 2
        losses = spectrum.sum() - np.cumsum(spectrum)
        units[f"layer{index}"] = [
            *(Choice(r + 1, float(losses[r] / spectrum.sum()), 2048.0 * (r + 1)) for r in range(0, 511)),
            Choice(None, 0.0, 1024.0**2),
        ]
    budget = 0.5 * 144 * 1024**2
    selection = allocate(units, budget)
    assert 0.9999 * budget < total_cost(selection) <= budget
    curves = [np.array([(choice.loss, choice.cost) for choice in choices]).T for choices in units.values()]
    bound = max(
        sum((losses + price * costs).min() for losses, costs in curves) - price * budget
        for price in np.geomspace(1e-9, 1e-4, 200)
    )
    assert bound > 0
    assert total_loss(selection) < bound * 1.01


def chain(widths, cost):
    """Units with costs that multiply between neighbours, linear around a selection."""

    def recost(selection):
        w = [selection[name].option for name in widths]
        slopes = [cost * ((w[i - 1] if i else 3) + (w[i + 1] if i + 1 < len(w) else 10)) for i in range(len(w))]
        total = chain_cost(w, cost)
        share = [(total - sum(s * x for s, x in zip(slopes, w, strict=True))) / len(w)] * len(w)
        return {
            name: [Choice(c.option, c.loss, share[i] + slopes[i] * c.option) for c in widths[name]]
            for i, name in enumerate(widths)
        }

    return recost


def chain_cost(w, cost):
    padded = [3, *w, 10]
    return cost * sum(a * b for a, b in itertools.pairwise(padded))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.floats(0.1, 5), min_size=4, max_size=4), min_size=2, max_size=4), st.floats(0.05, 1.0))
@example([[1.0, 1.0, 1.0, 4.25], [1.0, 1.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0]], 0.16015625)  # one up for one down
def test_costs_that_multiply_between_neighbours(importance, fraction):
    units = {}
    for index, values in enumerate(importance):
        losses = np.cumsum([0.0, *sorted(values)])[::-1]
        units[f"conv{index}"] = [Choice(2 * (w + 1), float(losses[w]), 0.0) for w in range(5)]
    budget = fraction * chain_cost([10] * len(units), 2.0)
    recost = chain(units, 2.0)

    def true_cost(selection):
        return chain_cost([choice.option for choice in selection.values()], 2.0)

    start = recost({name: choices[-1] for name, choices in units.items()})
    expected = best_by_enumeration(units, budget, true_cost)
    if expected is None:
        with pytest.raises(TargetError):
            allocate(start, budget, recost)
        return
    selection = allocate(start, budget, recost)
    assert true_cost(selection) <= budget * (1 + 1e-12)
    assert total_cost(selection) == pytest.approx(true_cost(selection))
    worst = total_loss({name: choices[0] for name, choices in units.items()})
    # a local method: near the optimum, not at it
    assert total_loss(selection) <= expected + 0.25 * (worst - expected) + 1e-9


def test_recost_must_keep_the_choices():
    units = {"a": [Choice(1, 1.0, 1.0), Choice(2, 0.0, 2.0)]}
    with pytest.raises(CompressionError, match="recost"):
        allocate(units, 5.0, lambda selection: {"a": units["a"][:1]})
