"""What is done on the device besides measuring: `python -m devices.board ACTION` in our folder there.

A request, JSON on standard input, is answered by a line of JSON behind MARK. What is kept there:

    artifacts/SHA256/   verified, the hash being the manifest's; a text is a folder with one file
    incoming/SHA256/    being pushed, or left by a push that was cut off
    code/SHA256/        our code, as devices.code knows it
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from devices.code import digest
from devices.errors import UserError
from devices.files import sha256
from devices.supervisor import MARK

ARTIFACTS, INCOMING, CODE = Path("artifacts"), Path("incoming"), Path("code")
SPARE = 64_000_000  # bytes of the disk that are left free
CODES = 3  # versions of our code that are kept


def want(request: dict[str, Any]) -> dict[str, Any]:
    """Whether `key` is there and verifies; otherwise how much of each file came already, with room for the rest.

    request: key, files {name: {size, sha256}}, cache_bytes, keep [keys that may not go]. A damaged one is
    removed. UserError where there is no room even without everything that may go.
    """
    key, files = request["key"], request["files"]
    place = ARTIFACTS / key
    damaged = False
    if place.is_dir():
        if not _bad(place, files):
            os.utime(place)
            return {"path": str(place.absolute()), "damaged": False}
        shutil.rmtree(place)
        damaged = True
    incoming = INCOMING / key
    incoming.mkdir(parents=True, exist_ok=True)
    offsets = {name: _offset(incoming / name, entry["size"]) for name, entry in files.items()}
    total = sum(entry["size"] for entry in files.values())
    dropped = _room(total, total - sum(offsets.values()), request["cache_bytes"], {key, *request["keep"]})
    return {"path": None, "damaged": damaged, "offsets": offsets, "dropped": dropped}


def arrived(request: dict[str, Any]) -> dict[str, Any]:
    """Verify what was pushed and give it its place; the names of files that are not what they should be, removed."""
    key, files = request["key"], request["files"]
    incoming, place = INCOMING / key, ARTIFACTS / key
    bad = _bad(incoming, files)
    for name in bad:
        (incoming / name).unlink(missing_ok=True)
    if bad:
        return {"path": None, "bad": bad}
    ARTIFACTS.mkdir(exist_ok=True)
    incoming.rename(place)
    return {"path": str(place.absolute()), "bad": []}


def installed(request: dict[str, Any]) -> dict[str, Any]:
    """Which code this is, and the versions of the packages of the base set, imported."""
    import importlib

    versions = {name: importlib.import_module(name).__version__ for name in request["packages"]}
    old = sorted(CODE.iterdir(), key=lambda place: place.stat().st_mtime, reverse=True)
    for place in old[CODES:]:
        if place.name != digest():
            shutil.rmtree(place, ignore_errors=True)
    return {"code": digest(), "versions": versions}


def _bad(folder: Path, files: dict[str, Any]) -> list[str]:
    """Names of files that are missing, no plain files, of another size or other bytes."""
    return [
        name
        for name, entry in files.items()
        if (folder / name).is_symlink()
        or not (folder / name).is_file()
        or (folder / name).stat().st_size != entry["size"]
        or sha256(folder / name) != entry["sha256"]
    ]


def _offset(file: Path, size: int) -> int:
    """Bytes of a file that came; none of one that is too long or no plain file."""
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise UserError(f"{file}: is no plain file; remove it")
    have = file.stat().st_size if file.exists() else 0
    if have > size:
        file.unlink()
        return 0
    return have


def _room(total: int, missing: int, cache_bytes: int, keep: set[str]) -> list[str]:
    """Drop the least recently used until `total` more fits into the cache and `missing` onto the disk."""
    found = [place for top in (ARTIFACTS, INCOMING) if top.is_dir() for place in top.iterdir()]
    going = sorted((p for p in found if p.name not in keep), key=lambda place: place.stat().st_mtime)
    held = sum(_bytes(place) for place in found if place.name in keep and place.parent == ARTIFACTS)
    cached = held + sum(_bytes(place) for place in going)
    dropped = []
    while going and (cached + total > cache_bytes or _free() < missing + SPARE):
        place = going.pop(0)
        if _in_use(place):
            continue
        cached -= _bytes(place)
        shutil.rmtree(place)
        dropped.append(place.name)
    if cached + total > cache_bytes:
        raise UserError(
            f"{total / 1e6:.0f} MB more do not fit into the cache of {cache_bytes / 1e6:.0f} MB there; raise "
            "cache_bytes in the profile, or measure fewer artifacts at once"
        )
    if _free() < missing + SPARE:
        raise UserError(
            f"the disk there is full: {_free() / 1e6:.0f} MB are free, {missing / 1e6:.0f} MB are to be pushed and "
            f"{SPARE / 1e6:.0f} MB stay free; free some of it there"
        )
    return dropped


def _free() -> int:
    return shutil.disk_usage(".").free


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _in_use(place: Path) -> bool:
    """Whether a process on this machine has one of its files open or mapped."""
    inside = f"{place.absolute()}/"
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if inside in maps.read_text(encoding="utf-8", errors="replace"):
                return True
        except OSError:
            continue  # another user's, or ended
    return False


ACTIONS = {"want": want, "arrived": arrived, "installed": installed}


def main() -> int:
    """Answer the request: 0, or 2 with one line on standard error."""
    try:
        answer = ACTIONS[sys.argv[1]](json.load(sys.stdin))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (ImportError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 3
    sys.stdout.write(f"\n{MARK}{json.dumps(answer)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
