"""The text that ships with every CPython: the standard library's docstrings and `pydoc`'s topics.

An embedded default corpus: about 2 MB of English about programming, there on any machine, offline.
It differs between Python versions, so whoever trains on it records its hash.
"""

import ast
import functools
import hashlib
import importlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from devices.errors import UserError

HELDOUT_SHARE = 10  # one module in so many is held out
# Distributions differ in whether they ship these, and their text is that of test fixtures.
SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "__pycache__"}
SENTENCE_END = re.compile(r"((?<=[.!?:])\s+|\n\s*\n\s*)")


@dataclass(frozen=True)
class Doc:
    """One docstring or topic: the module it stands in, what it documents, and its text."""

    module: str
    kind: str  # module, class, function or topic
    name: str
    text: str


def is_heldout(module: str) -> bool:
    """Whether a module's text is held out: its name's SHA-256 decides, so a new module moves no other."""
    return int(hashlib.sha256(module.encode()).hexdigest(), 16) % HELDOUT_SHARE == 0


@functools.cache
def documents() -> tuple[Doc, ...]:
    """Every docstring of the standard library and every pydoc topic, in the order of module names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError:
        raise UserError(
            "corpus 'stdlib': this Python lacks pydoc_data (Debian's python3-minimal does); "
            "install the full standard library (apt install python3) or name another --corpus"
        ) from None
    docs: list[Doc] = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not SKIPPED.intersection(parts) and parts[0] != "pydoc_data":
            docs.extend(_docstrings(".".join(p for p in parts if p != "__init__"), path))
    docs.extend(Doc(f"topic:{name}", "topic", name, text.strip()) for name, text in sorted(topics.items()))
    return tuple(docs)


def _docstrings(module: str, path: Path) -> Iterator[Doc]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and fixtures that are no Python
        return
    kinds: dict[type, str] = {
        ast.Module: "module",
        ast.ClassDef: "class",
        ast.FunctionDef: "function",
        ast.AsyncFunctionDef: "function",
    }
    for node in ast.walk(tree):
        kind = kinds.get(type(node))
        if kind and (text := ast.get_docstring(node)):  # type: ignore[arg-type]
            yield Doc(module, kind, getattr(node, "name", module), text)


def sentences(text: str) -> list[str]:
    """The sentences of `text` in order, as runs of words with single spaces."""
    return [words for piece in SENTENCE_END.split(text) if (words := " ".join(piece.split()))]


@functools.cache
def split() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(train, held-out) texts, one per module: its docstrings in order, a blank line between.

    The hash of a module's name decides its side; then every held-out sentence that also stands in train
    is dropped, because the library repeats itself (about 7 % of held-out text).
    """
    modules: dict[str, list[str]] = {}
    for doc in documents():
        modules.setdefault(doc.module, []).append(doc.text)
    texts = {module: "\n\n".join(parts) for module, parts in modules.items()}
    train = [text for module, text in texts.items() if not is_heldout(module)]
    seen = {sentence for text in train for sentence in sentences(text)}
    heldout = [_without(text, seen) for module, text in texts.items() if is_heldout(module)]
    return tuple(train), tuple(text for text in heldout if text)


def _without(text: str, seen: set[str]) -> str:
    """`text` less the sentences in `seen`, its layout otherwise kept."""
    pieces = SENTENCE_END.split(text)
    kept = [
        sentence + gap
        for sentence, gap in zip(pieces[::2], [*pieces[1::2], ""], strict=True)
        if " ".join(sentence.split()) not in seen
    ]
    return "".join(kept).strip()
