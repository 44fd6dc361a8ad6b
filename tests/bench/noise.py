"""A machine's noise as a model, and the intervals that were weighed against each other (docs/adr/0015-intervals.md)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import stats

CONFIDENCE = stats.CONFIDENCE
RESAMPLES = 1000
TOKENS = 63
MEMORY = 0.9  # how much of a run's drift the next run keeps
Interval = Callable[[np.ndarray, np.random.Generator], tuple[float, float]]


@dataclass(frozen=True)
class Noise:
    """Relative sizes: of the machine's slow drift, of what a fresh process draws (addresses, pages), how likely a
    token meets a spike (half as long again, on average), how likely a run meets another program, and how much
    longer that makes it at most."""

    drift: float
    process: float
    spikes: float
    busy: float
    longer: float


MACHINES = {
    "quiet": Noise(0.005, 0.004, 0.02, 0.0, 0.0),
    "noisy": Noise(0.03, 0.01, 0.05, 0.1, 0.3),
    "hostile": Noise(0.08, 0.02, 0.1, 0.2, 0.5),
}


def runs(noise: Noise, count: int, rng: np.random.Generator) -> np.ndarray:
    """Logarithms of the median time per token of `count` processes in a row, of an artifact that takes 1."""
    steps = rng.standard_normal(count)
    drift = np.empty(count)
    drift[0] = steps[0]
    for at in range(1, count):
        drift[at] = MEMORY * drift[at - 1] + np.sqrt(1 - MEMORY**2) * steps[at]
    found = noise.drift * drift + noise.process * rng.standard_normal(count)
    found += (rng.random(count) < noise.busy) * np.log1p(noise.longer * rng.random(count))
    tokens = 0.03 * rng.standard_normal((count, TOKENS))
    tokens += (rng.random(tokens.shape) < noise.spikes) * rng.exponential(0.5, tokens.shape)
    return found + np.median(tokens, axis=1)


def interleaved(noise: Noise, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """[rounds, 2]: two artifacts that take the same, in turn, their order drawn anew in each round."""
    pairs = runs(noise, 2 * rounds, rng).reshape(rounds, 2)
    swapped = rng.random(rounds) < 0.5
    pairs[swapped] = pairs[swapped, ::-1]
    return pairs


def trimmed(d: np.ndarray, _: Any) -> tuple[float, float]:
    """Ours: bench.stats on the differences of logarithms."""
    middle, error, freedom = stats.trimmed(d)
    reach = stats.student(CONFIDENCE, freedom) * error
    return middle - reach, middle + reach


def student(d: np.ndarray, _: Any) -> tuple[float, float]:
    """Student's t on the mean."""
    reach = stats.student(CONFIDENCE, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    return d.mean() - reach, d.mean() + reach


def percentile(d: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The percentile bootstrap of the mean (Efron & Tibshirani 1993, ch. 13)."""
    means = _resampled(d, rng).mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def median(d: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The percentile bootstrap of the median."""
    medians = np.median(_resampled(d, rng), axis=1)
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def bootstrap_t(d: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The symmetric bootstrap-t of the mean (Efron & Tibshirani 1993, sec. 12.5; Hall 1988)."""
    drawn = _resampled(d, rng)
    with np.errstate(all="ignore"):  # resamples of one value have no error
        ratios = np.abs((drawn.mean(axis=1) - d.mean()) / drawn.std(axis=1, ddof=1))
    reach = float(np.quantile(np.nan_to_num(ratios, nan=0.0, posinf=1e9), CONFIDENCE)) * d.std(ddof=1)
    return d.mean() - reach, d.mean() + reach


def signed_ranks(d: np.ndarray, _: Any) -> tuple[float, float]:
    """Wilcoxon's signed ranks, inverted exactly: Walsh averages (Hollander & Wolfe 1999, sec. 3.3). None below 8."""
    n = len(d)
    ways = np.zeros(n * (n + 1) // 2 + 1)
    ways[0] = 1
    for rank in range(1, n + 1):
        more = ways.copy()
        more[rank:] += ways[:-rank]
        ways = more
    cut = int(np.searchsorted(np.cumsum(ways) / 2**n, (1 - CONFIDENCE) / 2, side="right"))
    if cut == 0:
        return -np.inf, np.inf
    i, j = np.triu_indices(n)
    walsh = np.sort((d[i] + d[j]) / 2)
    return float(walsh[cut - 1]), float(walsh[-cut])


def _resampled(d: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return d[rng.integers(0, len(d), (RESAMPLES, len(d)))]


METHODS: dict[str, Interval] = {
    "trimmed": trimmed,
    "student": student,
    "percentile": percentile,
    "median": median,
    "bootstrap-t": bootstrap_t,
    "signed-ranks": signed_ranks,
}


def rates(
    method: Interval, noise: Noise, rounds: int, tries: int, slower: float, seed: int
) -> tuple[float, float]:
    """Shares of tries in which the same artifact is called different, and one `slower` times as slow is found."""
    rng = np.random.default_rng(seed)
    false = found = 0
    for _ in range(tries):
        pairs = interleaved(noise, rounds, rng)
        low, high = method(pairs[:, 1] - pairs[:, 0], rng)
        false += low > 0 or high < 0
        found += low + np.log(slower) > 0
    return false / tries, found / tries


def rates_apart(noise: Noise, rounds: int, tries: int, slower: float, seed: int) -> tuple[float, float]:
    """The same for two runs of their own, one after the other, compared as two samples."""
    rng = np.random.default_rng(seed)
    false = found = 0
    for _ in range(tries):
        a, b = (np.exp(runs(noise, rounds, rng)) for _ in range(2))
        same, slow = (stats.compare(a, times, paired=False) for times in (b, b * slower))
        assert same is not None and slow is not None
        false += same["verdict"] != "same"
        found += slow["verdict"] == "more"
    return false / tries, found / tries
