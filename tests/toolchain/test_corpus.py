"""Corpora by name and path: documents, held-out parts, packing, and what is refused."""

import json
from pathlib import Path

import pytest

from devices.errors import UserError
from toolchain.corpus import calibration_file, heldout_file, load, pack, stdlib


def test_stdlib_is_split_by_module() -> None:
    """About a tenth of two megabytes is held out, no module is on both sides, and topics are in it."""
    train, heldout = stdlib.split()
    size = sum(map(len, train)) + sum(map(len, heldout))
    assert 1_000_000 < size < 10_000_000
    assert 0.03 < sum(map(len, heldout)) / size < 0.2
    assert {doc.kind for doc in stdlib.documents()} == {"module", "class", "function", "topic"}


def test_no_heldout_sentence_stands_in_train() -> None:
    """The library repeats itself; what train holds is dropped from the held-out part, and some of it is."""
    train, heldout = stdlib.split()
    seen = {sentence for text in train for sentence in stdlib.sentences(text)}
    assert not [s for text in heldout for s in stdlib.sentences(text) if s in seen]
    held = [doc.text for doc in stdlib.documents() if stdlib.is_heldout(doc.module)]
    assert [s for text in held for s in stdlib.sentences(text) if s in seen]


def test_sentences_by_hand() -> None:
    """Ends at marks and blank lines, whitespace folded, nothing lost."""
    assert stdlib.sentences("One  two.\nThree\nfour!\n\nFive") == ["One two.", "Three four!", "Five"]


def test_heldout_text_keeps_its_layout() -> None:
    """Dropping a sentence leaves the others and their line breaks as they were."""
    assert (
        stdlib._without("Keep a\nb. Drop me. Keep c.\n\nKeep d", {"Drop me."})
        == "Keep a\nb. Keep c.\n\nKeep d"
    )


def test_same_text_same_hash_other_text_other_hash(corpus_file: Path, tmp_path: Path) -> None:
    """A corpus is named by its text, not by where it lies."""
    copy = tmp_path / "copy.txt"
    copy.write_bytes(corpus_file.read_bytes())
    assert load(str(copy)).sha256 == load(str(corpus_file)).sha256
    copy.write_bytes(corpus_file.read_bytes() + b"\n\nOne more paragraph.")
    assert load(str(copy)).sha256 != load(str(corpus_file)).sha256


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_formats_hold_the_same_documents(suffix: str, tmp_path: Path) -> None:
    """Text paragraphs, jsonl rows and parquet rows give the same documents on the same sides."""
    import pandas as pd

    texts = [f"Document number {i} says something." for i in range(100)]
    path = tmp_path / f"c{suffix}"
    if suffix == ".txt":
        path.write_text("\n\n".join(texts))
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"text": text, "n": 1}) for text in texts))
    else:
        pd.DataFrame({"text": texts}).to_parquet(path)
    corpus = load(str(path))
    assert sorted([*corpus.train["text"], *corpus.heldout["text"]]) == sorted(texts)
    assert 0 < len(corpus.heldout) < 20


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    """Files of a folder are read together, each by its kind; a held-out text of its own is kept apart."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("First one.\n\nSecond one.")
    (tmp_path / "y.jsonl").write_text('{"text": "Third one."}\n{"text": " "}\n')
    (tmp_path / "ignored.bin").write_bytes(b"\0")
    other = tmp_path / "held.md"
    other.write_text("Held out.")
    corpus = load(str(tmp_path / "a"), str(other))
    assert sorted(corpus.train["text"]) == ["First one.", "Second one."]
    assert list(corpus.heldout["text"]) == ["Held out."]
    assert len(load(str(tmp_path), str(other)).train) == 4


def test_pack_joins_with_end_marks_and_drops_the_remainder(gpt2_checkpoint: Path, tmp_path: Path) -> None:
    """Blocks side by side are the documents' ids with the end mark after each, to the last full block."""
    from tokenizers import Tokenizer

    path = tmp_path / "c.txt"
    texts = [f"Number {i} returns the list of items." for i in range(30)]
    path.write_text("\n\n".join(texts))
    corpus = load(str(path), str(path))
    blocks = pack(corpus.train, gpt2_checkpoint, 0, 16)
    coder = Tokenizer.from_file(str(gpt2_checkpoint / "tokenizer.json"))
    stream = [i for text in texts for i in [*coder.encode(text).ids, 0]]
    assert blocks.reshape(-1).tolist() == stream[: len(stream) // 16 * 16]


BAD = {
    "missing": (None, "no such file or folder"),
    "empty.txt": (b"", "is empty"),
    "blank.txt": (b"\n\n  \n\n", "holds no"),
    "latin.txt": ("café ".encode("latin-1") * 50, "UTF-8"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": ', "cannot be read as json"),
    "other.jsonl": (b'{"body": "a"}\n', "no column 'text'"),
    "numbers.jsonl": (b'{"text": 1}\n', "holds int64, not strings"),
    "lists.jsonl": (b'{"text": ["a"]}\n', "not strings"),
    "array.jsonl": (b"[1,2]\n", "holds int64, not strings in a column 'text'"),
    "fake.parquet": (b"not parquet at all", "cannot be read as parquet .(?!.*UTF-8)"),
    "stdlb": (None, "did you mean stdlib"),
    "Stdlib": (None, "did you mean stdlib"),
    "picture.png": (b"\x89PNG", "cannot read '.png' files"),
    "one.txt": (b"A single paragraph leaves nothing to hold out or nothing to train on.", "holds no"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_corpus_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be used is refused by name, with the cause, in one line; no library adds its own."""
    monkeypatch.chdir(tmp_path)
    content, cause = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=cause) as error:
        load(name)
    assert name in str(error.value)
    assert not caplog.records


@pytest.mark.parametrize("spec", ["hub:", "hub::config"])
def test_a_hub_corpus_without_a_name_is_one_line(spec: str) -> None:
    """What was forgotten is said."""
    with pytest.raises(UserError, match="names no data set; say hub:NAME"):
        load(spec)


@pytest.mark.parametrize("name", ["a[1].txt", "b*.txt", "c?.txt"])
def test_a_name_is_no_pattern(name: str, tmp_path: Path) -> None:
    """Characters that a shell would expand stand for themselves."""
    for other in ("a1.txt", "b2.txt", "c3.txt"):
        (tmp_path / other).write_text("Not this one.")
    (tmp_path / name).write_text("This one.")
    assert list(load(str(tmp_path / name), str(tmp_path / name)).train["text"]) == ["This one."]


def test_a_hub_corpus_that_cannot_be_built_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set whose files datasets cannot read is named, not traced."""
    from datasets.exceptions import DatasetGenerationError

    def fail(*_: object, **__: object) -> None:
        raise DatasetGenerationError("An error occurred")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(UserError, match=r"hub:a/b.*cannot be fetched"):
        load("hub:a/b")


def test_pack_names_a_missing_tokenizer(corpus_file: Path, tmp_path: Path) -> None:
    """A model without tokenizer.json is one line."""
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        pack(load(str(corpus_file)).train, tmp_path, 0, 16)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """A folder without text says which kinds of file it looked for."""
    with pytest.raises(UserError, match=r"no .*\.jsonl.* file in this folder"):
        load(str(tmp_path))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, a hub corpus that was never fetched is named, not traced."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"hub:nobody/nothing.*cannot be fetched"):
        load("hub:nobody/nothing")


def test_an_unreachable_hub_counts_no_retries_aloud(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the hub's client and datasets log on the way to the error stays unsaid, and is said again later."""
    from datasets.utils.logging import get_logger
    from huggingface_hub.utils import logging

    def unreachable(*_: object, **__: object) -> None:
        logging.get_logger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        get_logger("datasets.load").error("no connection")
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(UserError, match=r"hub:a/b.*cannot be fetched"):
        load("hub:a/b")
    assert not caplog.records
    logging.get_logger("huggingface_hub.utils._http").warning("said")
    assert caplog.messages == ["said"]


def test_shorter_than_a_block_is_refused(gpt2_checkpoint: Path, corpus_file: Path) -> None:
    """A window that the corpus cannot fill says how many tokens there are."""
    with pytest.raises(UserError, match="fill no block of 100000"):
        pack(load(str(corpus_file)).train, gpt2_checkpoint, 0, 100_000)


def test_a_python_without_topics_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's python3-minimal lacks pydoc_data: what to install is said."""
    import sys

    stdlib.documents.cache_clear()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UserError, match=r"lacks pydoc_data.*install"):
        stdlib.documents()
    stdlib.documents.cache_clear()


def test_heldout_file_is_the_heldout_part(tmp_path: Path) -> None:
    """`stdlib` names its held-out text, written once; a path names itself; nothing else is guessed."""
    path = heldout_file("stdlib", tmp_path)
    assert path.read_text(encoding="utf-8") == "\n\n".join(stdlib.split()[1])
    assert heldout_file("stdlib", tmp_path) == path
    assert heldout_file(str(path)) == path
    with pytest.raises(UserError, match="no such text file"):
        heldout_file(str(tmp_path / "nowhere.txt"))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_records_are_evaluated_as_they_are_trained_on(suffix: str, tmp_path: Path) -> None:
    """Perplexity on a jsonl or parquet file is on its records' text, not on the bytes around it."""
    import pandas as pd

    rows = pd.DataFrame({"text": ["First \u00e4 one.", " ", "Second\none."], "n": [1, 2, 3]})
    file = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        rows.to_parquet(file)
    else:
        rows.to_json(file, orient="records", lines=True)
    path = heldout_file(str(file), tmp_path / "cache")
    assert path.read_text(encoding="utf-8") == "First \u00e4 one.\n\nSecond\none."
    assert path.name.startswith(file.name)
    assert heldout_file(str(file), tmp_path / "cache") == path
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(UserError, match=r"blank\.jsonl.*holds no text"):
        heldout_file(str(tmp_path / "blank.jsonl"), tmp_path / "cache")


def test_the_heldout_file_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is read once for a Python; a text that was removed is made again."""
    path = heldout_file("stdlib", tmp_path)
    text = path.read_text()
    with monkeypatch.context() as patched:
        patched.setattr(stdlib, "split", lambda: pytest.fail("the library was read again"))
        assert heldout_file("stdlib", tmp_path) == path
    path.unlink()
    assert heldout_file("stdlib", tmp_path).read_text() == text


def test_calibration_file_is_the_train_part(tmp_path: Path) -> None:
    """What `stdlib` calibrates on is what nothing is measured on; a path names itself."""
    path = calibration_file("stdlib", tmp_path)
    assert path.read_text(encoding="utf-8") == "\n\n".join(stdlib.split()[0])
    assert path != heldout_file("stdlib", tmp_path) and calibration_file(str(path)) == path
    with pytest.raises(UserError, match="no such text file"):
        calibration_file(str(tmp_path / "nowhere.txt"))


def test_a_line_of_blanks_ends_a_paragraph(tmp_path: Path) -> None:
    """WikiText's empty lines hold a space: its file is as many documents as it has paragraphs, not one."""
    file = tmp_path / "wiki.txt"
    file.write_text(
        " \n = Title {0} = \n \n First of {0} . \n second line \n\t\nLast\n".replace("{0}", "x") * 60, "utf-8"
    )
    found = load(str(file), str(file))
    assert len(found.train) == 180 and found.train["text"][1] == " First of x . \n second line"
    file.write_text("Another\n\ntext", "utf-8")
    assert load(str(file), str(file)).train["text"] == ["Another", "text"]
