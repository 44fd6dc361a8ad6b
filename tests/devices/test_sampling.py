"""Picking a token: the distributions are what they are called."""

import numpy as np
import pytest

from devices.errors import UserError
from devices.sampling import Sampling, generators, pick, probabilities

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], dtype=np.float32))


def test_temperature_one_is_softmax():
    """At temperature 1, with all tokens in, the probabilities are the model's."""
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(1.0)), [0.1, 0.4, 0.2, 0.3], atol=1e-6)


def test_temperature_sharpens():
    """Temperature 0.5 squares the probabilities."""
    expected = np.array([0.1, 0.4, 0.2, 0.3]) ** 2
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(0.5)), expected / expected.sum(), atol=1e-6)


@pytest.mark.parametrize(
    ("k", "kept"), [(1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (4, [0, 1, 2, 3]), (99, [0, 1, 2, 3])]
)
def test_top_k_keeps_the_k_likeliest(k, kept):
    """Exactly k tokens can be drawn, or all where there are fewer."""
    assert np.flatnonzero(probabilities(LOGITS, Sampling(1.0, top_k=k))).tolist() == kept


def test_top_k_keeps_k_of_a_tie():
    """Equal logits do not let more than k tokens in."""
    assert np.flatnonzero(probabilities(np.zeros(8), Sampling(1.0, top_k=3))).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("p", "kept"), [(0.01, [1]), (0.39, [1]), (0.5, [1, 3]), (0.75, [1, 2, 3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_smallest_set_that_holds_p(p, kept):
    """The likeliest tokens whose probabilities reach p, always at least one."""
    assert np.flatnonzero(probabilities(LOGITS, Sampling(1.0, top_p=p))).tolist() == kept


def test_probabilities_always_sum_to_one():
    """Huge, tiny and infinitely low logits make a distribution all the same."""
    for logits in (np.array([1e30, -1e30, 0.0]), np.array([-np.inf, 0.0, -np.inf]), np.full(5, -1e9)):
        assert probabilities(logits, Sampling(0.7, top_k=2, top_p=0.9)).sum() == pytest.approx(1)


def test_draws_follow_the_probabilities():
    """Over many draws, tokens come as often as they should."""
    rng = np.random.default_rng(0)
    drawn = np.bincount([pick(LOGITS, Sampling(1.0), rng) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, [0.1, 0.4, 0.2, 0.3], atol=0.03)


def test_greedy_takes_the_lowest_of_a_tie():
    """Temperature 0 is the argmax, and a tie always ends the same way."""
    assert pick(np.array([0.0, 2.0, 2.0]), Sampling(), np.random.default_rng(0)) == 1


def test_a_rows_stream_does_not_depend_on_the_batch():
    """Row 1 of 2 draws what row 1 of 5 draws."""
    drawn = Sampling(temperature=1.0, seed=3)
    two, five = generators(drawn, 2), generators(drawn, 5)
    assert two[1].random() == five[1].random()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_one_line(wrong):
    """A setting that means nothing is a UserError that names it."""
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", "-")):
        Sampling(**wrong)
