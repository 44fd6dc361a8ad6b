import math

import numpy as np
import pytest

from devices.errors import UserError
from toolchain.glue.metrics import decide, score

PREDICTED = [1, 1, 0, 1, 0, 0, 1, 0]
TRUE = [1, 0, 0, 1, 1, 0, 1, 1]


def counts(predicted, true):
    """True and false positives and negatives, by hand."""
    pairs = list(zip(predicted, true, strict=True))
    return [pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 0), (0, 1))]


def test_accuracy_is_the_share_of_right_rows():
    """Five of eight rows are right."""
    assert score("accuracy", PREDICTED, TRUE) == 5 / 8


def test_f1_is_that_of_class_one():
    """F1 = 2 tp / (2 tp + fp + fn)."""
    tp, fp, _, fn = counts(PREDICTED, TRUE)
    assert score("f1", PREDICTED, TRUE) == pytest.approx(2 * tp / (2 * tp + fp + fn))


def test_matthews_follows_its_formula():
    """(tp tn - fp fn) / sqrt of the four sums."""
    tp, fp, tn, fn = counts(PREDICTED, TRUE)
    slow = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert score("matthews", PREDICTED, TRUE) == pytest.approx(slow)


def correlation(x, y):
    """Pearson's, in plain Python."""
    mx, my = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return above / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def test_pearson_spearman_is_their_mean():
    """Spearman's is Pearson's of the ranks, ties sharing theirs."""
    x, y = [0.1, 2.0, 2.0, 3.5, 9.0], [1.0, 0.5, 3.0, 2.5, 5.0]
    ranks = [1, 2.5, 2.5, 4, 5], [2, 1, 4, 3, 5]
    slow = (correlation(x, y) + correlation(*ranks)) / 2
    assert score("pearson_spearman", x, y) == pytest.approx(slow)


@pytest.mark.parametrize("metric", ["matthews", "pearson_spearman"])
def test_a_constant_answer_is_worth_nothing(metric):
    """A model that always says the same scores 0, not NaN, so that the best epoch is well defined."""
    assert score(metric, [1, 1, 1, 1], [0, 1, 0, 1]) == 0.0


def test_f1_without_any_positive_is_zero():
    """No positive predicted and none there: 0, without a warning."""
    assert score("f1", [0, 0], [0, 0]) == 0.0


@pytest.mark.parametrize(
    ("metric", "predicted", "true", "words"),
    [
        ("acuracy", [1], [1], "did you mean accuracy"),
        ("accuracy", [], [], "0 predictions"),
        ("accuracy", [1, 0], [1], "2 predictions for 1 labels"),
    ],
)
def test_what_cannot_be_scored_is_one_line(metric, predicted, true, words):
    """An unknown metric and rows that do not pair are UserErrors."""
    with pytest.raises(UserError, match=words):
        score(metric, predicted, true)


def test_decide_takes_the_likeliest_class_or_the_only_column():
    """Logits [rows, labels] become class indices, or scores in a regression."""
    logits = np.array([[0.1, 0.9], [3.0, -1.0]], dtype=np.float32)
    assert decide("classification", logits).tolist() == [1, 0]
    assert decide("regression", logits[:, :1]).tolist() == pytest.approx([0.1, 3.0])


def test_the_correlations_alone_give_their_mean():
    """STS-B's two figures, each by its own name."""
    predicted, true = [0.5, 2.0, 1.0, 4.0], [1.0, 2.0, 0.0, 9.0]
    one, other = score("pearson", predicted, true), score("spearman", predicted, true)
    assert one == pytest.approx(correlation(predicted, true))
    assert other == pytest.approx(correlation([0, 2, 1, 3], [1, 2, 0, 3]))
    assert score("pearson_spearman", predicted, true) == pytest.approx((one + other) / 2)
