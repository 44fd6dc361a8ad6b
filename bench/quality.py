"""Perplexity, by windows side by side or sliding: the definitions that checkpoints and artifacts share."""

import itertools
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
        raise UserError(
            f"the text has {len(ids)} tokens, less than one window of {window}; lower --window, or name more text"
        )
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
    return {
        "value": finite_exp(total / tokens),
        "tokens": tokens,
        "window": int(ids.shape[1]),
        "blocks": len(ids),
    }


def sliding(ids: Any, window: int, stride: int, blocks: int | None = None) -> list[tuple[np.ndarray, int]]:
    """Windows of up to `window` tokens, `stride` apart, and from which position on each is scored.

    Hugging Face's definition ("Perplexity of fixed-length models", transformers' documentation): a window
    scores what no window before it held, so that every token but the text's first is scored once, from the
    second window on behind at least window - stride others. The last window ends with the text and may be
    shorter. With stride = window they lie side by side and, as there, each window's first token goes unscored.

    `ids` [tokens]; at most the first `blocks` windows. UserError for a window of less than 2, a text shorter
    than one, and a stride outside 1..window.
    """
    windows(ids, window)  # refuses
    ids = np.asarray(ids, dtype=np.int64).ravel()
    if not 1 <= stride <= window:
        raise UserError(
            f"--stride {stride}: windows of {window} tokens are at most so far apart; choose 1 to {window}"
        )
    found: list[tuple[np.ndarray, int]] = []
    end = 0
    for begin in range(0, len(ids), stride):
        first, end = max(end - begin, 1), min(begin + window, len(ids))
        if first < end - begin:
            found.append((ids[begin:end], first))
        if end == len(ids) or len(found) == blocks:
            break
    return found


def sliding_perplexity(
    logits_fn: Callable[[np.ndarray], np.ndarray], cut: list[tuple[np.ndarray, int]], batch: int = 1
) -> dict[str, float | int | None]:
    """exp of the mean negative log-likelihood of what the windows `cut` by `sliding` score.

    `logits_fn` as for `perplexity`; windows of one length that score alike go through it together, up to
    `batch`. Returns value (null where it is not finite), tokens (scored), window and blocks.
    """
    total, tokens = 0.0, 0
    for (_, first), group in itertools.groupby(cut, lambda found: (len(found[0]), found[1])):
        alike = [ids for ids, _ in group]
        for start in range(0, len(alike), batch):
            block = np.stack(alike[start : start + batch])
            total += nll(logits_fn(block), block, first)
            tokens += block[:, first:].size
    return {
        "value": finite_exp(total / tokens),
        "tokens": tokens,
        "window": max(len(ids) for ids, _ in cut),
        "blocks": len(cut),
    }


def finite_exp(mean: float) -> float | None:
    """exp(mean), or null where that is no finite number."""
    value = math.exp(mean) if mean < 700 else math.inf
    return value if math.isfinite(value) else None


def per_word(value: float | None, tokens: int, text: str) -> dict[str, float | int | None]:
    """What a perplexity of `value` a token means for `text`, which is `tokens` tokens long to this tokenizer.

    Models with different tokenizers compare by these. With the log-likelihood of all tokens, -tokens ln(value),
    word_perplexity is exp(-log-likelihood / words), words being what white space separates in the raw text,
    and bits_per_byte is -log-likelihood / (bytes ln 2), as EleutherAI's lm-evaluation-harness defines both.
    The few tokens that no window scores count as much as the mean of the others.
    """
    words, size = len(text.split()), len(text.encode())
    total = None if value is None else tokens * math.log(value)
    return {
        "word_perplexity": None if total is None or not words else finite_exp(total / words),
        "words": words,
        "bits_per_byte": None if total is None or not size else total / size / math.log(2),
        "bytes": size,
    }


def nll(logits: np.ndarray, ids: np.ndarray, first: int = 1) -> float:
    """Summed negative log-likelihood (nats) of ids [b, w] at positions `first`.., given logits [b, w, vocab]."""
    total = 0.0
    for row, targets in zip(logits[:, first - 1 :], ids[:, first:], strict=True):
        for start in range(0, len(targets), ROWS):
            want = targets[start : start + ROWS]
            piece = np.asarray(row[start : start + len(want)], dtype=np.float64)
            top = piece.max(axis=-1)
            log_sum = top + np.log(np.exp(piece - top[:, None]).sum(axis=-1))
            total += float((log_sum - piece[np.arange(len(want)), want]).sum())
    return total
