"""Files to a board, by content hash: what is there is not sent again, what was cut off goes on, all is verified."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devices import board, code
from devices.connection import push, run
from devices.errors import UserError
from devices.profiles import Profile
from devices.progress import Progress

Say = Callable[[str], None]
# In our folder there, with our code and nothing else of a user's; $1 folder, $2 code, $3 Python, the rest its words.
RUN = """cd -- "$1" || exit 1
export PYTHONPATH="$PWD/code/$2" PYTHONUTF8=1 ORT_DISABLE_TELEMETRY=1 XDG_CACHE_HOME="$PWD/cache"
python="$3"; case "$python" in venv/*) python="$PWD/$python";; esac
shift 3; exec "$python" -P -m "$@" """
APPEND = 'cd -- "$1" && exec cat >> "$2"'
LARGE = 100_000_000  # bytes that a board's card reads for seconds
_used: dict[str, set[str]] = {}  # what this process put on each device: it does not go to make room


def ask_board(profile: Profile, python: str, action: str, request: dict[str, Any]) -> dict[str, Any]:
    """The answer of devices.board there, run by that Python; UserError with its line where it has none."""
    words = profile.settings["folder"], code.digest(), python
    lines = run(profile, RUN, *words, "devices.board", action, given=json.dumps(request).encode())
    return json.loads(lines[-1])


def put(
    profile: Profile, python: str, key: str, source: Path, listed: dict[str, Any], name: str, say: Say
) -> str:
    """The path there of a folder `key` with the `listed` files {name: {size, sha256}} of the folder `source`.

    A `source` that is a file is the only one listed, under any name. UserError where it does not fit there or,
    pushed twice, does not verify.
    """
    used = _used.setdefault(profile.name, set())
    request = {
        "key": key,
        "files": listed,
        "keep": sorted(used),
        "cache_bytes": profile.settings["cache_bytes"],
    }
    used.add(key)
    total = sum(entry["size"] for entry in listed.values())
    if total > LARGE:
        say(f"{profile.name}: {name}: {total / 1e6:.0f} MB are verified there before they are used")
    for _ in range(2):
        state = ask_board(profile, python, "want", request)
        if state["path"]:
            return state["path"]
        if state["damaged"]:
            say(f"{profile.name}: {name} is damaged there; it is pushed again")
        for gone in state["dropped"]:
            say(f"{profile.name}: {gone[:12]} was dropped from the cache there")
        _push(profile, key, source, listed, state["offsets"], name, say)
        answer = ask_board(profile, python, "arrived", request)
        if answer["path"]:
            return answer["path"]
        say(f"{profile.name}: {', '.join(answer['bad'])} of {name} did not arrive whole; once more")
    raise UserError(
        f"{profile.name}: {name} does not verify there ({', '.join(answer['bad'])} differs, twice); "
        "check the disk there, or its card"
    )


def _push(
    profile: Profile,
    key: str,
    source: Path,
    listed: dict[str, Any],
    have: dict[str, int],
    name: str,
    say: Say,
) -> None:
    total = sum(entry["size"] for entry in listed.values())
    if any(have.values()):
        say(f"{profile.name}: {name} goes on after {sum(have.values()) / 1e6:.1f} of {total / 1e6:.1f} MB")
    folder = f"{profile.settings['folder']}/{board.INCOMING}/{key}"
    with Progress(total, f"{name} to {profile.name}", "byte") as bar:
        bar.update(sum(have.values()))
        for file, entry in listed.items():
            if have[file] < entry["size"] or not entry["size"]:
                place = source / file if source.is_dir() else source
                push(profile, place, have[file], APPEND, folder, file, sent=bar.update)
