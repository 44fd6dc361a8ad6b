"""Losses against hand-computed values and a slow float64 reference."""

import math

import pytest
import torch

from toolchain.compress.objectives import IGNORED, OBJECTIVES, cross_entropy, forward_kl, logits, next_token


def slow_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """The definition, row by row and entry by entry, in Python floats."""
    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        s = [math.exp(x / temperature) for x in s_row]
        t = [math.exp(x / temperature) for x in t_row]
        for a, b in zip(s, t, strict=True):
            total += b / sum(t) * math.log((b / sum(t)) / (a / sum(s)))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_kl_is_the_definition(temperature: float) -> None:
    """T² times the mean over rows of the teacher's expectation of the log ratio."""
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 9, dtype=torch.float64)
    assert forward_kl(student, teacher, temperature).item() == pytest.approx(
        slow_kl(student, teacher, temperature), rel=1e-5
    )


def test_kl_by_hand() -> None:
    """Teacher (3/4, 1/4) against an even student: 0.75 ln 1.5 + 0.25 ln 0.5."""
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    assert forward_kl(torch.zeros(1, 2), teacher, 1.0).item() == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6
    )


def test_kl_of_equals_is_zero_with_zero_gradient() -> None:
    """A student that already says what the teacher says is left alone."""
    teacher = torch.randn(4, 6)
    student = teacher.clone().requires_grad_()
    loss = forward_kl(student, teacher, 2.0)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert student.grad is not None and student.grad.abs().max() < 1e-6


def test_kl_gradient_is_t_times_the_difference_of_probabilities() -> None:
    """d/ds of T² KL is T (p_student - p_teacher) per row, over the number of rows."""
    torch.manual_seed(1)
    student, teacher = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    forward_kl(student, teacher, 4.0).backward()
    expected = 4.0 * (torch.softmax(student / 4, -1) - torch.softmax(teacher / 4, -1)) / 3
    assert student.grad is not None
    torch.testing.assert_close(student.grad, expected.detach())


def test_cross_entropy_by_hand() -> None:
    """Four even choices cost ln 4 nats a token."""
    assert cross_entropy(torch.zeros(3, 4), torch.tensor([0, 1, 2])).item() == pytest.approx(math.log(4))


def test_next_token_aligns_and_leaves_out() -> None:
    """Position t predicts label t+1; labels of -100 and the last position predict nothing."""
    scores = torch.arange(2 * 4 * 3).reshape(2, 4, 3).float()
    labels = torch.tensor([[0, 1, IGNORED, 2], [IGNORED, IGNORED, 0, 1]])
    rows, targets = next_token(scores, labels)
    assert targets.tolist() == [1, 2, 0, 1]
    assert torch.equal(rows, torch.stack([scores[0, 0], scores[0, 2], scores[1, 1], scores[1, 2]]))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_logits_mixes_its_two_parts(alpha: float) -> None:
    """alpha weighs the teacher's part, the rest the labels."""
    torch.manual_seed(2)
    student, teacher, targets = torch.randn(6, 7), torch.randn(6, 7), torch.randint(0, 7, (6,))
    expected = alpha * forward_kl(student, teacher, 2.0) + (1 - alpha) * cross_entropy(student, targets)
    torch.testing.assert_close(logits(student, teacher, targets, 2.0, alpha), expected)


@pytest.mark.parametrize("rows", [1, 8])
def test_half_precision_rows_are_computed_in_float32(rows: int) -> None:
    """bf16 logits, one row or many, give a finite float32 loss close to the float32 one."""
    torch.manual_seed(3)
    student, teacher = torch.randn(rows, 50) * 4, torch.randn(rows, 50) * 4
    loss = forward_kl(student.bfloat16(), teacher.bfloat16(), 2.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(forward_kl(student, teacher, 2.0).item(), rel=0.05)


def test_registry_defaults_can_be_called() -> None:
    """Every registered objective computes a scalar with its own defaults."""
    for objective in OBJECTIVES.values():
        student, teacher = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
        loss = objective.loss(
            student, teacher, torch.tensor([1, 2, 3, 4]), objective.temperature, objective.alpha
        )
        loss.backward()
        assert loss.dim() == 0 and torch.isfinite(student.grad).all()
