"""Perplexity: one definition, whole windows only, the same whatever the batch."""

import math

import numpy as np
import pytest

from bench.quality import default_window, nll, perplexity, windows
from devices.errors import UserError


def uniform(ids, vocab=50):
    """Logits of a model that knows nothing."""
    return np.zeros((*ids.shape, vocab), dtype=np.float32)


def random_logits(ids, vocab=50):
    """Logits that depend on each position's id alone."""
    table = np.random.default_rng(0).standard_normal((vocab, vocab)).astype(np.float32) * 3
    return table[ids]


def test_knowing_nothing_is_the_vocabularys_size():
    """Uniform logits have the vocabulary's size as perplexity."""
    ids = windows(np.arange(40) % 50, 8)
    assert perplexity(uniform, ids)["value"] == pytest.approx(50)


def test_knowing_everything_is_one():
    """A model that is sure of what comes has perplexity 1."""
    ids = windows(np.arange(40), 8)

    def sure(block):
        return np.eye(50, dtype=np.float32)[np.minimum(block + 1, 49)] * 100

    assert perplexity(sure, ids)["value"] == pytest.approx(1)


def test_it_is_the_formula():
    """exp of the mean of -log softmax at positions 1..w-1 of each block, term by term."""
    ids = windows(np.random.default_rng(1).integers(0, 50, 200), 24)
    terms = []
    for block in ids:
        for at in range(1, 24):
            row = random_logits(block)[at - 1].astype(np.float64)
            terms.append(-math.log(math.exp(row[block[at]]) / np.exp(row).sum()))
    found = perplexity(random_logits, ids, batch=3)
    assert found == {
        "value": pytest.approx(math.exp(np.mean(terms))),
        "tokens": len(terms),
        "window": 24,
        "blocks": 8,
    }


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_the_batch_does_not_matter(batch):
    """Any number of windows at once gives the same value."""
    ids = windows(np.random.default_rng(2).integers(0, 50, 300), 100)
    assert perplexity(random_logits, ids, batch) == pytest.approx(perplexity(random_logits, ids))


def test_windows_longer_than_a_piece_are_whole():
    """The pieces in which logits are widened leave no position out."""
    ids = windows(np.random.default_rng(3).integers(0, 50, 130), 130)
    logits = random_logits(ids)
    shifted = logits[0, :-1].astype(np.float64)
    expected = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(129), ids[0, 1:]]
    assert nll(logits, ids) == pytest.approx(expected.sum())


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_hopeless_models_do_not_crash(scale):
    """What is not finite as a number is null, never Infinity in a JSON."""
    ids = windows(np.arange(40) % 50, 8)
    assert perplexity(lambda block: -np.eye(50)[np.minimum(block + 1, 49)] * scale, ids)["value"] is None


@pytest.mark.parametrize(
    ("tokens", "window", "blocks", "shape"),
    [
        (10, 3, None, (3, 3)),
        (9, 3, None, (3, 3)),
        (10, 3, 2, (2, 3)),
        (10, 3, 99, (3, 3)),
        (10, 10, None, (1, 10)),
    ],
)
def test_windows_lie_side_by_side(tokens, window, blocks, shape):
    """Whole blocks in order, the remainder dropped, at most as many as asked."""
    found = windows(range(tokens), window, blocks)
    assert found.shape == shape and found.dtype == np.int64
    assert found.ravel().tolist() == list(range(shape[0] * shape[1]))


@pytest.mark.parametrize(("tokens", "window"), [(0, 2), (1, 2), (9, 10), (10, 1), (10, 0), (10, -3)])
def test_texts_and_windows_too_short_are_one_line(tokens, window):
    """A text below one window, and a window that predicts nothing, are told."""
    with pytest.raises(UserError, match="window"):
        windows(range(tokens), window)


def test_the_default_window_fits_the_model():
    """512 tokens, or all a shorter model has."""
    assert (default_window(1024), default_window(64)) == (512, 64)
