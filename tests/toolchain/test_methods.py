"""The methods' losses, by hand and against a slow reference in Python floats; their options and schedules."""

import math

import pytest
import torch

from devices.errors import UserError
from toolchain.glue.methods import METHODS
from toolchain.glue.methods.annealing import annealed, phi, temperature
from toolchain.glue.methods.kd import distilled
from toolchain.glue.methods.label_smoothing import smoothed
from toolchain.glue.methods.losses import direction_distance, hard, soft, squared_distance
from toolchain.glue.methods.mate import generating
from toolchain.glue.methods.method import Moment, resolve, split_epochs
from toolchain.glue.methods.pkd import partners
from toolchain.glue.methods.rail import drawn, layer_wise
from toolchain.glue.methods.reading import last_token, mean_token
from toolchain.glue.methods.tf_reg import regularised, virtual_teacher

LABELS = torch.tensor([0, 2, 1, 2])


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Normal numbers of a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def slow_softmax(row: list[float], t: float = 1.0) -> list[float]:
    """By the definition."""
    powers = [math.exp(x / t) for x in row]
    return [power / sum(powers) for power in powers]


def slow_cross_entropy(rows: torch.Tensor, targets: list[list[float]]) -> float:
    """The mean over rows of -sum target · log p."""
    total = 0.0
    for row, target in zip(rows.tolist(), targets, strict=True):
        total -= sum(q * math.log(p) for q, p in zip(target, slow_softmax(row), strict=True))
    return total / len(rows)


def slow_kl(student: torch.Tensor, teacher: torch.Tensor, t: float) -> float:
    """T² times the mean over rows of the teacher's expectation of the log ratio."""
    total = 0.0
    for s, w in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = slow_softmax(w, t), slow_softmax(s, t)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return t * t * total / len(student)


def slow_directions(one: torch.Tensor, other: torch.Tensor) -> float:
    """The mean over rows of the squared distance of unit vectors: 2 - 2 cos."""
    total = 0.0
    for a, b in zip(one.tolist(), other.tolist(), strict=True):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        total += 2 - 2 * dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return total / len(one)


def one_hot(labels: torch.Tensor, classes: int) -> list[list[float]]:
    """A row of 0 and 1 for each label."""
    return [[float(i == label) for i in range(classes)] for label in labels.tolist()]


@pytest.mark.parametrize("t", [0.5, 1.0, 2.0, 20.0])
def test_soft_is_the_definition(t):
    """T² KL, whatever the temperature."""
    student, teacher = draw(4, 3), draw(4, 3, seed=1)
    assert soft(student, teacher, t).item() == pytest.approx(slow_kl(student, teacher, t), rel=1e-9)


def test_hard_is_the_definition():
    """The mean over rows of -log p(label)."""
    logits = draw(4, 3)
    assert hard(logits, LABELS).item() == pytest.approx(slow_cross_entropy(logits, one_hot(LABELS, 3)))


def test_a_score_is_regressed():
    """One column is a score: squared errors to labels and to the teacher, temperature without effect."""
    student, teacher = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [5.0]])
    assert hard(student, torch.tensor([0.0, 0.0])).item() == pytest.approx((1 + 9) / 2)
    for t in (1.0, 7.0):
        assert soft(student, teacher, t).item() == pytest.approx((1 + 4) / 2)
    labels = torch.tensor([0.0, 0.0])
    assert distilled(student, teacher, labels, 0.25, 2.0).item() == pytest.approx(0.75 * 5 + 0.25 * 2.5)


def test_kd_by_hand():
    """Even student, teacher 3:1, label 0: half ln 2 and half of 0.75 ln 1.5 + 0.25 ln 0.5."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = distilled(student, teacher, torch.tensor([0]), 0.5, 1.0)
    assert found.item() == pytest.approx(0.5 * math.log(2) + 0.5 * kl)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_kd_is_the_definition(alpha):
    """alpha of the teacher's part, the rest of the labels'."""
    student, teacher = draw(4, 3), draw(4, 3, seed=1)
    slow = (1 - alpha) * slow_cross_entropy(student, one_hot(LABELS, 3)) + alpha * slow_kl(
        student, teacher, 2
    )
    assert distilled(student, teacher, LABELS, alpha, 2.0).item() == pytest.approx(slow)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_the_definition(smoothing):
    """Cross-entropy to (1 - e) · label + e / K."""
    logits = draw(4, 3)
    targets = [[(1 - smoothing) * x + smoothing / 3 for x in row] for row in one_hot(LABELS, 3)]
    slow = slow_cross_entropy(logits, targets)
    assert smoothed(logits, LABELS, smoothing).item() == pytest.approx(slow)


def test_the_virtual_teacher_by_hand():
    """0.9 on the label, the rest shared by the others."""
    found = virtual_teacher(torch.tensor([1, 0]), 3, 0.9).exp()
    torch.testing.assert_close(found, torch.tensor([[0.05, 0.9, 0.05], [0.9, 0.05, 0.05]]))


@pytest.mark.parametrize("t", [1.0, 20.0])
def test_tf_reg_is_the_definition(t):
    """(1 - a) CE + a T² KL to the virtual teacher, softened as logits are."""
    logits = draw(4, 3)
    teacher = torch.tensor([[math.log(0.9 if i == label else 0.05) for i in range(3)] for label in LABELS])
    slow = 0.6 * slow_cross_entropy(logits, one_hot(LABELS, 3)) + 0.4 * slow_kl(logits, teacher, t)
    assert regularised(logits, LABELS, alpha=0.4, temperature=t, correct=0.9).item() == pytest.approx(slow)


def test_tf_reg_at_temperature_1_is_label_smoothing_but_for_a_constant():
    """What Yuan et al. say of it: both have the gradient of a cross-entropy to a smoothed label."""
    logits = draw(4, 3).requires_grad_()
    regularised(logits, LABELS, alpha=1.0, temperature=1.0, correct=1 - 2 * 0.1 / 3).backward()
    other = draw(4, 3).requires_grad_()
    smoothed(other, LABELS, 0.1).backward()
    torch.testing.assert_close(logits.grad, other.grad, rtol=1e-5, atol=1e-7)


def test_annealed_by_hand():
    """Half of (2, 4) is (1, 2): from (1, 0) a squared distance of 4; alone in its row's mean."""
    assert annealed(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 4.0]]), 0.5).item() == 4
    two = annealed(torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.tensor([[2.0, 4.0], [2.0, 4.0]]), 0.5)
    assert two.item() == 2


def test_temperature_goes_from_tau_to_1_in_equal_shares():
    """Ten steps each of 10 temperatures; Phi from a tenth to the whole."""
    seen = [temperature(Moment(step, 100, 0), 10) for step in range(100)]
    assert seen == [10 - step // 10 for step in range(100)]
    assert phi(Moment(0, 100, 0), 10) == pytest.approx(0.1)
    assert phi(Moment(99, 100, 0), 10) == 1


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 33])
@pytest.mark.parametrize("tau", [1, 5, 10])
def test_the_last_step_has_the_whole_of_the_teacher(steps, tau):
    """However few steps there are, T falls and ends at 1."""
    seen = [temperature(Moment(step, steps, 0), tau) for step in range(steps)]
    assert seen == sorted(seen, reverse=True) and seen[-1] == 1 and seen[0] <= tau


def test_directions_are_the_definition_and_scale_does_not_count():
    """2 - 2 cos, whatever the lengths; 0 to itself, 4 to its opposite."""
    one, other = draw(4, 6), draw(4, 6, seed=1)
    found = direction_distance(one, other).item()
    assert found == pytest.approx(slow_directions(one, other))
    assert direction_distance(7 * one, other / 3).item() == pytest.approx(found)
    assert direction_distance(one, one).item() == pytest.approx(0, abs=1e-12)
    assert direction_distance(one, -one).item() == pytest.approx(4)
    assert layer_wise([one, one], [other, one]).item() == pytest.approx(found / 2)


def test_pooling_counts_real_tokens_only():
    """Padding moves neither the mean nor what is read, and a row of one token is that token."""
    hidden = torch.tensor([[[1.0], [2.0], [6.0]], [[5.0], [99.0], [99.0]]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert mean_token(hidden, mask).tolist() == [[3.0], [5.0]]
    assert last_token(hidden, mask).tolist() == [[6.0], [5.0]]


LOSSES = {
    "hard": lambda s, t: hard(s, LABELS),
    "soft": lambda s, t: soft(s, t, 3.0),
    "kd": lambda s, t: distilled(s, t, LABELS, 0.5, 2.0),
    "smoothed": lambda s, t: smoothed(s, LABELS, 0.1),
    "tf-reg": lambda s, t: regularised(s, LABELS, alpha=0.5, temperature=20.0, correct=0.99),
    "annealed": lambda s, t: annealed(s, t, 0.3),
    "squared": squared_distance,
    "directions": direction_distance,
    "pooled": lambda s, t: mean_token(s[None], torch.ones(1, 4)).square().sum(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_loss(name):
    """Against finite differences, in float64."""
    student, teacher = draw(4, 3).requires_grad_(), draw(4, 3, seed=1)
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, teacher), (student,))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "pooled"])
def test_half_precision_is_computed_in_float32(name):
    """bf16 logits give a float32 loss, finite, that of the rounded numbers."""
    student, teacher = (draw(4, 3, seed=seed, dtype=torch.bfloat16) * 4 for seed in (0, 1))
    loss = LOSSES[name](student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(LOSSES[name](student.double(), teacher.double()).item(), rel=1e-3)


def test_drawn_layers_are_as_many_as_wanted_and_change():
    """Ascending, each once, the same for an epoch and seed, others in other epochs; all where depths are alike."""
    draws = [drawn(12, 6, 3, epoch) for epoch in range(20)]
    assert draws == [drawn(12, 6, 3, epoch) for epoch in range(20)]
    assert all(d == sorted(set(d)) and len(d) == 6 and d[0] >= 1 and d[-1] <= 12 for d in draws)
    assert len({tuple(d) for d in draws}) > 10
    assert {layer for d in draws for layer in d} == set(range(1, 13))
    assert drawn(12, 6, 4, 0) != drawn(12, 6, 3, 0)
    assert drawn(6, 6, 3, 0) == [1, 2, 3, 4, 5, 6]


def test_patient_layers_are_the_papers():
    """12 layers to 6: skip is 2,4,6,8,10 and last is 7 to 11; alike depths pair each with itself."""
    assert partners(6, 12, "skip") == [2, 4, 6, 8, 10]
    assert partners(6, 12, "last") == [7, 8, 9, 10, 11]
    assert partners(3, 12, "skip") == [4, 8]
    for layers in ("skip", "last"):
        assert partners(4, 4, layers) == [1, 2, 3]
        assert all(len(set(partners(s, 13, layers))) == s - 1 for s in range(2, 14))


def test_the_generator_steps_ten_times_in_a_hundred():
    """Before the first ten of every hundred steps of the student."""
    options = resolve("mate", METHODS["mate"], None)
    turns = [generating(Moment(step, 250, 0), options) for step in range(250)]
    assert turns == ([True] * 10 + [False] * 90) * 2 + [True] * 10 + [False] * 40


@pytest.mark.parametrize(("epochs", "parts"), [(2, [1, 1]), (3, [2, 1]), (6, [4, 2]), (20, [13, 7])])
def test_stages_share_the_epochs(epochs, parts):
    """Two thirds for the first, at least one for each; a method of one stage has all."""
    for name in ("annealing", "combined"):
        assert split_epochs(name, METHODS[name], resolve(name, METHODS[name], None), epochs) == parts
    assert split_epochs("kd", METHODS["kd"], {}, epochs) == [epochs]
    assert split_epochs("annealing", METHODS["annealing"], {"first_stage": 1.0}, epochs) == [epochs - 1, 1]
    assert split_epochs("annealing", METHODS["annealing"], {"first_stage": 0.0}, epochs) == [1, epochs - 1]


def test_one_epoch_is_too_few_for_two_stages():
    """Said in one line."""
    with pytest.raises(UserError, match=r"annealing: has 2 stages, so 1 epoch is too few; raise --epochs"):
        split_epochs("annealing", METHODS["annealing"], {"first_stage": 0.5}, 1)


def test_options_come_as_texts_or_values():
    """What the command line gives and what a study's TOML gives is the same."""
    assert resolve("kd", METHODS["kd"], {"alpha": "0.25", "temperature": " 4 "}) == {
        "alpha": 0.25,
        "temperature": 4.0,
    }
    assert resolve("kd", METHODS["kd"], {"alpha": 1}) == {"alpha": 1.0, "temperature": 2.0}
    assert resolve("rail", METHODS["rail"], {"layers": "concatenated", "width": "64"})["width"] == 64
    assert resolve("finetune", METHODS["finetune"], {}) == {}


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("kd", {"temperatur": "2"}, "unknown option of method kd 'temperatur': did you mean temperature"),
        ("kd", {"zzz": "2"}, "known: alpha, temperature"),
        ("finetune", {"alpha": "1"}, "method finetune has no options; leave alpha=1 out"),
        ("kd", {"alpha": "1.5"}, "kd: alpha=1.5 does not do; it must be a share from 0 to 1"),
        ("kd", {"alpha": "-0.1"}, "must be a share"),
        ("kd", {"alpha": "nan"}, "must be a share"),
        ("kd", {"alpha": "half"}, "must be a share"),
        ("kd", {"alpha": ""}, "must be a share"),
        ("kd", {"alpha": True}, "must be a share"),
        ("kd", {"alpha": [1]}, "must be a share"),
        ("kd", {"temperature": "0"}, "must be a number above 0"),
        ("kd", {"temperature": "inf"}, "must be a number above 0"),
        ("tf-reg", {"correct": "1"}, "must be a probability between 0 and 1"),
        ("rail", {"layers": "all"}, "must be layer-wise or concatenated"),
        ("rail", {"width": "0"}, "must be a whole number from 1"),
        ("rail", {"width": "1.5"}, "must be a whole number from 1"),
        ("rail", {"width": 1.5}, "must be a whole number from 1"),
        ("rail", {"rail": "-1"}, "must be a number from 0"),
        ("pkd", {"layers": "first"}, "must be skip or last"),
        ("mate", {"generator_lr": "-1"}, "must be a number above 0"),
        ("mate", {"masked": "2"}, "must be a share from 0 to 1"),
        ("annealing", {"tau": "0"}, "must be a whole number from 1"),
    ],
)
def test_bad_options_are_one_line(method, given, words):
    """Near names for unknown ones; the range for what is outside."""
    with pytest.raises(UserError) as caught:
        resolve(method, METHODS[method], given)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_defaults_are_within_their_own_ranges():
    """Giving a default again changes nothing."""
    for name, method in METHODS.items():
        defaults = resolve(name, method, None)
        assert resolve(name, method, defaults) == resolve(
            name, method, {k: str(v) for k, v in defaults.items()}
        )
