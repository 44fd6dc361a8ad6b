"""A teacher's most probable tokens for every token of a packed corpus, computed once and read by later runs.

A folder of shards (toolchain/shards.py) with one record per block and token: `ids` (uint16, or uint32 for a
vocabulary that needs it) by falling probability, and `values`, float16 log-probabilities at the cached temperature,
the last that of the rest of the vocabulary together. A loss over these k + 1 outcomes is a divergence of the same
kind, never larger than the one over all of the vocabulary.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devices.errors import UserError
from toolchain.shards import Ask, Kept, Wanted, kept, refuse_other

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

TOP = 32  # tokens kept of each distribution
SHARD_TOKENS = 1 << 18  # a shard holds so many tokens
BATCH_TOKENS = 4096  # the teacher sees so many at a time
LEAST = -6e4  # of a log-probability: float16 reaches a little further


@dataclass(frozen=True)
class CachedTeacher:
    """An open cache of records [blocks, window]."""

    kept: Kept

    @property
    def seconds(self) -> float:
        """What computing it took."""
        return self.kept.seconds

    def __getitem__(self, block: int) -> "tuple[np.ndarray, np.ndarray]":
        """Of one block: ids int64 [window, k] and log-probabilities float16 [window, k + 1]."""
        record = self.kept[block]
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
    import numpy as np

    window, top = about["window"], about["top"]
    _refuse_top(top, about["vocabulary"])
    ids = "<u2" if about["vocabulary"] <= 1 << 16 else "<u4"
    wanted = Wanted(
        about,
        count=len(blocks),
        shape=(window,),
        dtype=np.dtype([("ids", ids, (top,)), ("values", "<f2", (top + 1,))]),
        per_shard=max(1, -(-SHARD_TOKENS // window)),
        at_once=max(1, BATCH_TOKENS // window),
        what=f"the teacher's {top} most probable tokens",
        cheaper="lower --cache-top",
        unit="token",
        weight=window,
    )
    return CachedTeacher(kept(place, wanted, lambda: _asker(load(), blocks, wanted), say))


def refuse_cache(place: str, top: int, temperature: float, vocab: int) -> None:
    """UserError for a cache that could not be made or read, by what is known before any text is."""
    _refuse_top(top, vocab)
    refuse_other(place, {"vocabulary": vocab, "top": top, "temperature": temperature})


def _refuse_top(top: int, vocab: int) -> None:
    if top >= vocab:
        raise UserError(f"--cache-top {top}: the vocabulary has {vocab}; keep fewer")


def _asker(teacher: "PreTrainedModel", blocks: "np.ndarray", wanted: Wanted) -> Ask:
    """What asks `teacher` about some of `blocks` [blocks, window]; records [some, window]."""
    import numpy as np

    def ask(start: int, stop: int) -> "np.ndarray":
        made = np.empty((stop - start, *wanted.shape), wanted.dtype)
        about = wanted.about
        made["ids"], made["values"] = _asked(teacher, blocks[start:stop], about["top"], about["temperature"])
        return made

    return ask


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
