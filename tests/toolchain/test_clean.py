"""`toolchain clean`, whole: against a slow reference, interrupted, resumed, and what it refuses."""

import json
import os
import random
import time
from pathlib import Path

import pytest

import toolchain.corpus.clean as cleaning
from devices.errors import UserError
from toolchain import corpus
from toolchain.corpus.clean import clean
from toolchain.corpus.clean.rules import LINE_RULES, SETS, key
from toolchain.corpus.load import load

pytest.importorskip("datatrove")

STOP = ("the", "of", "and", "that", "with", "to")
WORDS = (*STOP, "model", "reads", "line", "words", "keeps", "where", "nothing", "speaks", "against", "choice")

PROSE = """\
A harbour town wakes before its visitors do, and the first sounds are those of ropes against the masts.
Fishermen have been out since three; what they bring home is sorted on the quay by size and by price.
Behind them stands the old customs house, which nobody has needed for forty years, yet no one pulls down.
Children cross the square with bread under their arms because the bakery opens earlier than the school.
By noon the light is so hard that shops close their shutters and even the gulls look for some shade.
In the evening people return to the benches, talk about the weather, and wait for the ferry to turn."""


def sentence(rng):
    """A line that no rule on single lines drops."""
    return " ".join(rng.choices(WORDS, k=rng.randint(9, 14)))


def made(folder, seed=0, count=120):
    """A corpus of three files whose lines break every one of the paper's rules, some of them twice."""
    rng = random.Random(seed)
    seen = [sentence(rng) for _ in range(40)]
    texts = []
    for _ in range(count):
        lines = [
            rng.choice(
                [
                    sentence(rng),
                    rng.choice(seen),
                    "<p>a tag in some line of it",
                    "too short",
                    "a; b, c! d? e. f-",
                ]
            )
            for _ in range(rng.randint(1, 5))
        ]
        texts.append("\n".join(lines))
    folder.mkdir()
    third = count // 3
    (folder / "a.txt").write_text("\n\n".join(texts[:third]))
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts[third : 2 * third]))
    (folder / "c.md").write_text("\n\n".join(texts[2 * third :]))
    return folder, texts


def texts_of(folder):
    """The documents of a cleaned corpus, in order."""
    rows = [
        json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()
    ]
    assert all(set(row) == {"text"} for row in rows)
    return [row["text"] for row in rows]


@pytest.fixture
def small(monkeypatch):
    """Parts of some hundred bytes, so that a little text has many."""
    monkeypatch.setattr(corpus.documents, "PART", 1500)
    monkeypatch.setattr(cleaning, "LOOK", 0.02)


def reference(texts):
    """The paper's rules, slowly: (lines dropped by rule, the keys of the lines left, how often each was there)."""
    dropped, keys = dict.fromkeys(SETS["paper"], 0), {}
    for text in texts:
        for line in text.split("\n"):
            rule = next((name for name, drops in LINE_RULES.items() if drops(line)), None)
            if rule:
                dropped[rule] += 1
            else:
                dropped["duplicates"] += key(line) in keys
                keys[key(line)] = line
    return dropped, keys


@pytest.mark.parametrize("workers", [1, 2])
def test_the_papers_rules_are_the_reference(tmp_path, small, workers):
    """Every rule's lines are counted, one line of each key is left, the sums add up, and training reads it."""
    corpus, texts = made(tmp_path / "corpus")
    report = clean(str(corpus), tmp_path / "out", workers=workers)
    dropped, keys = reference(texts)
    assert {rule: found["lines"] for rule, found in report["dropped"].items()} == dropped
    assert all(dropped.values())
    left = [line for text in texts_of(tmp_path / "out") for line in text.split("\n")]
    assert sorted(map(key, left)) == sorted(keys)
    assert set(left) <= {line for text in texts for line in text.split("\n")}
    assert report["read"]["lines"] == sum(dropped.values()) + report["kept"]["lines"]
    whole = sum(found["documents"] for found in report["dropped"].values())
    assert report["read"]["documents"] == whole + report["kept"]["documents"] >= len(texts)
    for rule, found in report["dropped"].items():
        assert 1 <= len(found["examples"]) <= 3 and found["what"], rule
    assert report["dropped"]["html"]["examples"][0].startswith("<p>a tag")
    corpus = load(str(tmp_path / "out"))
    assert len(corpus.train) + len(corpus.heldout) == report["kept"]["documents"]
    assert json.loads((tmp_path / "out" / "clean.json").read_text()) == report
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".jsonl", ".json"}


def test_the_number_of_workers_changes_nothing(tmp_path, small):
    """The same documents in the same files."""
    corpus, _ = made(tmp_path / "corpus")
    for workers in (1, 3):
        clean(str(corpus), tmp_path / f"out{workers}", workers=workers)
    one, three = (sorted((tmp_path / f"out{workers}").glob("*.jsonl")) for workers in (1, 3))
    assert len(one) > 3
    assert [(f.name, f.read_text()) for f in one] == [(f.name, f.read_text()) for f in three]


def test_one_rule_alone(tmp_path):
    """Only what is asked for is dropped; what is left keeps its words and order."""
    corpus, texts = made(tmp_path / "corpus")
    clean(str(corpus), tmp_path / "out", rules="short")
    kept = ["\n".join(line for line in text.split("\n") if line != "too short") for text in texts]
    assert texts_of(tmp_path / "out") == [text for text in kept if text]


def test_near_duplicates_leave_one_of_each(tmp_path, small):
    """Of documents that differ in a word one is left, others stay as they are."""
    rng = random.Random(1)
    words = [f"{a}{b}" for a in ("ba", "ke", "lo", "mi", "nu", "so") for b in ("ta", "ri", "po", "ve", "la")]
    one, *others = (" ".join(rng.choices(words, k=80)) for _ in range(6))
    near = [one.replace(one.split()[40], "changed", 1), one + " more"]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join([one, *others, *near]))
    report = clean(str(corpus), tmp_path / "out", rules="near-duplicates", workers=2)
    left = texts_of(tmp_path / "out")
    assert len(left) == 6 and set(others) < set(left)
    assert len({one, *near} & set(left)) == 1
    assert report["dropped"]["near-duplicates"]["documents"] == 2


def test_quality_filters_say_why(tmp_path):
    """Gopher's and FineWeb's filters drop documents whole, with datatrove's reasons counted."""
    texts = [PROSE, "spam spam spam\n" * 40, "\n".join(PROSE.split("\n")[:2])]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    report = clean(str(corpus), tmp_path / "out", rules="repetition,gopher-quality,fineweb-quality")
    assert report["dropped"]["repetition"]["documents"] == 1
    assert report["dropped"]["gopher-quality"]["reasons"] == {"gopher_short_doc": 1}
    assert texts_of(tmp_path / "out") == [texts[0]]


def test_all_rules_together(tmp_path, small):
    """Every stage runs after every other, and documents, lines and characters are never counted twice."""
    corpus, _ = made(tmp_path / "corpus")
    report = clean(str(corpus), tmp_path / "out", rules="paper,repetition,near-duplicates", workers=2)
    dropped = sum(found["lines"] for found in report["dropped"].values())
    assert report["read"]["lines"] == dropped + report["kept"]["lines"]
    assert len(texts_of(tmp_path / "out")) == report["kept"]["documents"]


def completions(out):
    """When each task of a staged run was done, by its file."""
    files = (out.parent / f".{out.name}.staging").rglob("completions/*")
    return {file: file.stat().st_mtime_ns for file in files}


def started():
    """The processes that clean for this one, and those they started."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if b"toolchain.corpus.clean.run" in words and str(os.getpid()).encode() in words:
            found.append(file)
    return found


def test_an_interrupted_run_goes_on(tmp_path, small, monkeypatch):
    """Ctrl-C after the first tasks: nothing is published and nothing goes on; the same call does the rest only."""
    corpus, _ = made(tmp_path / "corpus")
    expected = clean(str(corpus), tmp_path / "whole")
    out, watch, sleep = tmp_path / "out", cleaning._watch, cleaning.time.sleep

    def press(seconds):
        sleep(seconds)
        if completions(out):
            raise KeyboardInterrupt

    monkeypatch.setattr(cleaning.time, "sleep", press)
    with pytest.raises(KeyboardInterrupt):
        clean(str(corpus), out)
    monkeypatch.setattr(cleaning.time, "sleep", sleep)
    end = time.monotonic() + 10
    while started() and time.monotonic() < end:
        sleep(0.05)
    assert not started()
    assert not out.exists()
    before, after, said = completions(out), {}, []
    assert before

    def noted(*arguments):
        watch(*arguments)
        after.update(completions(out))

    monkeypatch.setattr(cleaning, "_watch", noted)
    report = clean(str(corpus), out, say=said.append)
    assert "going on with the unfinished run found here" in said
    assert {file: after[file] for file in before} == before and len(after) > len(before)
    assert texts_of(out) == texts_of(tmp_path / "whole")
    assert {key: report[key] for key in ("read", "kept", "dropped")} == {
        key: expected[key] for key in ("read", "kept", "dropped")
    }
    assert not (tmp_path / ".out.staging").exists()


def test_what_is_done_is_only_published(tmp_path, monkeypatch):
    """Killed just before the folder is moved into place: the next call moves it and cleans nothing again."""
    corpus, _ = made(tmp_path / "corpus")

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("devices.files._publish", killed)
        with pytest.raises(KeyboardInterrupt):
            clean(str(corpus), tmp_path / "out")
    monkeypatch.setattr(cleaning, "_run", killed)
    assert clean(str(corpus), tmp_path / "out")["kept"]["documents"] == len(texts_of(tmp_path / "out"))


def test_another_request_does_not_throw_work_away(tmp_path, small, monkeypatch):
    """Other rules or other text for the same place: refused with what differs; --force starts anew."""
    corpus, _ = made(tmp_path / "corpus")

    def stopped(work, *arguments):
        (work / "stages" / "filtered" / "completions").mkdir(parents=True)
        (work / "stages" / "filtered" / "completions" / "00000").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cleaning, "_run", stopped)
        with pytest.raises(KeyboardInterrupt):
            clean(str(corpus), tmp_path / "out")
    with pytest.raises(UserError, match="unfinished run is kept for it, of another request \\(rules"):
        clean(str(corpus), tmp_path / "out", rules="html")
    (corpus / "a.txt").write_text("another text, of quite a few words\n")
    with pytest.raises(UserError, match="of another request \\(files"):
        clean(str(corpus), tmp_path / "out")
    assert list(clean(str(corpus), tmp_path / "out", rules="html", force=True)["dropped"]) == ["html"]


def broken(tmp_path, name, data):
    """A file of these bytes."""
    file = tmp_path / name
    file.write_bytes(data)
    return file


GOOD = b"a line of text that has more than a few words\n"


@pytest.mark.parametrize(
    ("corpus", "options", "words"),
    [
        (lambda t: t / "none.txt", [], "no such file or folder"),
        (lambda t: "stdlibb", [], "did you mean stdlib"),
        (lambda t: broken(t, "a.pdf", GOOD), [], "cannot read '.pdf' files"),
        (lambda t: broken(t, "a.txt", b""), [], "is empty"),
        (lambda t: broken(t, "a.txt", b" \n\n \n"), [], "nothing is left of it"),
        (lambda t: broken(t, "a.txt", b"short\n" * 9), [], "nothing is left of it"),
        (lambda t: broken(t, "a.txt", GOOD + "naïve".encode("latin-1")), [], "not UTF-8 at byte 48"),
        (lambda t: broken(t, "a.txt", (GOOD.decode() * 3).encode("utf-16")), [], "not UTF-8 at byte 0"),
        (lambda t: broken(t, "a.jsonl", GOOD), [], "no JSON object in the line at byte 0"),
        (lambda t: broken(t, "a.jsonl", b'{"content": "x"}'), [], "no string 'text'"),
        (lambda t: broken(t, "a.json", b' [{"text": "x"}]'), [], "is one JSON array"),
        (lambda t: broken(t, "a.parquet", GOOD), [], "cannot be read as parquet"),
        (lambda t: broken(t, "a.txt", GOOD), ["--rules", "papr"], "did you mean paper"),
        (lambda t: broken(t, "a.txt", GOOD), ["--rules", ","], "names none"),
        (lambda t: broken(t, "a.txt", GOOD), ["--workers", 0], "--workers"),
        (lambda t: broken(t, "a.txt", GOOD), ["--workers", "many"], "--workers"),
        (lambda t: t, [], "overlaps the corpus"),
    ],
)
def test_what_cannot_be_cleaned_is_one_line(tmp_path, main, corpus, options, words):
    """Exit 2, one line that says where, and no folder."""
    made_of = corpus(tmp_path)
    done = main("clean", made_of, "--out", tmp_path / "out", *options)
    assert done.code == 2 and words in done.err, done.err
    assert len([line for line in done.err.splitlines() if line.startswith("toolchain: ")]) == 1
    assert "Traceback" not in done.err and not done.out
    assert not (tmp_path / "out").exists()


def test_a_mended_text_is_cleaned_at_once(tmp_path):
    """A wrong encoding leaves nothing behind that would stand in the way of the same call on the mended file."""
    corpus = broken(tmp_path, "a.txt", GOOD + "naïve".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        clean(str(corpus), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]
    corpus.write_bytes(GOOD)
    assert clean(str(corpus), tmp_path / "out")["kept"]["lines"] == 1


def test_places_that_are_taken_are_left_alone(tmp_path, main):
    """An existing folder needs --force, and one that no command wrote is never replaced."""
    corpus, _ = made(tmp_path / "corpus")
    assert main("clean", corpus, "--out", tmp_path / "out", "--rules", "html").code == 0
    done = main("clean", corpus, "--out", tmp_path / "out", "--rules", "short")
    assert done.code == 2 and "already exists" in done.err
    done = main("clean", corpus, "--out", tmp_path / "out", "--rules", "short", "--force")
    assert done.code == 0 and "short" in done.out
    done = main("clean", corpus, "--out", corpus, "--force")
    assert done.code == 2 and "overlaps" in done.err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    done = main("clean", corpus, "--out", tmp_path / "mine", "--force")
    assert done.code == 2 and "no command here wrote" in done.err


def test_the_command_prints_a_table_or_json(tmp_path, main):
    """A row for what was read, each rule and what is left; or clean.json."""
    corpus, _ = made(tmp_path / "corpus")
    done = main("clean", corpus, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    heads = [line.split()[0] for line in done.out.splitlines() if not line.startswith(" ")]
    assert heads == ["read", *SETS["paper"], "kept", f"{tmp_path / 'out'}:"]
    assert "100.0 %" in done.out and "<p>a tag" in done.out
    done = main("clean", corpus, "--out", tmp_path / "out", "--force", "--json")
    assert json.loads(done.out)["request"]["rules"] == list(SETS["paper"])


def test_a_failure_of_the_process_is_one_line(tmp_path, monkeypatch):
    """What it said last is named with its log, and the work is kept."""
    corpus, _ = made(tmp_path / "corpus")
    monkeypatch.setattr(cleaning, "command", lambda *_: ["python3", "-c", "raise ValueError('of its own')"])
    with pytest.raises(UserError, match=r"ValueError: of its own\); see .*log, and give the same"):
        clean(str(corpus), tmp_path / "out")
    monkeypatch.setattr(cleaning, "command", lambda *_: ["bash", "-c", "kill -9 $$"])
    with pytest.raises(UserError, match="was killed by signal 9; out of memory"):
        clean(str(corpus), tmp_path / "out")
    monkeypatch.undo()
    assert clean(str(corpus), tmp_path / "out")["kept"]["documents"]


def test_the_default_corpus_is_its_train_part(tmp_path):
    """stdlib: nothing that is held out goes through it."""
    from devices.text import read_text
    from toolchain.corpus import calibration_file

    report = clean("stdlib", tmp_path / "out", rules="html")
    text = read_text(calibration_file("stdlib"))
    assert report["read"]["lines"] == sum(1 for line in text.splitlines() if line.strip())
