"""Losses against hand-computed values and a slow float64 reference, entry by entry."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from toolchain.compress.objectives import OBJECTIVES, Objective
from toolchain.compress.objectives.distilgpt2 import cosine
from toolchain.compress.objectives.jsd import jsd
from toolchain.compress.objectives.logits import forward_kl
from toolchain.compress.objectives.rows import (
    IGNORED,
    Rows,
    Settings,
    cross_entropy,
    kl,
    next_token,
    softened,
)
from toolchain.compress.objectives.skew_kl import skew_kl
from toolchain.compress.objectives.taid import DECAY, END, RATE, START, Pace, interpolated
from toolchain.compress.objectives.top import top_log_probabilities

Row = list[float]


def shares(logits: Row, temperature: float) -> Row:
    """softmax(logits / temperature) of one row, in Python floats."""
    weights = [math.exp(x / temperature) for x in logits]
    return [weight / sum(weights) for weight in weights]


def slow_kl(p: Row, q: Row) -> float:
    """KL(p || q) of one row, by its definition."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def blend(p: Row, q: Row, share: float) -> Row:
    """The mixture share · p + (1 - share) · q."""
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def towards(student: Row, teacher: Row, t: float) -> Row:
    """TAID's logits at t."""
    return [(1 - t) * s + t * w for s, w in zip(student, teacher, strict=True)]


# Of one row's logits at a temperature: the divergence that the paper's equation defines.
SLOW: dict[str, Callable[[Row, Row, float], float]] = {
    "logits": lambda s, w, t: slow_kl(shares(w, t), shares(s, t)),
    "distilgpt2": lambda s, w, t: slow_kl(shares(w, t), shares(s, t)),
    "reverse-kl": lambda s, w, t: slow_kl(shares(s, t), shares(w, t)),
    "skew-kl": lambda s, w, t: slow_kl(shares(w, t), blend(shares(w, t), shares(s, t), 0.1)),
    "jsd": lambda s, w, t: (
        0.3 * slow_kl(shares(w, t), blend(shares(w, t), shares(s, t), 0.3))
        + 0.7 * slow_kl(shares(s, t), blend(shares(w, t), shares(s, t), 0.3))
    ),
    "taid": lambda s, w, t: slow_kl(shares(towards(s, w, 0.6), t), shares(s, t)),
}
MIX = {"skew-kl": 0.1, "jsd": 0.3}


def settings(name: str, temperature: float, alpha: float = 0.3) -> Settings:
    """What the reference above is taken with."""
    return Settings(temperature, alpha, MIX.get(name), 0.6)


def batch(rows: int = 5, vocab: int = 9, dtype: torch.dtype = torch.float64, seed: int = 0) -> Rows:
    """Random rows with everything that an objective may look at."""
    made = torch.Generator().manual_seed(seed)
    student, teacher, *hidden = (
        torch.randn(rows, width, generator=made, dtype=torch.float64).to(dtype)
        for width in (vocab, vocab, 4, 4)
    )
    return Rows(student, torch.randint(0, vocab, (rows,), generator=made), teacher, None, *hidden)


def slow_loss(name: str, rows: Rows, temperature: float, alpha: float = 0.3) -> float:
    """The whole loss: row by row in Python floats."""
    assert rows.teacher is not None and rows.student_hidden is not None and rows.teacher_hidden is not None
    student, teacher, targets = rows.student.tolist(), rows.teacher.tolist(), rows.targets.tolist()
    pairs = list(zip(student, teacher, strict=True))
    divergence = sum(SLOW[name](s, w, temperature) for s, w in pairs) / len(pairs)
    text = -sum(math.log(shares(s, 1.0)[i]) for s, i in zip(student, targets, strict=True)) / len(pairs)
    if name != "distilgpt2":
        return alpha * temperature**2 * divergence + (1 - alpha) * text
    angle = 0.0
    for a, b in zip(rows.student_hidden.tolist(), rows.teacher_hidden.tolist(), strict=True):
        angle += 1 - sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
    return 5 * temperature**2 * divergence + 2 * text + angle / len(pairs)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_its_definition(name: str, temperature: float) -> None:
    """T² times the divergence of the softened distributions, weighed with cross-entropy, as in its paper."""
    rows = batch()
    loss = OBJECTIVES[name].loss(rows, settings(name, temperature))
    assert loss.item() == pytest.approx(slow_loss(name, rows, temperature), rel=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_the_slopes(name: str) -> None:
    """Of the student's logits and hidden states, against finite differences in float64.

    TAID's target follows the student without a gradient: it is held fixed for the difference.
    """
    rows = batch(rows=3, vocab=5)
    assert rows.teacher is not None
    held = settings(name, 2.0)
    if name == "taid":
        target = interpolated(rows.student, rows.teacher, 0.6, 2.0)

        def loss(student: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            made = 0.3 * 4 * kl(target, softened(student, 2.0)) + 0.7 * cross_entropy(student, rows.targets)
            return made + 0 * hidden.sum()

        student = rows.student.clone().requires_grad_()
        loss(student, student[:, :4]).backward()
        ours = rows.student.clone().requires_grad_()
        OBJECTIVES[name].loss(replace(rows, student=ours), held).backward()
        assert student.grad is not None and ours.grad is not None
        torch.testing.assert_close(ours.grad, student.grad)
    else:

        def loss(student: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            made = OBJECTIVES[name].loss(replace(rows, student=student, student_hidden=hidden), held)
            return made + 0 * hidden.sum()

    assert rows.student_hidden is not None
    inputs = rows.student.clone().requires_grad_(), rows.student_hidden.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_precision_rows_are_computed_in_float32(name: str, rows: int) -> None:
    """bf16 logits, one row or many, give the float32 loss of the same numbers, and finite gradients."""
    half = batch(rows, 50, torch.bfloat16)
    whole = replace(half, **{k: v.float() for k, v in vars(half).items() if k not in ("targets", "top")})
    student = half.student.clone().requires_grad_()
    loss = OBJECTIVES[name].loss(replace(half, student=student), settings(name, 2.0))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(OBJECTIVES[name].loss(whole, settings(name, 2.0)).item(), rel=1e-5)
    assert student.grad is not None and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "distilgpt2"])
def test_a_student_that_says_what_the_teacher_says_is_left_alone(name: str) -> None:
    """Equal logits and alpha 1: no loss and no gradient."""
    rows = batch(4, 6, torch.float32)
    student = rows.student.clone().requires_grad_()
    made = OBJECTIVES[name].loss(
        replace(rows, student=student, teacher=rows.student), settings(name, 2.0, alpha=1.0)
    )
    made.backward()
    assert abs(made.item()) < 1e-6
    assert student.grad is not None and student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("name", OBJECTIVES)
def test_extreme_logits_stay_finite(name: str) -> None:
    """Where each finds nothing probable that the other does: large, and a number, with a gradient that is one."""
    far = torch.tensor([[80.0, 0.0, -80.0]])
    student = (-far).clone().requires_grad_()
    rows = replace(batch(1, 3, torch.float32), student=student, teacher=far, targets=torch.tensor([0]))
    OBJECTIVES[name].loss(rows, settings(name, 1.0)).backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_kl_by_hand() -> None:
    """Teacher (3/4, 1/4) against an even student: 0.75 ln 1.5 + 0.25 ln 0.5; the other way 0.5 ln 4/3."""
    teacher, even = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert forward_kl(even, teacher, 1.0).item() == pytest.approx(by_hand, abs=1e-6)
    rows = Rows(even, torch.tensor([0]), teacher)
    reverse = OBJECTIVES["reverse-kl"].loss(rows, Settings(1.0, alpha=1.0))
    assert reverse.item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)


def test_mixtures_by_hand() -> None:
    """Two certain opposites: skew KL is -ln λ (its bound), and the even JSD is ln 2 (its bound)."""
    one = softened(torch.tensor([[60.0, 0.0]]), 1.0)
    other = softened(torch.tensor([[0.0, 60.0]]), 1.0)
    assert skew_kl(other, one, 0.1).item() == pytest.approx(-math.log(0.1), abs=1e-5)
    assert jsd(other, one, 0.5).item() == pytest.approx(math.log(2), abs=1e-5)


def test_jsd_turns_into_either_kl() -> None:
    """Divided by β (1-β) it approaches forward KL for small β and reverse KL for large (GKD, section 2)."""
    rows = batch()
    assert rows.teacher is not None
    student, teacher = softened(rows.student, 1.0), softened(rows.teacher, 1.0)
    assert jsd(student, teacher, 1e-5).item() / 1e-5 == pytest.approx(kl(teacher, student).item(), rel=1e-3)
    assert jsd(student, teacher, 1 - 1e-5).item() / 1e-5 == pytest.approx(
        kl(student, teacher).item(), rel=1e-3
    )


def test_cosine_by_hand() -> None:
    """Right angle 1, same direction 0, opposite 2: their mean, whatever the lengths."""
    student = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, -3.0]])
    teacher = torch.tensor([[0.0, 5.0], [1.0, 1.0], [0.0, 1.0]])
    assert cosine(student, teacher).item() == pytest.approx(1.0, abs=1e-6)


def test_taid_starts_near_the_student_and_ends_at_the_teacher() -> None:
    """At t = 0 the target is the student itself, at t = 1 the teacher."""
    rows = batch()
    assert rows.teacher is not None
    torch.testing.assert_close(
        interpolated(rows.student, rows.teacher, 0.0, 2.0), softened(rows.student, 2.0)
    )
    torch.testing.assert_close(
        interpolated(rows.student, rows.teacher, 1.0, 2.0), softened(rows.teacher, 2.0)
    )


def test_taid_s_pace_by_hand() -> None:
    """The first step remembers its loss; the second moves by α σ(m) (1 - t), or to the straight line above it."""
    pace = Pace()
    pace.move(4.0, 0.0)
    assert (pace.t, pace.momentum, pace.loss) == (START, 0.0, 4.0)
    pace.move(3.0, 0.0)
    momentum = (1 - DECAY) * 0.25
    assert pace.momentum == pytest.approx(momentum)
    assert pace.t == pytest.approx(START + RATE / (1 + math.exp(-momentum)) * (1 - START))
    pace.move(3.0, 0.5)
    assert pace.t == pytest.approx(START + (END - START) / 2)  # the line is ahead
    for loss in (1e9, 1e-9, 0.0, 5.0):  # leaps of the loss overflow nothing and never turn it back
        before = pace.t
        pace.move(loss, 0.5)
        assert before <= pace.t <= END
    pace.move(1.0, 1.0)
    assert pace.t == END


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
    rows, targets, other = next_token(scores, labels, scores[..., :2])
    assert targets.tolist() == [1, 2, 0, 1]
    assert torch.equal(rows, torch.stack([scores[0, 0], scores[0, 2], scores[1, 1], scores[1, 2]]))
    assert torch.equal(other, rows[:, :2])
    rows, targets = next_token(scores, torch.ones(2, 4, dtype=torch.long))
    assert torch.equal(rows, scores[:, :-1].reshape(-1, 3)) and targets.tolist() == [1] * 6


@pytest.mark.parametrize("name", OBJECTIVES)
def test_masked_tokens_change_nothing(name: str) -> None:
    """A token whose label is -100 has no part in the loss and gets no gradient, whatever its logits are."""
    rows = batch(8, 7)
    assert rows.teacher is not None and rows.student_hidden is not None and rows.teacher_hidden is not None
    labels = torch.tensor([[0, 3, IGNORED, 2], [1, IGNORED, IGNORED, 4]])
    scores = rows.student.reshape(2, 4, 7).clone().requires_grad_()
    others = [value.reshape(2, 4, -1) for value in (rows.teacher, rows.student_hidden, rows.teacher_hidden)]
    student, targets, teacher, *hidden = next_token(scores, labels, *others)
    loss = OBJECTIVES[name].loss(Rows(student, targets, teacher, None, *hidden), settings(name, 2.0))
    loss.backward()
    counted = [0, 2, 6]  # flat positions whose next label counts
    fewer = Rows(
        rows.student[counted],
        torch.tensor([3, 2, 4]),
        rows.teacher[counted],
        None,
        rows.student_hidden[counted],
        rows.teacher_hidden[counted],
    )
    assert loss.item() == pytest.approx(slow_loss(name, fewer, 2.0), rel=1e-9)
    assert scores.grad is not None
    touched = scores.grad.reshape(8, 7).abs().sum(-1) > 0
    assert touched.nonzero().flatten().tolist() == counted


@pytest.mark.parametrize(("name", "objective"), OBJECTIVES.items())
def test_registry_defaults_can_be_called(name: str, objective: Objective) -> None:
    """Every registered objective computes a scalar with its own defaults, and says what it is."""
    held = Settings(objective.temperature, objective.alpha, objective.mix, objective.pace and START)
    loss = objective.loss(batch(), held)
    assert loss.dim() == 0 and torch.isfinite(loss)
    assert objective.description and objective.lr == (2.5e-4 if name == "distilgpt2" else 5e-4)


def test_alpha_weighs_the_two_parts() -> None:
    """alpha weighs the teacher's part, the rest the labels; the ends are the parts themselves."""
    rows = batch()
    assert rows.teacher is not None
    for alpha in (0.0, 0.3, 1.0):
        expected = alpha * forward_kl(rows.student, rows.teacher, 2.0) + (1 - alpha) * cross_entropy(
            rows.student, rows.targets
        )
        torch.testing.assert_close(OBJECTIVES["logits"].loss(rows, Settings(2.0, alpha)), expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_rest_is_one_outcome(temperature: float) -> None:
    """The k + 1 outcomes are the softened probabilities of the ids, and of all others together."""
    rows = batch()
    ids = torch.tensor([[3, 0], [1, 2], [8, 7], [0, 1], [5, 4]])
    made = top_log_probabilities(rows.student, ids, temperature)
    for row, picked, logits in zip(made.tolist(), ids.tolist(), rows.student.tolist(), strict=True):
        p = shares(logits, temperature)
        expected = [p[i] for i in picked]
        assert row == pytest.approx([math.log(x) for x in [*expected, 1 - sum(expected)]], rel=1e-9)
    assert torch.autograd.gradcheck(
        lambda logits: top_log_probabilities(logits, ids, temperature), rows.student.clone().requires_grad_()
    )


def test_a_rest_of_almost_nothing_keeps_its_digits() -> None:
    """A certain model: the rest's log-probability is exact where 1 - sum would be zero."""
    made = top_log_probabilities(torch.tensor([[70.0, 0.0, 0.0]]), torch.tensor([[0]]), 1.0)
    assert made[0].tolist() == pytest.approx([0.0, -70.0 + math.log(2)], abs=1e-5)


@pytest.mark.parametrize("name", [name for name, made in OBJECTIVES.items() if not made.needs_all])
def test_the_top_of_everything_is_everything(name: str) -> None:
    """With all tokens but one in the top, the loss is that of the whole vocabulary; with fewer it is no larger."""
    rows = batch()
    assert rows.teacher is not None
    for k in (8, 4, 1):
        ids = rows.teacher.topk(k).indices
        cached = replace(rows, teacher=None, top=(ids, top_log_probabilities(rows.teacher, ids, 2.0)))
        loss = OBJECTIVES[name].loss(cached, settings(name, 2.0, alpha=1.0)).item()
        whole = OBJECTIVES[name].loss(rows, settings(name, 2.0, alpha=1.0)).item()
        assert loss == pytest.approx(whole, rel=1e-9) if k == 8 else loss < whole


@pytest.mark.parametrize("name", [name for name, made in OBJECTIVES.items() if not made.needs_all])
def test_gradients_from_a_cache_are_the_slopes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the one pass over the logits, in chunks of two rows: targets in the top, outside, and all weights."""
    monkeypatch.setattr("toolchain.compress.objectives.top.CHUNK", 2 * 9)
    rows = batch()
    assert rows.teacher is not None
    ids = rows.teacher.topk(3).indices
    targets = torch.cat([ids[:2, 1], rows.teacher.argmin(-1)[2:]])
    cached = replace(
        rows, targets=targets, teacher=None, top=(ids, top_log_probabilities(rows.teacher, ids, 2.0))
    )
    for alpha in (0.3, 1.0):
        held = settings(name, 2.0, alpha)
        assert torch.autograd.gradcheck(
            lambda student, held=held: OBJECTIVES[name].loss(replace(cached, student=student), held),
            rows.student.clone().requires_grad_(),
        )
    zero = OBJECTIVES[name].loss(cached, settings(name, 2.0, 0.0)).item()
    assert zero == pytest.approx(cross_entropy(rows.student, targets).item(), rel=1e-12)
