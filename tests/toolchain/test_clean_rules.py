"""What cleaning drops, line by line, and how a corpus is cut into parts."""

import json

import pytest

from devices.errors import UserError
from toolchain import corpus
from toolchain.corpus.clean.rules import LINE_RULES, RULES, SETS, html, key, parse, short, symbols
from toolchain.corpus.documents import documents, parts


@pytest.mark.parametrize(
    ("line", "dropped"),
    [
        ("a <b>bold</b> claim", True),
        ("closed </p>", True),
        ("broken<br/>", True),
        ('<a href="x">', True),
        ("<!-- remark", True),
        ("bread &amp; butter", True),
        ("a space&nbsp;held", True),
        ("by number &#8211; too", True),
        ("3 < 4 and 5 > 4", False),
        ("x<y", False),
        ("AT&T and R&D; both", False),
        ("bread & butter", False),
        ("<3", False),
        ("", False),
    ],
)
def test_html(line, dropped):
    """Tags, comments and entities; a comparison or an ampersand alone is text."""
    assert html(line) == dropped


@pytest.mark.parametrize(
    ("line", "dropped"),
    [
        ("one two three four", True),
        ("one two three four five", False),
        ("", True),
        ("  a  b  c  d  e ", False),
    ],
)
def test_short(line, dropped):
    """Fewer than five words."""
    assert short(line) == dropped


@pytest.mark.parametrize(
    ("line", "dropped"),
    [
        ("abcdefghi.", False),
        ("abcdefgh..", True),
        ("a word, another; a third.", True),
        ("a word and another and a third, the last.", False),
        ("naïve café über straße 東京", False),
        ("12 34 56 78 90", False),
        ("___________", True),
        ("snake_case_is_three words in one here", False),
        ("-----", True),
        ("", False),
    ],
)
def test_symbols(line, dropped):
    """More than a tenth of all characters, spaces counted as characters; letters and digits of any script pass."""
    assert symbols(line) == dropped


def test_the_key_is_the_papers():
    """Length without punctuation, the first four words, the last four."""
    line = "One, two three four five six; seven eight!"
    assert key(line) == "39 One two three four five six seven eight"
    same = "it was the best of times", "it was, the best of times."
    assert key(same[0]) == key(same[1])
    middles = "a b c d {} e f g h"
    assert key(middles.format("one")) == key(middles.format("two"))
    assert key(middles.format("one")) != key(middles.format("three"))
    assert key("a b c d x e f g h") != key("z b c d x e f g h")


def test_rules_come_in_their_own_order_and_once():
    """However they are named: sets and rules mix."""
    assert parse("paper") == ("html", "short", "symbols", "duplicates")
    assert parse(" duplicates, html ,html,paper") == SETS["paper"]
    assert parse("near-duplicates,paper") == (*SETS["paper"], "near-duplicates")
    assert set(parse("paper,fineweb")) == set(RULES)
    assert all(rule in RULES for rules in SETS.values() for rule in rules)
    assert set(LINE_RULES) < set(RULES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("papr", "did you mean paper"),
        ("HTML", "unknown rule 'HTML'"),
        ("paper,duplicate", "did you mean duplicates"),
        ("near-dupes", "did you mean near-duplicates"),
        ("gopher", "did you mean gopher-quality"),
        ("fine-web", "did you mean fineweb"),
        ("zzz", "known: paper, fineweb, html"),
        ("", "names none"),
        (",", "names none"),
        (" , ", "names none"),
        ("paper;html", "unknown rule"),
        ("short lines", "did you mean"),
    ],
)
def test_unknown_rules_suggest_near_ones(text, words):
    """One line, with what was meant."""
    with pytest.raises(UserError, match=words) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


PARAGRAPHS = ["one line", "two\nlines, mit Ümläuten", "東京 " * 9, "x" * 50, "last"]


@pytest.mark.parametrize("size", [1, 2, 7, 16, 64, 10**6])
@pytest.mark.parametrize("end", ["", "\n", "\n\n\n"])
def test_text_loses_no_line_to_a_cut(tmp_path, monkeypatch, size, end):
    """Every line is in one part, whole, wherever parts begin; paragraphs too, where there is one part."""
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(PARAGRAPHS) + end, encoding="utf-8")
    monkeypatch.setattr(corpus.documents, "PART", size)
    monkeypatch.setattr(corpus.documents, "PARTS", 10**9)
    found = [text for part in parts([file]) for text in documents(part)]
    assert "\n".join(found).split("\n") == [line.rstrip() for text in PARAGRAPHS for line in text.split("\n")]
    if size == 10**6:
        assert found == [text.rstrip() for text in PARAGRAPHS]


@pytest.mark.parametrize("size", [1, 5, 40, 10**6])
def test_records_are_whole_in_every_part(tmp_path, monkeypatch, size):
    """A jsonl file's texts, in order, blank lines and texts of nothing between them."""
    file = tmp_path / "rows.jsonl"
    rows = [json.dumps({"text": text, "n": 1}, ensure_ascii=bool(i % 2)) for i, text in enumerate(PARAGRAPHS)]
    file.write_text("\n\n".join(rows) + '\n{"text": null}\n{"text": ""}', encoding="utf-8")
    monkeypatch.setattr(corpus.documents, "PART", size)
    monkeypatch.setattr(corpus.documents, "PARTS", 10**9)
    found = [text for part in parts([file]) for text in documents(part)]
    assert [text for text in found if text] == PARAGRAPHS


def test_parquet_is_read_by_row_groups(tmp_path):
    """A part a row group; other columns are not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": PARAGRAPHS, "other": range(5)}), file, row_group_size=2)
    cut = parts([file])
    assert [list(documents(part)) for part in cut] == [PARAGRAPHS[:2], PARAGRAPHS[2:4], PARAGRAPHS[4:]]


def test_parts_are_few_and_marks_are_no_text(tmp_path, monkeypatch):
    """A large corpus has larger parts, not more; a byte-order mark and carriage returns are not passed on."""
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")
    assert [text.splitlines() for text in documents(parts([file])[0])] == [["one", "two"], ["three"]]
    monkeypatch.setattr(corpus.documents, "PART", 1)
    monkeypatch.setattr(corpus.documents, "PARTS", 4)
    assert 4 <= len(parts([file])) <= 5


def test_a_text_without_blank_lines_is_cut(tmp_path, monkeypatch):
    """Documents stay small: at most so many lines."""
    monkeypatch.setattr(corpus.documents, "LINES", 3)
    file = tmp_path / "text.txt"
    file.write_text("\n".join("abcdefg"))
    assert [text.split() for text in documents(parts([file])[0])] == [list("abc"), list("def"), ["g"]]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", "fine\nnaïve".encode("latin-1"), "not UTF-8 at byte 7"),
        ("a.txt", "text".encode("utf-16"), "not UTF-8 at byte 0"),
        ("a.md", b"\x80", "not UTF-8 at byte 0"),
        ("a.jsonl", '{"text": "naïve"}'.encode("latin-1"), "not UTF-8 at byte 12"),
        ("a.jsonl", b"no json", "no JSON object in the line at byte 0"),
        ("a.jsonl", b'{"text": "a"}\n["b"]', "no JSON object in the line at byte 14"),
        ("a.jsonl", b'"text"', "no JSON object"),
        ("a.jsonl", b'{"text": "cut', "no JSON object"),
        ("a.jsonl", b'{"content": "a"}', "no string 'text' \\(has content\\)"),
        ("a.jsonl", b"{}", "has nothing"),
        ("a.jsonl", b'{"text": 3}', "holds int"),
        ("a.jsonl", b'{"text": ["a"]}', "holds list"),
    ],
)
def test_what_is_no_text_is_one_line(tmp_path, name, data, words):
    """Wrong encodings with the byte, broken records with theirs."""
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        [list(documents(part)) for part in parts([file])]
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_parquet_without_text_is_one_line(tmp_path):
    """Not parquet, no column, or no strings in it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, (table, words) in enumerate(
        [
            (pa.table({"content": ["a"]}), "no column 'text' \\(has content\\)"),
            (pa.table({"text": [1]}), "holds int"),
        ]
    ):
        pq.write_table(table, tmp_path / f"{number}.parquet")
        with pytest.raises(UserError, match=words):
            [list(documents(part)) for part in parts([tmp_path / f"{number}.parquet"])]
    (tmp_path / "no.parquet").write_text("text")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        parts([tmp_path / "no.parquet"])


def test_without_datatrove_it_is_said_before_anything_is_read(tmp_path, main, monkeypatch):
    """One line with what to install; nothing is staged."""
    import toolchain.corpus.clean as cleaning

    monkeypatch.setattr(cleaning, "find_spec", lambda name: None)
    (tmp_path / "a.txt").write_text("text")
    done = main("clean", tmp_path / "a.txt", "--out", tmp_path / "out")
    assert done.code == 2 and "this needs datatrove, which is not installed" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
