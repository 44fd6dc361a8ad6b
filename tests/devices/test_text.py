"""Texts become ids by one rule, shared by training and the runtime."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from devices.errors import UserError
from devices.text import encode_row, encode_text, load_tokenizer, read_text, special_ids

SEPARATOR = 1


@pytest.fixture(scope="module")
def tokenizer():
    """Words w0 .. w19 are ids 10 .. 29; a text starts with <s> (2)."""
    vocab = {"<unk>": 0, "</s>": 1, "<s>": 2, **{f"w{n}": 10 + n for n in range(20)}}
    found = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return found


def words(count, start=0):
    """A text of `count` known words."""
    return " ".join(f"w{n}" for n in range(start, start + count))


@pytest.mark.parametrize(
    ("a", "b", "limit", "expected"),
    [
        (2, None, 9, [2, 10, 11]),
        (5, None, 4, [2, 10, 11, 12]),
        (0, None, 4, [2]),
        (2, 2, 9, [2, 10, 11, 1, 20, 21]),
        (8, 2, 7, [2, 10, 11, 12, 1, 20, 21]),  # the long first side is cut, the short second stays whole
        (1, 9, 7, [2, 10, 1, 20, 21, 22, 23]),  # and the other way round
        (9, 9, 6, [2, 10, 11, 1, 20, 21]),  # at a tie the second side loses first
        (9, 9, 1, [1]),
        (9, 9, 2, [2]),  # the separator pads too: no row ends in it
        (3, 0, 9, [2, 10, 11, 12]),
    ],
)
def test_rows_and_their_truncation(tokenizer, a, b, limit, expected):
    """A row is text_a, the separator, text_b; the longer side is cut down to the limit."""
    second = None if b is None else words(b, 10)
    found = encode_row(tokenizer, words(a), second, limit, SEPARATOR)
    assert found == expected
    assert len(found) <= limit


def test_a_row_is_never_empty():
    """A text without tokens becomes the separator, so that there is a last real token to read."""
    bare = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    assert encode_row(bare, "", None, 8, SEPARATOR) == [SEPARATOR]
    assert encode_row(bare, "", "", 8, SEPARATOR) == [SEPARATOR]


def test_a_corpus_gets_no_special_tokens(tokenizer):
    """Running text is encoded bare."""
    assert encode_text(tokenizer, words(3)) == [10, 11, 12]


def test_truncation_and_padding_of_the_file_are_undone(tokenizer, tmp_path):
    """A tokenizer.json that was saved while truncating and padding does neither here."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.enable_truncation(2)
    copy.enable_padding(length=8)
    copy.save(str(tmp_path / "tokenizer.json"))
    assert encode_text(load_tokenizer(tmp_path), words(5)) == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"version": "1.0", "model": 3}'])
def test_a_broken_tokenizer_is_one_line(tmp_path, content):
    """A tokenizer.json that is none is a UserError naming it."""
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path)


def test_texts_are_read_as_they_are(tmp_path):
    """Newlines of any kind stay, a byte order mark goes."""
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree")
    assert read_text(tmp_path / "t.txt") == "one\r\ntwo\rthree"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"caf\xe9"])
def test_texts_that_cannot_be_used_are_one_line(tmp_path, content):
    """No file, no text and another encoding are each told."""
    if content is not None:
        (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"t\.txt: "):
        read_text(tmp_path / "t.txt")


def test_special_ids_of_a_folder_without_any(tmp_path):
    """A model that names no end token has none."""
    assert special_ids(tmp_path) == {"eos": [], "bos": [], "pad": []}
