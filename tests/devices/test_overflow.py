"""More tokens than the context holds: an error, or by choice a new start without the oldest half."""

import numpy as np
import pytest

from devices.errors import UserError
from devices.generation import TextStream, newest
from devices.runtime import Decoder


def by_hand(decoder, prompt, count):
    """Greedy ids where what is too long loses the oldest half of the context, each scored as a whole."""
    ids, new = list(prompt), []
    for _ in range(count):
        while len(ids) > decoder.context:
            ids = ids[(decoder.context + 1) // 2 :]
        new.append(int(decoder.logits([ids])[0, -1].argmax()))
        ids.append(new[-1])
    return new


@pytest.mark.parametrize(
    ("length", "context", "left"),
    [(8, 8, 8), (9, 8, 5), (12, 8, 8), (13, 8, 5), (10, 9, 5), (100, 8, 8), (2, 1, 1), (5, 1, 1), (0, 4, 0)],
)
def test_halves_are_dropped_until_the_rest_fits(length, context, left):
    """What stays is the newest part; (context + 1) // 2 tokens go at a time, and never one more time."""
    assert newest(list(range(length)), context) == list(range(length - left, length))


@pytest.mark.parametrize("context", [1, 2, 7, 16])
@pytest.mark.parametrize("prompt", [1, 7, 16, 40])
def test_a_full_context_goes_on_as_by_hand(decoder_folder, context, prompt):
    """Greedy text over several restarts is that of dropping the oldest half by hand."""
    decoder = Decoder(decoder_folder, threads=1, context=context)
    decoder.special["eos"] = []
    ids = np.random.default_rng(prompt).integers(1, decoder.artifact.model["vocab"], prompt).tolist()
    found = decoder.generate(ids, 3 * context + 5, on_overflow="drop-oldest")
    assert found.ids == by_hand(decoder, ids, 3 * context + 5)
    assert found.finish_reason == "length"


def test_rows_of_a_batch_overflow_one_by_one(decoder_folder):
    """Rows of different length drop their oldest half when they themselves are full."""
    decoder = Decoder(decoder_folder, threads=1, context=12)
    decoder.special["eos"] = []
    rows = [np.random.default_rng(n).integers(1, 200, n).tolist() for n in (3, 30, 11)]
    found = decoder.generate_batch(rows, 40, on_overflow="drop-oldest")
    assert [one.ids for one in found] == [by_hand(decoder, row, 40) for row in rows]


def test_text_streams_over_a_restart(decoder_folder):
    """The text goes on without a seam: its pieces are the whole, and the whole is that of all ids."""
    decoder = Decoder(decoder_folder, threads=1, context=8)
    decoder.special["eos"] = []
    pieces = []
    found = decoder.generate("the cat", 30, on_text=pieces.append, on_overflow="drop-oldest")
    assert "".join(pieces) == found.text and len(found.ids) == 30
    whole = TextStream(decoder.tokenizer, decoder.encode("the cat"))
    for token in found.ids:
        whole.add(token)
    assert found.text == whole.finish()


def test_overflow_is_an_error_unless_asked(decoder_folder):
    """By default nothing is dropped; a way nobody knows is refused with those there are."""
    decoder = Decoder(decoder_folder, threads=1, context=8)
    with pytest.raises(UserError, match="do not fit the 8 positions"):
        decoder.generate([1] * 6, 3)
    with pytest.raises(UserError, match="did you mean drop-oldest"):
        decoder.generate([1], 3, on_overflow="drop-old")


def test_the_command_drops_the_oldest(decoder_folder, cli):
    """`--overflow drop-oldest` goes on past the model's positions."""
    done = cli("generate", decoder_folder, "the cat", "--max-new-tokens", 100, "--overflow", "drop-oldest")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the cat")
