"""Answers kept until the result is written: a benchmark that was cut off goes on where it was.

They are lines of JSON in a hidden file beside the folder of results, one file for a command's artifacts, device
and settings, gone once the results are written. An answer is used for the same question only: the same bytes
of artifact and text, the same request, asked for the same time, by the same code.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devices import code, reach
from devices.artifact import Artifact
from devices.errors import UserError
from devices.profiles import Profile

Ask = Callable[..., dict[str, Any]]


@contextmanager
def asking(
    ask: Ask,
    profile: Profile,
    artifacts: list[Artifact],
    texts: dict[str, str],
    out: Path,
    settings: dict[str, Any],
    say: Callable[[str], None],
) -> Iterator[Ask]:
    """`asked(request, name)`, which has the device answer, or a kept answer where the command was cut off.

    `artifacts` and `texts` (path to SHA-256) are put on the device first; requests name them by their paths
    here. `settings` are what tells this command from another into the same `out`, besides these. A round
    has the `sitting` it was measured in, another for each time that the command was started. Where the block
    fails, its error says what was kept; where it ends well, nothing is.
    """
    there = reach.of(profile)
    paths = {str(one.path): there.put(profile, one, say) for one in artifacts}
    paths |= {path: there.put_text(profile, Path(path), sha, say) for path, sha in texts.items()}
    hashes = {**{str(one.path): one.sha256 for one in artifacts}, **texts}
    file = place(out, {"device": profile.name, "hashes": sorted(hashes.values()), **settings})
    kept = _read(file)
    if kept:
        say(f"{len(kept)} answers of a run that was cut off are used; to measure anew, delete {file}")
    times: Counter[str] = Counter()
    sitting = uuid.uuid4().hex[:12]

    def asked(request: dict[str, Any], name: str) -> dict[str, Any]:
        question = _digest(_renamed(request, hashes))
        times[question] += 1
        key = f"{question}-{times[question]}"
        if key not in kept:
            moved = _renamed(request, paths)
            answer = ask(moved, name) if profile.kind == "local" else ask(moved, name, profile)
            kept[key] = {**answer, "sitting": sitting} if request.get("action") == "measure" else answer
            _add(file, key, kept[key])
        return kept[key]

    try:
        yield asked
    except UserError as error:
        raise (UserError(f"{error}; {_hint(kept)}") if kept else error) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*([_hint(kept)] if kept else [])) from None
    file.unlink(missing_ok=True)


def place(out: Path, settings: dict[str, Any]) -> Path:
    """The hidden file of a command's answers, beside the folder `out`."""
    out = out.absolute()
    return out.with_name(f".{out.name}.rounds-{_digest({**settings, 'code': code.digest()})[:12]}.jsonl")


def _renamed(request: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The request with its paths replaced by other names for the same."""
    return {
        key: names.get(value, value) if isinstance(value, str) else value for key, value in request.items()
    }


def _hint(kept: dict[str, Any]) -> str:
    count = f"{len(kept)} answers are" if len(kept) > 1 else "1 answer is"
    return f"{count} kept, the same command goes on"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """The answers in `file` by key. A line cut short goes, and so does whatever follows it, there as well."""
    found: dict[str, dict[str, Any]] = {}
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        for at, line in enumerate(lines):
            try:
                one = json.loads(line)
                found[one["key"]] = one["answer"]
            except (ValueError, KeyError, TypeError):
                file.write_text("".join(lines[:at]), encoding="utf-8")
                break
    except OSError:  # there is none, as a rule
        return {}
    return found


def _add(file: Path, key: str, answer: dict[str, Any]) -> None:
    """Add an answer, on the disk before the next question is asked. A full disk here costs only the keeping."""
    line = json.dumps({"key": key, "answer": answer}) + "\n"
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as sink:
            sink.write(line)
            sink.flush()
            os.fsync(sink.fileno())
