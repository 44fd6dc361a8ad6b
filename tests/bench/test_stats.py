"""Percentiles by hand, Student's t by the tables, trimmed means by a worked example; few rounds say nothing."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from bench.stats import CONFIDENCE, FEWEST, compare, interval, spread, spread_of_rounds, student, trimmed


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99, 0.999])
@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 9, 30, 121])
def test_students_t_is_scipys(confidence, freedom):
    """The closed form for whole degrees of freedom gives the quantiles of the tables."""
    assert student(confidence, freedom) == pytest.approx(reference.t.ppf((1 + confidence) / 2, freedom), 1e-8)


def test_a_trimmed_mean_by_hand():
    """Of 1..9 and 1000 two go at each end: mean 5.5; Winsorized to 3..8; ten values leave six and five degrees."""
    middle, error, freedom = trimmed([1000, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    kept = np.array([3, 3, 3, 4, 5, 6, 7, 8, 8, 8])
    assert (middle, freedom) == (5.5, 5)
    assert error == pytest.approx(kept.std(ddof=1) * math.sqrt(9 / 30))
    assert middle == reference.trim_mean([1000, 1, 2, 3, 4, 5, 6, 7, 8, 9], 0.2)


def test_of_five_none_is_cut():
    """Three values would say too little: five are a mean and its error as everywhere, six lose one at each end."""
    middle, error, freedom = trimmed([1, 2, 3, 4, 10])
    assert (middle, freedom) == (4.0, 4)
    assert error == pytest.approx(np.std([1, 2, 3, 4, 10], ddof=1) / math.sqrt(5))
    assert trimmed([1, 2, 3, 4, 5, 99])[0] == 3.5


def test_two_samples_are_yuens_test():
    """Unpaired, the interval excludes 1 where scipy's trimmed t-test is significant at 1 %, and not elsewhere."""
    rng = np.random.default_rng(0)
    for shift in np.linspace(0, 0.05, 40):
        a, b = np.exp(rng.normal(0, 0.02, 12)), np.exp(rng.normal(shift, 0.03, 15))
        found = compare(a, b, paired=False)
        test = reference.ttest_ind(np.log(b), np.log(a), equal_var=False, trim=0.2)
        if not 0.008 < test.pvalue < 0.012:  # our degrees of freedom are whole numbers
            assert (found["verdict"] == "same") == (test.pvalue > 1 - CONFIDENCE)


def test_rounds_stand_beside_the_samples():
    """All samples give the percentiles; each round its median, and enough rounds an interval around these."""
    rounds = [[1.0, 2.0, 30.0], [2.0, 2.2], [2.1], [1.9, 2.0, 2.1], [2.0], []]
    found = spread_of_rounds(rounds)
    assert found["samples"] == [sample for one in rounds for sample in one]
    assert found["rounds"] == [2.0, pytest.approx(2.1), 2.1, 2.0, 2.0]
    low, high = found["interval"]
    assert low < 2.04 < high
    assert spread_of_rounds(rounds[:4])["interval"] is None
    assert spread_of_rounds([]) is None and spread_of_rounds([[], []]) is None


def test_pairs_cancel_what_a_round_does_to_both():
    """A machine that halves its speed between rounds hides nothing from a pair, and everything from two samples."""
    rng = np.random.default_rng(1)
    drift = np.exp(np.cumsum(rng.normal(0, 0.3, 10)))
    a = drift * np.exp(rng.normal(0, 0.005, 10))
    b = 1.05 * drift * np.exp(rng.normal(0, 0.005, 10))
    found = compare(a, b, paired=True)
    assert found["verdict"] == "more" and found["low"] < 1.05 < found["high"]
    assert compare(b, a, paired=True)["ratio"] == pytest.approx(1 / found["ratio"])
    assert compare(b, a, paired=True)["verdict"] == "less"
    assert compare(a, b, paired=False)["verdict"] == "same"


def test_a_disturbed_round_is_cut_off():
    """Two rounds of ten in which one artifact met another program do not widen the interval."""
    rng = np.random.default_rng(2)
    a = np.exp(rng.normal(0, 0.01, 10))
    b = 1.05 * np.exp(rng.normal(0, 0.01, 10))
    quiet = compare(a, b, paired=True)
    b[[2, 7]] *= 1.6
    found = compare(a, b, paired=True)
    assert found["verdict"] == "more" and found["high"] < 1.12
    assert found["ratio"] == pytest.approx(quiet["ratio"], rel=0.02)


@pytest.mark.parametrize("rounds", range(1, FEWEST))
def test_few_rounds_are_called_few(rounds):
    """Below the fewest rounds there is a ratio and neither an interval nor a difference."""
    found = compare([1.0] * rounds, [2.0] * rounds, paired=True)
    assert found == {
        "ratio": pytest.approx(2),
        "low": None,
        "high": None,
        "verdict": "few",
        "rounds": rounds,
        "paired": True,
    }
    assert interval([1.0] * rounds) is None


def test_what_never_varies():
    """The same size in every round is no difference, nor is one page more of 200 MB; twice the size is one."""
    size = [200_000_000.0] * 6
    assert compare(size, size, paired=True)["verdict"] == "same"
    assert compare(size, [value + 4096 for value in size], paired=True)["verdict"] == "same"
    assert compare(size, [value * 2 for value in size], paired=True)["verdict"] == "more"


@pytest.mark.parametrize(("a", "b"), [([], [1.0]), ([1.0], []), ([0.0] * 9, [1.0] * 9), ([1.0], [-1.0])])
def test_nothing_to_compare_is_null(a, b):
    """No rounds, or a time that is none."""
    assert compare(a, b, paired=True) is None


def test_percentiles():
    """Median, p95 and p99 are numpy's, and nothing measured is null."""
    assert spread([]) is None and spread(None) is None
    found = spread(list(range(101)))
    assert (found["median"], found["p95"], found["p99"]) == (50, 95, 99)
    assert found["samples"] == list(range(101))
