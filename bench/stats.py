"""Samples and what is said about them. Rounds are the sampling unit: tokens of one process are not independent.

Intervals are for the 20 % trimmed mean of a logarithm over rounds, with a Winsorized standard error and
Student's t (Tukey & McLaughlin 1963; Yuen 1974 for two samples; Wilcox, Introduction to Robust Estimation and
Hypothesis Testing, ch. 4): rounds in which the machine did something else are cut off, and with few rounds
the interval is as wide as it must be. docs/adr/0015-intervals.md says what else was tried, and what it missed.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

CONFIDENCE = 0.99
TRIM = 0.2  # of the rounds at each end
LEFT = 4  # rounds that trimming leaves at least: of 5, none is cut
FEWEST = 5  # rounds; below, an interval would rest on nothing
SMALLEST = 1.001  # a ratio nearer to 1 is called no difference, however sure it is


def spread(samples: Sequence[float] | None) -> dict[str, Any] | None:
    """Median, 95th and 99th percentile (linear interpolation) beside the raw samples; null without any."""
    if not samples:
        return None
    median, p95, p99 = (float(value) for value in np.percentile(samples, [50, 95, 99]))
    return {"median": median, "p95": p95, "p99": p99, "samples": list(samples)}


def spread_of_rounds(rounds: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    """`spread` of all samples, with each round's median and the interval that the rounds give; null without any.

    `rounds` has the samples of a round in each place; a round without any is left out.
    """
    rounds = [list(found) for found in rounds if len(found)]
    found = spread([sample for samples in rounds for sample in samples])
    if found is None:
        return None
    medians = [median(samples) for samples in rounds]
    return {**found, "rounds": medians, "interval": interval(medians)}


def median(samples: Sequence[float]) -> float:
    """Of at least one."""
    return float(np.median(samples))


def interval(medians: Sequence[float], confidence: float = CONFIDENCE) -> list[float] | None:
    """[low, high] for a round's typical value; null for fewer than FEWEST rounds or values that are not positive."""
    if len(medians) < FEWEST or min(medians) <= 0:
        return None
    middle, error, freedom = trimmed(np.log(medians))
    reach = student(confidence, freedom) * error
    return [math.exp(middle - reach), math.exp(middle + reach)]


def trimmed(values: Any) -> tuple[float, float, int]:
    """Trimmed mean of values [n], its standard error, and the error's degrees of freedom.

    With g = floor(TRIM n) cut from each end (none where fewer than LEFT would stay) and h = n - 2g left, the
    error is s_w sqrt((n - 1) / (h (h - 1))), s_w being the standard deviation after Winsorizing, and has h - 1
    degrees of freedom (Yuen 1974).
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    cut = int(TRIM * n)
    cut = cut if n - 2 * cut >= LEFT else 0
    left = n - 2 * cut
    winsorized = np.clip(ordered, ordered[cut], ordered[n - 1 - cut])
    error = float(winsorized.std(ddof=1)) * math.sqrt((n - 1) / (left * (left - 1)))
    return float(ordered[cut : n - cut].mean()), error, left - 1


def student(confidence: float, freedom: int) -> float:
    """t with P(|T| <= t) = confidence for Student's t of `freedom` (1, 2, ...), by bisection."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < confidence else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(angle)): Abramowitz & Stegun 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = 0.0
    if freedom > 1:
        term = total = cosine if odd else 1.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def compare(a: Sequence[float], b: Sequence[float], paired: bool) -> dict[str, Any] | None:
    """How b's rounds stand to a's, both positive: ratio, its interval, rounds, paired, and a verdict.

    `paired`: place i of both is the same round of one interleaved run, and the ratio is taken round by round.
    Otherwise the two are samples of their own (Yuen's test, degrees of freedom rounded down). The verdict is
    `same`, `more` or `less`; `few` (and no interval) below FEWEST rounds. Null where there is nothing to compare.
    """
    if not len(a) or not len(b) or min(*a, *b) <= 0:
        return None
    x, y = np.log(a), np.log(b)
    rounds = min(len(x), len(y))
    if rounds < FEWEST:
        between = float(np.median(y) - np.median(x))
        found = {"ratio": math.exp(between), "low": None, "high": None, "verdict": "few"}
        return {**found, "rounds": rounds, "paired": paired}
    if paired:
        middle, error, freedom = trimmed(y[:rounds] - x[:rounds])
    else:
        middle, error, freedom = _apart(x, y)
    reach = student(CONFIDENCE, freedom) * error
    ratio, low, high = (math.exp(value) for value in (middle, middle - reach, middle + reach))
    same = low <= 1 <= high or 1 / SMALLEST < ratio < SMALLEST
    verdict = "same" if same else "more" if ratio > 1 else "less"
    return {"ratio": ratio, "low": low, "high": high, "verdict": verdict, "rounds": rounds, "paired": paired}


def _apart(x: Any, y: Any) -> tuple[float, float, int]:
    """Difference of the trimmed means of two samples, its error and degrees of freedom: Yuen 1974."""
    (mean_x, error_x, free_x), (mean_y, error_y, free_y) = trimmed(x), trimmed(y)
    squares = error_x**2 + error_y**2
    parts = error_x**4 / free_x + error_y**4 / free_y
    freedom = max(int(squares**2 / parts), 1) if parts else min(free_x, free_y)
    return mean_y - mean_x, math.sqrt(squares), freedom
