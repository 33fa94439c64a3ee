from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hf_compress.distillation.losses import distillation_loss, hidden_loss, mix, regression_loss
from hf_compress.errors import CompressionError


shapes = st.tuples(st.integers(1, 6), st.integers(2, 12))
logits = shapes.flatmap(
    lambda shape: st.tuples(*[arrays(np.float64, shape, elements=st.floats(-15, 15)) for _ in range(2)])
)
temperatures = st.floats(0.5, 20)


def oracle(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """KL(teacher || student) by its definition, summed over classes, averaged over examples, times T squared."""

    def softmax(values):
        values = np.exp(values / temperature - (values / temperature).max(axis=1, keepdims=True))
        return values / values.sum(axis=1, keepdims=True)

    p, q = softmax(teacher), softmax(student)
    return temperature**2 * float(np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=1)))


@settings(deadline=None)
@given(logits, temperatures)
def test_the_loss_is_the_divergence_of_the_softened_distributions(pair, temperature):
    student, teacher = pair
    ours = distillation_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    assert ours.dtype == torch.float32
    assert float(ours) == pytest.approx(oracle(student, teacher, temperature), rel=1e-4, abs=1e-4 * temperature**2)


@settings(deadline=None)
@given(logits, temperatures)
def test_a_student_that_equals_its_teacher_gets_no_gradient(pair, temperature):
    student = torch.from_numpy(pair[0]).float().requires_grad_()
    loss = distillation_loss(student, student.detach().clone(), temperature)
    loss.backward()
    assert float(loss) == pytest.approx(0.0, abs=1e-4 * temperature**2)
    assert student.grad.abs().max() < 1e-5 * temperature


@settings(deadline=None)
@given(logits, temperatures)
def test_neither_loss_nor_gradient_depend_on_a_shift_of_the_logits(pair, temperature):
    student, teacher = (torch.from_numpy(value).float() for value in pair)
    shifted = distillation_loss(student + 3, teacher - 5, temperature)
    torch.testing.assert_close(
        shifted, distillation_loss(student, teacher, temperature), rtol=1e-3, atol=1e-4 * temperature**2
    )


def test_the_gradient_keeps_its_size_over_temperatures():
    """For high T the gradient tends to (z_s - z_t) / classes for centred logits, whatever T is."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(8, 5, generator=generator)
    teacher = torch.randn(8, 5, generator=generator)
    limit = (student - student.mean(1, keepdim=True) - teacher + teacher.mean(1, keepdim=True)) / 5 / 8
    for temperature in (50.0, 200.0):
        leaf = student.clone().requires_grad_()
        distillation_loss(leaf, teacher, temperature).backward()
        torch.testing.assert_close(leaf.grad, limit, rtol=0.1, atol=2e-3)


@given(st.floats(0, 1), st.floats(-5, 5), st.floats(-5, 5))
def test_mixing_is_linear_in_alpha(alpha, label_loss, teacher_loss):
    value = mix(torch.tensor(label_loss), torch.tensor(teacher_loss), alpha)
    assert float(value) == pytest.approx((1 - alpha) * label_loss + alpha * teacher_loss, abs=1e-5)


def test_alpha_of_one_needs_no_label_loss():
    assert float(mix(None, torch.tensor(2.0), 1.0)) == 2.0
    assert float(mix(torch.tensor(float("inf")), torch.tensor(2.0), 1.0)) == 2.0


def test_regression_is_the_mean_squared_distance():
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.5]])
    assert float(regression_loss(student, teacher)) == pytest.approx((4 + 0.25) / 2)


def test_no_gradient_reaches_the_teacher():
    teacher = torch.randn(3, 4, requires_grad=True)
    student = torch.randn(3, 4, requires_grad=True)
    (distillation_loss(student, teacher, 2.0) + regression_loss(student, teacher)).backward()
    assert teacher.grad is None and student.grad is not None


def states(layers: int, seed: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(layers + 1)]


@pytest.mark.parametrize("shape", [(3, 5, 4), (3, 4, 2, 2)])
def test_hidden_states_count_as_a_share_of_the_teacher(shape):
    teacher = states(3, 0, *shape)
    assert float(hidden_loss(teacher, teacher)) == 0
    nothing = [torch.zeros_like(state) for state in teacher]
    assert float(hidden_loss(nothing, teacher)) == pytest.approx(1)
    student = states(3, 1, *shape)
    shares = [float((s - t).square().sum() / t.square().sum()) for s, t in zip(student, teacher, strict=True)]
    assert float(hidden_loss(student, teacher)) == pytest.approx(np.mean(shares[1:3]), rel=1e-5)


def test_padding_and_the_last_states_do_not_count():
    student, teacher = states(3, 0, 2, 5, 4), states(3, 1, 2, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected = hidden_loss(student, teacher, mask)
    for state in student:
        state[0, 3:] = 100.0
    student[0], student[-1] = teacher[0] + 1, teacher[-1] + 1
    torch.testing.assert_close(hidden_loss(student, teacher, mask), expected)


def test_fewer_layers_are_compared_at_their_share_of_the_depth():
    teacher = states(6, 0, 2, 5, 4)
    student = [teacher[index] for index in (0, 2, 4, 6)]
    assert float(hidden_loss(student, teacher)) == 0 < float(hidden_loss([*student[:2], teacher[3]], teacher))


def test_a_deeper_student_is_compared_with_inner_states_only():
    teacher = states(3, 0, 2, 5, 4)
    student = [teacher[place] for place in (0, 1, 1, 2, 2, 2, 3)]
    for place in (0, -1):
        teacher[place] = torch.full((2, 5, 4), float("nan"))
    assert float(hidden_loss(student, teacher)) == 0


def test_hidden_states_that_do_not_compare_are_refused():
    with pytest.raises(CompressionError, match=r"hidden: .* \(2, 5, 4\).* \(2, 5, 8\)"):
        hidden_loss(states(3, 0, 2, 5, 4), states(3, 0, 2, 5, 8))
    with pytest.raises(CompressionError, match="1 and 3 layers"):
        hidden_loss(states(1, 0, 2, 5, 4), states(3, 0, 2, 5, 4))
