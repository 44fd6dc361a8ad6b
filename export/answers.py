"""What PyTorch answers for a checkpoint: from the cache, or from a process of its own (export/reference.py)."""

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from devices.errors import install
from devices.files import cache_folder
from devices.process import run

KEPT = 8  # answers of each kind in the cache
VERSION = 2  # of what export/reference.py computes
Arrays = dict[str, np.ndarray]
Say = Callable[[str], None]


def answers(
    checkpoint: Path, identity: str, kind: str, questions: Mapping[str, Arrays], say: Say
) -> dict[str, Arrays]:
    """PyTorch's answers to `questions` (`parity`, `text`; see export/reference.py) by their names.

    Kept below $XDG_CACHE_HOME (~/.cache) by checkpoint `identity` and question, the newest few of each, so
    that a second recipe of a checkpoint starts no PyTorch. What is missing is asked for in one process.
    """
    places = {name: _place(name, identity, kind, question) for name, question in questions.items()}
    found = {name: answer for name, place in places.items() if (answer := _read(place))}
    missing = {name: question for name, question in questions.items() if name not in found}
    if missing:
        say("asking PyTorch for the reference")
        for name, answer in _ask(checkpoint, kind, missing).items():
            _keep(answer, places[name])
            found[name] = answer
    return found


def _place(name: str, identity: str, kind: str, question: Arrays) -> Path:
    digest = hashlib.sha256(f"{VERSION} {identity} {kind}".encode())
    for key, array in sorted(question.items()):
        digest.update(f"{key}{array.dtype}{array.shape}".encode() + array.tobytes())
    return cache_folder("reference", name) / f"{digest.hexdigest()[:32]}.npz"


def _read(place: Path) -> Arrays | None:
    """A kept answer; None where there is none or it is damaged."""
    try:
        with np.load(place, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def _ask(checkpoint: Path, kind: str, questions: Mapping[str, Arrays]) -> dict[str, Arrays]:
    with tempfile.TemporaryDirectory(prefix="toolchain-reference-") as scratch:
        asked, made = Path(scratch) / "questions.npz", Path(scratch) / "answers.npz"
        arrays = {f"{name}.{key}": array for name, q in questions.items() for key, array in q.items()}
        np.savez(asked, **arrays)  # type: ignore[arg-type]
        _run_child([str(checkpoint), kind, str(asked), str(made)])
        with np.load(made, allow_pickle=False) as file:
            return {
                name: {key.partition(".")[2]: file[key] for key in file if key.startswith(f"{name}.")}
                for name in questions
            }


def _run_child(arguments: list[str]) -> None:
    """Run export/reference.py on `arguments`, the checkpoint first; UserError where it fails."""
    run(
        "export.reference",
        arguments,
        f"{arguments[0]}: the reference, which PyTorch computes for the parity check,",
        f"if packages are missing, {install('host')}; or export with --no-parity",
    )


def _keep(answer: Arrays, place: Path) -> None:
    """Put an answer into the cache and drop the oldest; without a writable cache there is none."""
    partial = place.with_suffix(f".{os.getpid()}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, **answer)  # type: ignore[arg-type]
        partial.replace(place)
        for old in sorted(place.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    except OSError:
        partial.unlink(missing_ok=True)
