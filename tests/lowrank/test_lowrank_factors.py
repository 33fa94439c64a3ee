from __future__ import annotations

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_compress.lowrank import Metric, decompose
from hf_compress.lowrank.factors import smallest_rank


shapes = st.tuples(st.integers(1, 24), st.integers(1, 24))
seeds = st.integers(0, 2**31)


def random_matrix(shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_metric(size, seed, kind):
    if kind is None:
        return None
    if kind == "diagonal":
        return random_matrix((size,), seed).abs() + 0.1
    root = random_matrix((size, 2 * size), seed)
    return root @ root.T / size


def weighted(weight, left, right):
    """`L W R` by Cholesky factors, another root than the implementation's."""

    def root(metric):
        return torch.linalg.cholesky(metric if metric.ndim == 2 else torch.diag(metric))

    weight = weight if left is None else root(left).T @ weight
    return weight if right is None else weight @ root(right)


@settings(max_examples=60, deadline=None)
@given(shapes, seeds, st.integers(1, 24))
def test_is_the_truncated_svd(shape, seed, rank):
    weight = random_matrix(shape, seed)
    rank = min(rank, *shape)
    basis = decompose(weight)
    down, up = basis.factors(weight, rank)
    u, s, vh = scipy.linalg.svd(weight.numpy(), full_matrices=False)
    expected = torch.from_numpy((u[:, :rank] * s[:rank]) @ vh[:rank])
    assert up.shape == (shape[0], rank) and down.shape == (rank, shape[1])
    gap = s[rank - 1] - (s[rank] if rank < len(s) else 0.0)
    if gap > 1e-3 * s[0]:  # otherwise the best approximation is hardly determined
        assert torch.allclose(up @ down, expected, atol=1e-7 * s[0] / (gap / s[0]))
    tail = torch.from_numpy(s[::-1].copy()).square().cumsum(0).flip(0)
    assert torch.allclose(basis.errors[:-1], tail, atol=1e-10 * s[0] ** 2)


@settings(max_examples=80, deadline=None)
@given(
    shapes,
    seeds,
    st.sampled_from([None, "diagonal", "full"]),
    st.sampled_from([None, "diagonal", "full"]),
    st.integers(1, 24),
)
def test_is_optimal_under_any_weighting_and_the_error_is_as_stated(shape, seed, left_kind, right_kind, rank):
    weight = random_matrix(shape, seed)
    left = random_metric(shape[0], seed + 1, left_kind)
    right = random_metric(shape[1], seed + 2, right_kind)
    rank = min(rank, *shape)
    basis = decompose(weight, None if left is None else Metric(left), None if right is None else Metric(right))
    down, up = basis.factors(weight, rank)
    measured = weighted(weight - up @ down, left, right).square().sum()
    best = torch.linalg.svdvals(weighted(weight, left, right))[rank:].square().sum()
    scale = float(basis.errors[0])
    assert float(measured) == pytest.approx(float(best), abs=1e-6 * scale)
    assert float(basis.errors[rank]) == pytest.approx(float(measured), abs=1e-6 * scale)
    assert basis.relative_error(rank) == pytest.approx((float(measured) / scale) ** 0.5, abs=2e-3)


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (32, 32)])
def test_full_rank_gives_the_weight_back_in_float32(shape):
    weight = random_matrix(shape, 0, torch.float32)
    metric = Metric(random_metric(shape[1], 1, "full"))
    for basis in (
        decompose(weight),
        decompose(weight, right=metric),
        decompose(weight, left=Metric(torch.ones(shape[0]))),
    ):
        down, up = basis.factors(weight, min(shape))
        assert torch.allclose(up @ down, weight, atol=1e-5)
        assert up.dtype == torch.float32


def test_whitening_wins_on_inputs_of_low_rank_as_predicted():
    """Inputs that live in few directions: the error of the output is what the metric's spectrum says."""
    weight = random_matrix((48, 64), 0)
    inputs = random_matrix((2000, 16), 1) @ random_matrix((16, 64), 2) + 0.05 * random_matrix((2000, 64), 3)
    moment = inputs.T @ inputs / len(inputs)

    def output_error(basis):
        down, up = basis.factors(weight, 12)
        return float((inputs @ (weight - up @ down).T).norm() / (inputs @ weight.T).norm())

    plain, whitened = decompose(weight), decompose(weight, right=Metric(moment))
    assert output_error(whitened) == pytest.approx(whitened.relative_error(12), rel=1e-5)
    assert output_error(whitened) < 0.5 * output_error(plain)


@pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
def test_directions_that_calibration_never_saw_do_no_harm(shape):
    weight = random_matrix(shape, 0)
    seen = random_matrix((100, 3), 1) @ random_matrix((3, shape[1]), 2)
    basis = decompose(weight, right=Metric(seen.T @ seen / 100))
    down, up = basis.factors(weight, 3)
    assert torch.isfinite(up).all() and torch.isfinite(down).all()
    assert float((seen @ (weight - up @ down).T).norm() / (seen @ weight.T).norm()) < 1e-3
    assert decompose(weight, right=Metric(torch.zeros(shape[1]))).factors(weight, 2)[0].isfinite().all()


def test_a_weight_of_zeros_and_of_low_rank():
    basis = decompose(torch.zeros(6, 4))
    down, up = basis.factors(torch.zeros(6, 4), 2)
    assert basis.relative_error(2) == 0 and not (up @ down).any()
    thin = random_matrix((30, 3), 0, torch.float32) @ random_matrix((3, 20), 1, torch.float32)
    down, up = decompose(thin).factors(thin, 10)
    assert torch.isfinite(up).all() and torch.allclose(up @ down, thin, atol=1e-5)


def test_factors_are_balanced_truncated_and_repeatable():
    weight = random_matrix((40, 30), 0, torch.float32)
    basis = decompose(weight, max_rank=7)
    down, up = basis.factors(weight, 5)
    assert torch.allclose(down.norm(dim=1), up.norm(dim=0), rtol=1e-5)
    assert basis.exit.shape == (30, 7) and len(basis.errors) == 31
    again = decompose(weight.clone(), max_rank=7).factors(weight, 5)
    assert torch.equal(down, again[0]) and torch.equal(up, again[1])
    with pytest.raises(ValueError, match="1 to 7"):
        basis.factors(weight, 8)
    half = weight.bfloat16()
    assert decompose(half).factors(half, 3)[0].dtype == torch.float32


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.floats(0.01, 1.0))
def test_smallest_rank_keeps_the_energy(values, energy):
    squares = torch.tensor(sorted(values, reverse=True), dtype=torch.float64).square()
    errors = torch.cat([squares.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
    rank = smallest_rank(errors, energy)
    kept = float(squares[:rank].sum())
    assert kept >= energy * float(squares.sum()) * (1 - 1e-9)
    assert rank == 1 or float(squares[: rank - 1].sum()) < energy * float(squares.sum()) * (1 + 1e-9)
