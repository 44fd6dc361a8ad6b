"""Two labelled tasks from the documentation that ships with CPython: there on any machine, offline.

They have GLUE's form and are not GLUE. `docs-kind`: does this documentation stand in a class or in a
function (the syntax tree knows). `docs-order`: were two neighbouring words of this sentence swapped.
Dev rows come only from the modules that the corpus `stdlib` holds out, so that a language model trained
on it has not read them, and no dev text stands in train as well.
"""

import hashlib
import random
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

from devices.errors import UserError
from devices.files import cache_folder, make_cache, staged
from toolchain import __version__

TRAIN_ROWS, DEV_ROWS = 2000, 1000  # at most; the standard library holds fewer dev rows of docs-kind
KIND_WORDS = (3, 40)  # fewest and most words of a row of docs-kind
ORDER_WORDS = (6, 25)
WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")

TASK_TOML = """\
name = "{name}"
description = "{description}"
problem = "classification"
metric = "accuracy"
labels = ["{labels[0]}", "{labels[1]}"]

[columns]
text_a = "text"
label = "label"
"""

Example = tuple[str, str]  # text, label
# dev is drawn before train, so that it stays the same however many train rows are asked for.
Split = dict[str, list[Example]]


def make_tasks(
    out: Path, *, train_rows: int = TRAIN_ROWS, dev_rows: int = DEV_ROWS, seed: int = 0, force: bool = False
) -> list[Path]:
    """Write the tasks as folders `out`/NAME with task.toml, train.tsv and dev.tsv; returns those folders.

    At most `train_rows` and `dev_rows` rows each, balanced, as many as the standard library gives; the
    same Python, rows and seed give the same bytes. UserError where `out` exists or a count is below 2.
    """
    if min(train_rows, dev_rows) < 2:
        raise UserError(f"docs tasks: {train_rows} train and {dev_rows} dev rows; each needs at least 2")
    with staged(out, force=force) as staging:
        for name, (description, labels, examples) in TASKS.items():
            folder = staging / name
            folder.mkdir(parents=True)
            split = examples(random.Random(f"{name} {seed}"), train_rows, dev_rows)
            for part, rows in split.items():
                _write_tsv(folder / f"{part}.tsv", rows)
            text = TASK_TOML.format(name=name, description=description, labels=labels)
            (folder / "task.toml").write_text(text, encoding="utf-8")
    return [out / name for name in TASKS]


def made() -> Path:
    """The folder with both tasks, made on first use in the user's cache and found there afterwards."""
    key = f"{sys.version} {sysconfig.get_paths()['stdlib']} {__version__} {TRAIN_ROWS} {DEV_ROWS}"
    out = cache_folder("tasks") / f"docs-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not out.exists():
        make_cache(out.parent)
        make_tasks(out)
    return out


def kind_examples(rng: random.Random, train_rows: int, dev_rows: int) -> Split:
    """The first sentences of class and function docstrings; a text that both have is left out."""
    from toolchain.corpus import stdlib

    kinds: dict[str, set[str]] = {}
    sides: dict[str, set[bool]] = {}
    for doc in stdlib.documents():
        text = opening(stdlib.sentences(doc.text))
        if doc.kind in ("class", "function") and text and text.isprintable():
            kinds.setdefault(text, set()).add(doc.kind)
            sides.setdefault(text, set()).add(stdlib.is_heldout(doc.module))
    clear = {text: next(iter(found)) for text, found in kinds.items() if len(found) == 1}

    def balanced(heldout: bool, rows: int) -> list[Example]:
        pools = [
            [text for text, kind in clear.items() if kind == want and sides[text] == {heldout}]
            for want in ("class", "function")
        ]
        each = min(rows // 2, *map(len, pools))
        picked = [(text, clear[text]) for pool in pools for text in rng.sample(pool, each)]
        rng.shuffle(picked)
        return picked

    return {"dev": balanced(True, dev_rows), "train": balanced(False, train_rows)}


def opening(sentences: Iterable[str]) -> str:
    """The first sentences that fit into 40 words, or the first 40 words; empty where there are under 3."""
    fewest, most = KIND_WORDS
    words: list[str] = []
    for sentence in sentences:
        more = sentence.split()
        if words and len(words) + len(more) > most:
            break
        words += more
    return " ".join(words[:most]) if len(words) >= fewest else ""


def order_examples(rng: random.Random, train_rows: int, dev_rows: int) -> Split:
    """Sentences of 6 to 25 words, every second one with two neighbouring words swapped."""
    from toolchain.corpus import stdlib

    sides: dict[str, set[bool]] = {}
    for doc in stdlib.documents():
        for sentence in stdlib.sentences(doc.text):
            if sentence.isprintable() and places(sentence.split()):
                sides.setdefault(sentence, set()).add(stdlib.is_heldout(doc.module))

    def drawn(heldout: bool, rows: int) -> list[Example]:
        pool = [sentence for sentence, found in sides.items() if found == {heldout}]
        picked = rng.sample(pool, min(rows, len(pool)) // 2 * 2)
        half = len(picked) // 2
        examples = [(swap(text, rng), "swapped") for text in picked[:half]]
        examples += [(text, "kept") for text in picked[half:]]
        rng.shuffle(examples)
        return examples

    return {"dev": drawn(True, dev_rows), "train": drawn(False, train_rows)}


def places(words: list[str]) -> list[int]:
    """Positions i at which words i and i+1 may be swapped; none where this is no sentence of prose.

    The first word (its capital) and the last (its full stop) stay, and both words are plain ones: the
    swap should have to be read, not seen from letters and marks.
    """
    plain = [bool(WORD.fullmatch(word)) for word in words]
    if not ORDER_WORDS[0] <= len(words) <= ORDER_WORDS[1] or sum(plain) < 0.7 * len(words):
        return []
    inner = range(1, len(words) - 2)
    return [i for i in inner if plain[i] and plain[i + 1] and words[i].lower() != words[i + 1].lower()]


def swap(sentence: str, rng: random.Random) -> str:
    """The sentence with one pair of neighbouring words swapped, drawn by `rng` from `places`."""
    words = sentence.split()
    i = rng.choice(places(words))
    words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


# What stands in each task's task.toml beside the name, and what draws its rows.
TASKS: dict[str, tuple[str, tuple[str, str], Callable[[random.Random, int, int], Split]]] = {
    "docs-kind": (
        "Does this documentation stand in a class or in a function",
        ("class", "function"),
        kind_examples,
    ),
    "docs-order": (
        "Were two neighbouring words of this sentence swapped",
        ("kept", "swapped"),
        order_examples,
    ),
}


def _write_tsv(path: Path, rows: list[Example]) -> None:
    """GLUE's form: a header, then text and label; texts are runs of words with single spaces."""
    lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
