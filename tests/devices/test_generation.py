"""Streamed text: whole characters only, and never any part of a stop string."""

import pytest

from devices.errors import UserError
from devices.generation import TextStream
from devices.runtime import Decoder
from devices.text import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(decoder_folder):
    """The tiny byte-level tokenizer."""
    return load_tokenizer(decoder_folder)


def bytes_of(tokenizer, text):
    """Ids that spell `text` byte by byte, so that characters are split over tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    spelled = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]
    return [tokenizer.token_to_id(character) for character in spelled]


def stream(tokenizer, ids, stop=()):
    """Pieces sent, the whole text, and how many ids were taken before it ended."""
    pieces = []
    found = TextStream(tokenizer, [], stop, pieces.append)
    taken = next((n for n, token in enumerate(ids, 1) if found.add(token)), len(ids))
    return pieces, found.finish(), taken


@pytest.mark.parametrize("text", ["日本語も", "🙂🙃", "ünïcödé", "plain"])
def test_half_a_character_is_never_sent(tokenizer, text):
    """Characters of several bytes, a byte a token, are sent whole."""
    pieces, whole, _ = stream(tokenizer, bytes_of(tokenizer, text))
    assert "".join(pieces) == whole == text
    assert not any("�" in piece for piece in pieces)


def test_a_character_that_never_ends_is_left_out(tokenizer):
    """A text cut within a character ends before it."""
    ids = bytes_of(tokenizer, "a🙂")[:-1]
    assert stream(tokenizer, ids)[:2] == (["a"], "a")


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one. two", [". "], "one"),
        ("one. two", ["two"], "one. "),
        ("one. two", ["two", "ne"], "o"),
        ("abababac", ["abac"], "abab"),
        ("abab", ["abac"], "abab"),
        ("日本語", ["本"], "日"),
        ("xyz", ["x"], ""),
    ],
)
def test_text_ends_before_a_stop_string(tokenizer, text, stop, expected):
    """What is sent never holds a stop string or the start of one that came."""
    pieces, whole, _ = stream(tokenizer, bytes_of(tokenizer, text), stop)
    assert "".join(pieces) == whole == expected


def test_the_start_of_a_stop_string_waits(tokenizer):
    """Text that may turn out to be a stop string is held back until it does not."""
    pieces = []
    found = TextStream(tokenizer, [], ["END"], pieces.append)
    sent = []
    for token in bytes_of(tokenizer, "xENyEN"):
        found.add(token)
        sent.append("".join(pieces))
    assert sent == ["x", "x", "x", "xENy", "xENy", "xENy"]
    assert found.finish() == "xENyEN"


def test_nothing_is_generated_past_a_stop_string(decoder_folder):
    """Generation stops with the token that completed the stop string, and says why."""
    decoder = Decoder(decoder_folder, threads=1)
    free = decoder.generate("the cat", 12)
    stop = free.text[3:5]
    found = decoder.generate("the cat", 12, stop=[stop])
    assert found.finish_reason == "stop"
    assert found.text == free.text[: free.text.index(stop)]
    assert len(found.ids) < len(free.ids)


def test_pieces_are_the_text(decoder_folder):
    """What was streamed, put together, is what is returned."""
    pieces = []
    found = Decoder(decoder_folder, threads=1).generate("the cat", 12, on_text=pieces.append)
    assert "".join(pieces) == found.text


def test_an_empty_prompt_starts_from_the_first_token(own_artifact):
    """An empty text is the model's first token; a model that names none says so."""
    decoder = Decoder(own_artifact, threads=1)
    assert decoder.encode("") == [0]
    decoder.special["bos"] = []
    with pytest.raises(UserError, match="the prompt is empty"):
        decoder.generate("", 4)
