"""A teacher's most probable tokens for every token of a packed corpus, computed once and read by later runs.

A folder of shards: NumPy files of one record per block and token, memory-mapped when read. A record is `ids`
(uint16, or uint32 for a vocabulary that needs it) by falling probability, and `values`, float16
log-probabilities at the cached temperature, the last that of the rest of the vocabulary together. A loss over these
k + 1 outcomes is a divergence of the same kind, never larger than the one over all of the vocabulary.
index.json says what the cache is of, and holds each finished shard's SHA-256: a run that was stopped goes on
with the shards that are missing.
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
    from transformers import PreTrainedModel

AUTO = "auto"  # the place of a cache that is given none: below the toolchain's own cache, by what it is of
TOP = 32  # tokens kept of each distribution
INDEX = "index.json"
SHARD_TOKENS, SHARDS = 1 << 18, 256  # a shard holds so many tokens, or more where that makes too many files
BATCH_TOKENS = 4096  # the teacher sees so many at a time
LEAST = -6e4  # of a log-probability: float16 reaches a little further


@dataclass(frozen=True)
class CachedTeacher:
    """An open cache: shards of records [blocks, window], `per` blocks in each but the last."""

    shards: "list[np.ndarray]"
    per: int
    seconds: float  # that computing it took

    def __getitem__(self, block: int) -> "tuple[np.ndarray, np.ndarray]":
        """Of one block: ids int64 [window, k] and log-probabilities float16 [window, k + 1]."""
        record = self.shards[block // self.per][block % self.per]
        return record["ids"].astype("int64"), record["values"].copy()


def describe_cache(
    blocks: "np.ndarray", teacher: str, corpus: str, tokenizer: str, vocab: int, top: int, temperature: float
) -> dict[str, Any]:
    """What a cache is of: hashes of the teacher, the text, the tokenizer and its ids `blocks` [blocks, window]."""
    return {
        "schema": 1,
        "teacher": {"sha256": teacher},
        "corpus": {"sha256": corpus},
        "tokenizer": {"sha256": tokenizer},
        "tokens": {"sha256": hashlib.sha256(blocks.astype("<i8").tobytes()).hexdigest()},
        "blocks": len(blocks),
        "window": blocks.shape[1],
        "vocabulary": vocab,
        "top": top,
        "temperature": temperature,
    }


def cached_teacher(
    place: str,
    about: dict[str, Any],
    blocks: "np.ndarray",
    load: "Callable[[], PreTrainedModel]",
    say: Callable[[str], object],
) -> CachedTeacher:
    """The cache of `about` in the folder `place` (AUTO: by its hash), whole: what is missing is computed first.

    `load` loads the teacher, and is called only where something is missing.

    Raises:
        UserError: a folder that holds something else or another teacher's cache, a damaged shard, too
            small a disk, more tokens to keep than the vocabulary has.
    """
    folder = _place(place, about)
    index = _index(folder, about)
    per = max(-(-SHARD_TOKENS // about["window"]), -(-len(blocks) // SHARDS))
    missing = _missing(folder, index, range(-(-len(blocks) // per)))
    if missing:
        _announce(folder, about, sum(len(blocks[i * per : (i + 1) * per]) for i in missing), say)
        _compute(folder, index, blocks, per, missing, load())
    return CachedTeacher([_opened(folder / file) for file in sorted(index["shards"])], per, index["seconds"])


def refuse_cache(place: str, top: int, temperature: float, vocab: int) -> None:
    """UserError for a cache that could not be made or read, by what is known before any text is."""
    about = {"vocabulary": vocab, "top": top, "temperature": temperature}
    _index(_place(place, about), about)


def _place(place: str, about: dict[str, Any]) -> Path:
    """The cache's folder; UserError for a file, and for more tokens to keep than the vocabulary has."""
    if about["top"] >= about["vocabulary"]:
        raise UserError(f"--cache-top {about['top']}: the vocabulary has {about['vocabulary']}; keep fewer")
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
    if found.get("temperature", about["temperature"]) != about["temperature"]:
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


def _announce(folder: Path, about: dict[str, Any], blocks: int, say: Callable[[str], object]) -> None:
    """Say how much disk `blocks` blocks will take; UserError where there is not so much."""
    import numpy as np

    size = blocks * about["window"] * np.dtype(_record(about)).itemsize
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    what = f"the teacher's {about['top']} most probable tokens take {size / 1e6:,.1f} MB"
    if size > free:
        raise UserError(
            f"{folder}: {what}, and {free / 1e6:,.1f} MB are free; lower --cache-top, or name another folder"
        )
    say(f"{what} in {folder} ({free / 1e9:,.1f} GB are free)")


def _record(about: dict[str, Any]) -> list[tuple[str, str, tuple[int]]]:
    """The type of one token's record."""
    ids = "<u2" if about["vocabulary"] <= 1 << 16 else "<u4"
    return [("ids", ids, (about["top"],)), ("values", "<f2", (about["top"] + 1,))]


def _compute(
    folder: Path,
    index: dict[str, Any],
    blocks: "np.ndarray",
    per: int,
    missing: list[int],
    teacher: "PreTrainedModel",
) -> None:
    """Write the `missing` shards, each whole or not at all, and each into the index when it is there."""
    import numpy as np

    about = index["about"]
    make_cache(folder)
    write_json(folder / INDEX, index)
    total = sum(blocks[i * per : (i + 1) * per].size for i in missing)
    with Progress(total, "ask the teacher", "token") as progress:
        for i in missing:
            start = time.monotonic()
            part = blocks[i * per : (i + 1) * per]
            made = np.empty(part.shape, np.dtype(_record(about)))
            step = max(1, BATCH_TOKENS // about["window"])
            for row in range(0, len(part), step):
                ids, values = _asked(teacher, part[row : row + step], about["top"], about["temperature"])
                made["ids"][row : row + step], made["values"][row : row + step] = ids, values
                progress.update(part[row : row + step].size)
            file = folder / _name(i)
            partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
            try:
                with partial.open("wb") as target:
                    np.save(target, made)
                index["shards"][file.name] = sha256(partial)
                partial.replace(file)
            finally:
                partial.unlink(missing_ok=True)
            index["seconds"] += time.monotonic() - start
            write_json(folder / INDEX, index)


def _asked(
    teacher: "PreTrainedModel", blocks: "np.ndarray", top: int, temperature: float
) -> "tuple[np.ndarray, np.ndarray]":
    """The teacher's answer to blocks [n, window]: ids [n, window, k] and log-probabilities [n, window, k + 1]."""
    import torch

    from toolchain.compress.objectives.top import top_log_probabilities

    with (
        torch.inference_mode(),
        torch.autocast(teacher.device.type, torch.bfloat16, teacher.device.type != "cpu"),
    ):
        logits = teacher(torch.tensor(blocks, device=teacher.device), use_cache=False).logits
        rows = logits.float().flatten(0, 1)
        ids = rows.topk(top).indices
        values = top_log_probabilities(rows, ids, temperature).clamp(min=LEAST).half()
    shape = (*blocks.shape, -1)
    return ids.view(shape).cpu().numpy(), values.view(shape).cpu().numpy()


def _name(shard: int) -> str:
    return f"{shard:05d}.npy"


def _opened(file: Path) -> "np.ndarray":
    import numpy as np

    return np.load(file, mmap_mode="r", allow_pickle=False)
