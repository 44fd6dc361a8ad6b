"""How the next token is picked from logits: greedy, or drawn with temperature, top-k and top-p."""

from __future__ import annotations  # np.random, 25 ms, is imported where something is drawn

from dataclasses import dataclass

import numpy as np

from devices.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_k 0 and top_p 1 leave all tokens in; one seed makes one text."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """UserError for a setting outside its range."""
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise UserError(f"top-k is {self.top_k}; it must be 0 (all tokens) or a positive number")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p is {self.top_p}; it must be above 0 and at most 1")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must be 0 or more")


def generators(sampling: Sampling, rows: int) -> list[np.random.Generator | None]:
    """One random stream per row, so that a row's text does not depend on how many rows stand beside it.

    None where nothing is drawn.
    """
    if sampling.temperature == 0:
        return [None] * rows
    return [np.random.default_rng([sampling.seed, row]) for row in range(rows)]


def pick(logits: np.ndarray, sampling: Sampling, rng: np.random.Generator | None) -> int:
    """The next id, from logits float [vocab]; greedy ties go to the lowest id."""
    if sampling.temperature == 0 or rng is None:
        return int(logits.argmax())
    return int(rng.choice(len(logits), p=probabilities(logits, sampling)))


def probabilities(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """float64 [vocab] summing to 1: temperature first, then top-k, then top-p (Holtzman et al. 2020)."""
    scaled = logits.astype(np.float64) / sampling.temperature
    # A stable sort keeps the lowest ids of a tie, so that exactly k tokens stay.
    order = np.argsort(-scaled, kind="stable")[: sampling.top_k or None]
    weights = np.exp(scaled[order] - scaled[order[0]])
    weights /= weights.sum()
    # A token stays while those above it hold less than top_p: the first always does.
    above = np.cumsum(weights) - weights
    weights[above >= sampling.top_p] = 0
    result = np.zeros(len(scaled))
    result[order] = weights / weights.sum()
    return result
