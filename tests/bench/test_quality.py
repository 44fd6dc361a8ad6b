"""Perplexity: one definition, whole windows only, the same whatever the batch."""

import math

import numpy as np
import pytest

from bench.quality import default_window, nll, per_word, perplexity, sliding, sliding_perplexity, windows
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


def hugging_face(logits_fn, ids, window, stride):
    """Their loop, token by token in float64: (exp of the mean, [(scored token, tokens before it)])."""
    terms, scored, previous = [], [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        wanted = end - previous
        logits = logits_fn(ids[None, begin:end])[0].astype(np.float64)
        for at in range(1, end - begin):
            if at >= end - begin - wanted:
                row = logits[at - 1]
                terms.append(math.log(np.exp(row - row.max()).sum()) + row.max() - row[ids[begin + at]])
                scored.append((begin + at, at))
        previous = end
        if end == len(ids):
            break
    return math.exp(np.mean(terms)), scored


def counting_logits(block, vocab=50):
    """Logits that depend on every id so far, so that a lost or added token of context shows."""
    table = np.random.default_rng(0).standard_normal((vocab, vocab)).astype(np.float32) * 3
    seen = np.cumsum(block, axis=-1) % vocab
    return table[seen] + table[block] / 2


@pytest.mark.parametrize(
    ("tokens", "window", "stride"),
    [
        (100, 16, 4),
        (100, 16, 1),
        (101, 16, 15),
        (97, 16, 16),
        (64, 16, 16),
        (16, 16, 3),
        (17, 16, 8),
        (9, 2, 1),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_sliding_is_hugging_faces_loop(tokens, window, stride, batch):
    """The same tokens behind the same context as transformers' documentation computes it, in any batch."""
    ids = np.random.default_rng(tokens).integers(0, 50, tokens)
    value, scored = hugging_face(counting_logits, ids, window, stride)
    cut = sliding(ids, window, stride)
    found = sliding_perplexity(counting_logits, cut, batch)
    assert found == {
        "value": pytest.approx(value),
        "tokens": len(scored),
        "window": window,
        "blocks": len(cut),
    }
    if stride < window:
        assert [token for token, _ in scored] == list(range(1, tokens))
        assert all(before >= window - stride for _, before in scored[window - 1 :])


def test_windows_a_window_apart_lie_side_by_side():
    """Stride = window is the other definition, on a text of whole windows."""
    ids = np.random.default_rng(4).integers(0, 50, 96)
    assert sliding_perplexity(counting_logits, sliding(ids, 12, 12)) == perplexity(
        counting_logits, windows(ids, 12)
    )


@pytest.mark.parametrize(("blocks", "count"), [(1, 1), (3, 3), (99, 22)])
def test_the_first_windows_alone(blocks, count):
    """`blocks` windows at most, the first ones."""
    ids = np.random.default_rng(5).integers(0, 50, 100)
    cut = sliding(ids, 16, 4, blocks)
    assert len(cut) == count
    assert all((ours == whole).all() for (ours, _), (whole, _) in zip(cut, sliding(ids, 16, 4), strict=False))


@pytest.mark.parametrize(
    ("tokens", "window", "stride"), [(40, 8, 0), (40, 8, -1), (40, 8, 9), (7, 8, 4), (40, 1, 1), (0, 8, 4)]
)
def test_strides_that_leave_tokens_out_are_one_line(tokens, window, stride):
    """A stride of nothing or beyond the window, and what `windows` refuses."""
    with pytest.raises(UserError, match="window"):
        sliding(range(tokens), window, stride)


def test_a_hopeless_models_sliding_value_is_null():
    """Not finite is null here too, and with it what follows from it."""
    found = sliding_perplexity(lambda b: -np.eye(50)[np.minimum(b + 1, 49)] * 1e5, sliding(range(40), 8, 4))
    assert found["value"] is None
    assert per_word(None, 10, "a b") == {
        "word_perplexity": None,
        "words": 2,
        "bits_per_byte": None,
        "bytes": 3,
    }


def test_words_and_bytes_by_hand():
    """Six tokens of perplexity 4 are 12 bits: 4 bits for each of three words, 12/16 for each byte."""
    found = per_word(4.0, 6, " one\ttwo\n dr\u00efe ")
    assert found == {
        "word_perplexity": pytest.approx(16.0),
        "words": 3,
        "bits_per_byte": pytest.approx(12 / 16),
        "bytes": 16,
    }
    assert per_word(1e300, 1000, "word")["word_perplexity"] is None


def test_tokenizers_compare_by_words():
    """One text, one likelihood, cut into more or fewer tokens: the same figure a word and a byte."""
    text, bits = "the same text whichever way it is cut", 96.0
    one, other = (per_word(2 ** (bits / tokens), tokens, text) for tokens in (8, 32))
    assert one == pytest.approx(other)
