"""Rows of a batch are strangers to each other: neighbours, padding and their number change no logits."""

from dataclasses import replace

import numpy as np
import pytest

from devices.runtime import Classifier, Decoder
from export.quality import spread
from export.recipes import RECIPES

# Large enough for whole blocks. Rows of a quantized graph are equal to the last bit or apart by quantization's
# own error: a difference of float noise flips the rounding of an activation, and the layers after it multiply
# that. For 8 bits, the kernel for an odd row keeps the order of sums in blocks of up to 64 only.
SIZES = {
    "gpt2": {"n_embd": 128, "n_layer": 4, "n_head": 4},
    "llama": {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 4},
}
CLAIMING = {
    "fp32": RECIPES["fp32"],
    "int8": replace(RECIPES["int8"], block=64, head_block=64),
    "int4": RECIPES["int4"],
}
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 400, n) for n in (40, 17, 1, 5, 33)]
MORE = RNG.integers(0, 400, (5, 8))
NOISE = 1e-4


@pytest.fixture(scope="module", params=[(f, r) for f in SIZES for r in CLAIMING], ids="-".join)
def decoder(request, make_checkpoint, write_artifact):
    """A decoder of each family in each recipe that claims independent rows."""
    family, recipe = request.param
    checkpoint = make_checkpoint(family, **SIZES[family])
    return Decoder(write_artifact(checkpoint, CLAIMING[recipe]), threads=1)


@pytest.fixture(scope="module", params=[(f, r) for f in SIZES for r in CLAIMING], ids="-".join)
def classifier(request, make_classifier, write_artifact):
    """A classifier of each family in each recipe that claims independent rows."""
    family, recipe = request.param
    checkpoint = make_classifier(family, **SIZES[family])
    return Classifier(write_artifact(checkpoint, CLAIMING[recipe]), threads=1)


def generated(decoder, rows, columns):
    """Logits [rows, 1 + steps, vocab] of prompts and the steps that follow."""
    return np.stack([decoder.prefill(rows), *(decoder.step(column) for column in columns.T)], 1)


def test_neighbours_change_nothing_in_generation(decoder):
    """A row has the same logits alone, beside four others and beside two, all at once, as prompt and in steps."""
    rows = RNG.integers(0, 400, (5, 24))
    for count in (5, 3, 2):
        ids = rows[:count]
        whole = np.concatenate([decoder.logits(row[None]) for row in ids])
        np.testing.assert_allclose(decoder.logits(ids), whole, atol=NOISE, rtol=0)
        alone = [generated(decoder, row[None, :16], row[None, 16:]) for row in ids]
        together = generated(decoder, ids[:, :16], ids[:, 16:])
        np.testing.assert_allclose(together, np.concatenate(alone), atol=NOISE, rtol=0)


def test_right_padding_is_no_padding_in_generation(decoder):
    """Prompts of several lengths in one batch have the logits, and the greedy text, that each has alone."""
    together = generated(decoder, PROMPTS, MORE)
    alone = [generated(decoder, [row], more[None]) for row, more in zip(PROMPTS, MORE, strict=True)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=NOISE, rtol=0)
    batch = decoder.generate_batch([row.tolist() for row in PROMPTS], max_new_tokens=12)
    for row, found in zip(PROMPTS, batch, strict=True):
        assert found.ids == decoder.generate(row.tolist(), max_new_tokens=12).ids


def test_right_padding_and_neighbours_change_nothing_in_classification(classifier):
    """Rows of several lengths, padded to the longest, have the logits that each has alone, in any batch."""
    rows = [row.tolist() for row in PROMPTS]
    alone = np.concatenate([classifier.logits([row]) for row in rows])
    np.testing.assert_allclose(classifier.logits(rows), alone, atol=NOISE, rtol=0)
    for batch in (2, 3):
        np.testing.assert_allclose(classifier.predict_ids(rows, batch), alone, atol=NOISE, rtol=0)
    assert np.ptp(alone) > 0.1  # or nothing would show


def test_the_spread_says_so(decoder):
    """The figure for the manifest is 0, or float noise, where rows are independent."""
    found = spread(decoder.artifact, RNG.integers(0, 400, (3, 32)), NOISE)
    assert found["independent"] and found["argmax_agreement"] == 1.0 and found["rows"] == 3
