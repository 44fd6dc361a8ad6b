"""Perplexity with fixed windows: the one definition that checkpoints and artifacts are both measured by."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from devices.errors import UserError

WINDOW = 512  # tokens; or the model's positions where it has fewer
ROWS = 64  # positions whose logits are widened at once, so that a large vocabulary stays small in memory


def default_window(positions: int) -> int:
    """Tokens per window when none is named: 512, or all the positions of a shorter model."""
    return min(WINDOW, positions)


def windows(ids: Any, window: int, blocks: int | None = None) -> np.ndarray:
    """Token ids [tokens] cut into int64 [n, window]: whole blocks side by side, the remainder dropped.

    At most the first `blocks` of them. UserError where the text is shorter than one block.
    """
    ids = np.asarray(ids, dtype=np.int64).ravel()
    if window < 2:
        raise UserError(f"a window of {window} tokens predicts nothing; choose --window 2 or more")
    count = len(ids) // window
    if count == 0:
        raise UserError(f"the text has {len(ids)} tokens, less than one window of {window}; lower --window")
    if blocks is not None:
        count = min(count, blocks)
    return ids[: count * window].reshape(count, window)


def perplexity(
    logits_fn: Callable[[np.ndarray], np.ndarray], ids: np.ndarray, batch: int = 1
) -> dict[str, float | int | None]:
    """exp of the mean negative log-likelihood of positions 1..window-1 of each block.

    `ids` int64 [n, window]; `logits_fn` maps int64 [b, window] to float [b, window, vocab], b <= `batch`.
    Returns value (null where it is not finite), tokens = n * (window - 1), window and blocks = n.
    """
    total = 0.0
    for start in range(0, len(ids), batch):
        block = ids[start : start + batch]
        total += nll(logits_fn(block), block)
    tokens = len(ids) * (ids.shape[1] - 1)
    mean = total / tokens
    value = math.exp(mean) if mean < 700 else math.inf
    return {
        "value": value if math.isfinite(value) else None,
        "tokens": tokens,
        "window": int(ids.shape[1]),
        "blocks": len(ids),
    }


def nll(logits: np.ndarray, ids: np.ndarray) -> float:
    """Summed negative log-likelihood (nats) of ids [b, w] at positions 1..w-1, given logits [b, w, vocab]."""
    total = 0.0
    for row, targets in zip(logits, ids[:, 1:], strict=True):
        for start in range(0, len(targets), ROWS):
            want = targets[start : start + ROWS]
            piece = np.asarray(row[start : start + len(want)], dtype=np.float64)
            top = piece.max(axis=-1)
            log_sum = top + np.log(np.exp(piece - top[:, None]).sum(axis=-1))
            total += float((log_sum - piece[np.arange(len(want)), want]).sum())
    return total
