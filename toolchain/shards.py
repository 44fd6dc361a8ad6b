"""Records that are dear to compute, computed once: a folder of shards, hashed, resumable, of one thing alone.

A shard is a NumPy file, memory-mapped when read. index.json says what the records are of, and holds each finished
shard's SHA-256: a run that was stopped goes on with the shards that are missing.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError
from devices.files import cache_folder, make_cache, read_json, sha256, write_json
from devices.progress import Progress
from toolchain.compress.unfinished import differences

if TYPE_CHECKING:
    import numpy as np

AUTO = "auto"  # the place of a cache that is given none: below the toolchain's own cache, by what it is of
INDEX = "index.json"
SHARDS = 256  # at most so many files

Ask = Callable[[int, int], "np.ndarray"]  # records of the items from the first number up to the second


@dataclass(frozen=True)
class Wanted:
    """What is to be in a cache: `count` records, each of `shape` and `dtype`, so many at once and in a shard.

    `about` is what they are of, hashes and settings. `what` are they called where their size is said, and
    `cheaper` is what makes them smaller. A record counts as `weight` of `unit` in the progress.
    """

    about: dict[str, Any]
    count: int
    shape: tuple[int, ...]
    dtype: "np.dtype"
    per_shard: int
    at_once: int
    what: str
    cheaper: str
    unit: str
    weight: int = 1

    @property
    def per(self) -> int:
        """Records in each shard but the last: more than asked for where that made too many files."""
        return max(self.per_shard, -(-self.count // SHARDS))

    def of(self, shard: int) -> range:
        """The items of a shard."""
        return range(shard * self.per, min((shard + 1) * self.per, self.count))


@dataclass(frozen=True)
class Kept:
    """An open cache: `per` records in each shard but the last."""

    shards: "list[np.ndarray]"
    per: int
    seconds: float  # that computing it took

    def __getitem__(self, item: int) -> "np.ndarray":
        """The record of one item."""
        return self.shards[item // self.per][item % self.per]


def kept(place: str, wanted: Wanted, load: Callable[[], Ask], say: Callable[[str], object]) -> Kept:
    """The cache in the folder `place` (AUTO: by its hash), whole: what is missing is computed first.

    `load` gives what computes records, and is called only where something is missing.

    Raises:
        UserError: a folder that holds something else or a cache of something else, a damaged shard, too small
            a disk.
    """
    folder = _place(place, wanted.about)
    index = _index(folder, wanted.about)
    missing = _missing(folder, index, range(-(-wanted.count // wanted.per)))
    if missing:
        _announce(folder, wanted, sum(len(wanted.of(shard)) for shard in missing), say)
        _compute(folder, index, wanted, missing, load())
    return Kept([_opened(folder / file) for file in sorted(index["shards"])], wanted.per, index["seconds"])


def refuse_other(place: str, about: dict[str, Any]) -> None:
    """UserError where the folder `place` holds something else than a cache of `about`, which may be a part of it."""
    _index(_place(place, about), about)


def _place(place: str, about: dict[str, Any]) -> Path:
    named = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder("teachers", named) if place == AUTO else Path(place)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, and --cache-teacher names a folder; choose another")
    return folder


def _index(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The index that is there, or a fresh one; UserError where the folder is of something else than `about`."""
    fresh = {"about": about, "seconds": 0.0, "shards": {}}
    if not folder.is_dir() or not any(folder.iterdir()):
        return fresh
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder}: holds something that is no teacher's cache; name another --cache-teacher")
    index = read_json(folder / INDEX, "what a teacher's cache holds")
    found = index.get("about", {})
    if about.items() <= found.items() and index.keys() == fresh.keys():
        return index
    other = ", ".join(dict.fromkeys(differences({key: found.get(key) for key in about}, about)))
    hint = "name another folder, or none: --cache-teacher alone"
    if found.get("temperature", about.get("temperature")) != about.get("temperature"):
        hint = f"give --temperature {found['temperature']} as it has, {hint}"
    raise UserError(f"{folder}: a cache of something else ({other or 'which cannot be read'}); {hint}")


def _missing(folder: Path, index: dict[str, Any], shards: range) -> list[int]:
    """The shards to compute; UserError for one whose bytes are not those that were written."""
    missing = []
    with Progress(len(shards), "check the cached teacher", "shard") as progress:
        for i in shards:
            file = folder / _name(i)
            if not file.is_file() or file.name not in index["shards"]:
                missing.append(i)
            elif sha256(file) != index["shards"][file.name]:
                raise UserError(
                    f"{file}: damaged, its bytes are not those that were written; remove it, and the same "
                    "command computes this one again"
                )
            progress.update()
    return missing


def _announce(folder: Path, wanted: Wanted, records: int, say: Callable[[str], object]) -> None:
    """Say how much disk so many records will take; UserError where there is not so much."""
    import math

    size = records * math.prod(wanted.shape) * wanted.dtype.itemsize
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    what = f"{wanted.what} take {size / 1e6:,.1f} MB"
    if size > free:
        raise UserError(
            f"{folder}: {what}, and {free / 1e6:,.1f} MB are free; {wanted.cheaper}, or name another folder"
        )
    say(f"{what} in {folder} ({free / 1e9:,.1f} GB are free)")


def _compute(folder: Path, index: dict[str, Any], wanted: Wanted, missing: list[int], ask: Ask) -> None:
    """Write the `missing` shards, each whole or not at all, and each into the index when it is there."""
    import numpy as np

    make_cache(folder)
    write_json(folder / INDEX, index)
    total = sum(len(wanted.of(shard)) for shard in missing) * wanted.weight
    with Progress(total, "ask the teacher", wanted.unit) as progress:
        for shard in missing:
            start, items = time.monotonic(), wanted.of(shard)
            made = np.empty((len(items), *wanted.shape), wanted.dtype)
            for first in range(0, len(items), wanted.at_once):
                part = items[first : first + wanted.at_once]
                made[first : first + len(part)] = ask(part.start, part.stop)
                progress.update(len(part) * wanted.weight)
            _write(folder / _name(shard), made, index)
            index["seconds"] += time.monotonic() - start
            write_json(folder / INDEX, index)


def _write(file: Path, made: "np.ndarray", index: dict[str, Any]) -> None:
    """A shard in one rename, its hash into `index`."""
    import numpy as np

    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as target:
            np.save(target, made)
        index["shards"][file.name] = sha256(partial)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _name(shard: int) -> str:
    return f"{shard:05d}.npy"


def _opened(file: Path) -> "np.ndarray":
    import numpy as np

    return np.load(file, mmap_mode="r", allow_pickle=False)
