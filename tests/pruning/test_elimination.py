from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_compress.pruning.elimination import Reader, eliminate, eliminate_masked


def problem(units, positions, others=0, outputs=3, samples=200, seed=0):
    """Inputs of a layer that are correlated, its weights, and the columns of its units in any order."""
    generator = torch.Generator().manual_seed(seed)
    width = units * positions + others
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    x = torch.randn(samples, width, generator=generator, dtype=torch.float64) @ mix
    weight = torch.randn(outputs, width, generator=generator, dtype=torch.float64)
    index = torch.randperm(width, generator=generator)[: units * positions].view(units, positions)
    worth = torch.rand(outputs, generator=generator, dtype=torch.float64) + 0.1
    return x, Reader(weight, x.T @ x / samples, index, worth)


def fitted(x, reader, gone):
    """The least-squares fit of the layer's outputs without some columns, and what it loses; by a dense solver."""
    left = torch.ones(x.shape[1], dtype=torch.bool)
    left[reader.index[gone].flatten()] = False
    target = x @ reader.weight.T
    weight = torch.zeros_like(reader.weight)
    if left.any():
        weight[:, left] = torch.linalg.lstsq(x[:, left], target).solution.T
    error = (target - x @ weight.T).square().mean(0)
    return weight, float(error @ reader.worth)


@settings(deadline=None, max_examples=40)
@given(units=st.integers(2, 6), positions=st.integers(1, 3), others=st.integers(0, 3), seed=st.integers(0, 10**6))
def test_every_step_takes_the_unit_that_loses_least_and_says_what_a_dense_solver_says(units, positions, others, seed):
    x, reader = problem(units, positions, others, seed=seed)
    order = eliminate([reader], damping=0.0, stops=range(units))
    gone = []
    for unit, loss in zip(order.units.tolist(), order.losses[1:].tolist(), strict=True):
        losses = {other: fitted(x, reader, [*gone, other])[1] for other in range(units) if other not in gone}
        assert losses[unit] == pytest.approx(min(losses.values()), rel=1e-5, abs=1e-9)
        gone.append(unit)
        weight, expected = fitted(x, reader, gone)
        assert loss == pytest.approx(expected, rel=1e-5, abs=1e-9)
        if len(gone) < units:
            assert torch.allclose(order.weights[len(gone)][0], weight, rtol=1e-5, atol=1e-6)
    assert sorted(gone) == list(range(units))


def test_a_unit_that_several_layers_read_counts_in_all_of_them():
    x, first = problem(4, 2, seed=1)
    y, second = problem(4, 1, seed=2)
    order = eliminate([first, second], damping=0.0)
    both = {unit: fitted(x, first, [unit])[1] + fitted(y, second, [unit])[1] for unit in range(4)}
    assert order.units[0] == min(both, key=both.get)
    assert float(order.losses[1]) == pytest.approx(min(both.values()))


def test_a_unit_that_is_the_sum_of_others_goes_for_nothing():
    x, reader = problem(5, 1, seed=3)
    x[:, reader.index[0, 0]] = x[:, reader.index[1, 0]] + x[:, reader.index[2, 0]]
    reader.moment = x.T @ x / len(x)
    order = eliminate([reader], damping=1e-9)
    assert order.units[0] in (0, 1, 2) and float(order.losses[1]) < 1e-6 < float(order.losses[2])


def test_many_units_go_a_few_at_a_time_and_lose_about_what_they_lose_one_by_one():
    _, reader = problem(60, 1, samples=400, seed=4)
    one_by_one, together = eliminate([reader], share=1e-9), eliminate([reader], share=0.1)
    assert sorted(together.units.tolist()) == list(range(60))
    assert (together.losses[1:] >= together.losses[:-1]).all()
    half = float(together.losses[30]) / float(one_by_one.losses[30])
    assert 0.9 < half < 1.2


def test_greedy_order_is_near_the_best_set():
    x, reader = problem(7, 1, seed=5)
    order = eliminate([reader], damping=0.0)
    best = min(fitted(x, reader, list(gone))[1] for gone in itertools.combinations(range(7), 3))
    assert float(order.losses[3]) <= 1.5 * best


@settings(deadline=None, max_examples=40)
@given(units=st.integers(1, 7), rows=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_masks_go_where_the_quadratic_form_rises_least(units, rows, seed):
    gradients = torch.randn(rows, units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    fisher = gradients.T @ gradients
    order = eliminate_masked(fisher.diagonal(), fisher)
    gone, loss = [], 0.0
    for unit, found in zip(order.units.tolist(), order.losses[1:].tolist(), strict=True):
        losses = {o: float(fisher[[*gone, o]][:, [*gone, o]].sum()) / 2 for o in range(units) if o not in gone}
        assert losses[unit] == pytest.approx(min(losses.values()), abs=1e-9)
        gone.append(unit)
        loss = max(loss, losses[unit])
        assert found == pytest.approx(loss, abs=1e-9)
    assert sorted(gone) == list(range(units))


def test_of_two_units_that_do_the_same_one_stays():
    """The two with the smallest scores are the same unit twice; the second costs three times what the first did."""
    gradients = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.5, 0.0], [0.0, 0.0, 0.0, 1.9]])
    fisher = gradients.T @ gradients
    assert eliminate_masked(fisher.diagonal(), fisher).units.tolist() == [0, 2, 1, 3]
    plain = eliminate_masked(fisher.diagonal())
    assert plain.units.tolist() == [0, 1, 2, 3]
    assert plain.losses.tolist() == pytest.approx([0, 0.5, 1, 1 + 1.5**2 / 2, 1 + 1.5**2 / 2 + 1.9**2 / 2])
