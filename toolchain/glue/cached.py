"""A teacher's answers to a task's training rows, computed once and read in later epochs, seeds and runs.

A folder of shards (toolchain/shards.py) with one float32 record per row: its logits [labels], and for a method that
compares hidden states those of the layers it may ask for, each as one vector a row [layers, width]. Rows stand
shortest first. The numbers are the live teacher's but for the padding they were computed with
(docs/adr/0012-cached-teacher.md).
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError
from devices.files import sha256
from toolchain.glue.methods import METHODS
from toolchain.glue.methods.method import Hidden
from toolchain.shards import Ask, Kept, Wanted, kept

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

SHARD_BYTES = 1 << 26  # a shard is about so large
BATCH_ROWS = 32  # the teacher sees so many at a time


def refuse_cache(method: str, teacher: Path | None) -> None:
    """UserError where a method has no teacher to cache, or one that does not outlive the run."""
    if METHODS[method].teacher == "none":
        raise UserError(f"--cache-teacher: method {method} asks no teacher; leave it out")
    if teacher is None:
        raise UserError(
            f"--cache-teacher: method {method} makes its teacher anew in each run; pass --teacher, or leave it out"
        )


def cache_place(place: str, task: str, seed: int | None) -> str:
    """Where below `place` a task's cache is; with a `seed` where its rows or its teacher are that seed's own."""
    whole = Path(place) / task
    return str(whole if seed is None else whole / f"seed-{seed}")


def cached_rows(
    place: str,
    examples: list[dict[str, Any]],
    teacher: "PreTrainedModel",
    hidden: Hidden | None,
    about: dict[str, Any],
    say: Callable[[str], object],
) -> Kept:
    """The cache of the teacher's answers to `examples`, whole: what is missing is computed first.

    `about` adds to what it is of: the teacher, the data and the tokenizer by their hashes, tokens a row at
    most. UserError as toolchain/shards.py says.
    """
    import numpy as np

    ids = [example["input_ids"] for example in examples]
    labels, width = int(teacher.config.num_labels or 0), teacher.config.hidden_size
    fields: list[tuple[str, str, tuple[int, ...]]] = [("logits", "<f4", (labels,))]
    if hidden is not None:
        fields.append(("hidden", "<f4", (len(hidden.layers), width)))
    about = {
        "schema": 1,
        **about,
        "tokens": {"sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest()},
        "rows": len(ids),
        "labels": labels,
        "hidden states": None if hidden is None else hidden.pooled,
        "layers": None if hidden is None else list(hidden.layers),
    }
    wanted = Wanted(
        about,
        count=len(ids),
        shape=(),
        dtype=np.dtype(fields),
        per_shard=max(1, SHARD_BYTES // np.dtype(fields).itemsize),
        at_once=BATCH_ROWS,
        what=f"the teacher's answers to {len(ids):,} rows",
        cheaper="free some" if hidden is None else "free some, take kd, which caches no hidden states",
        unit="row",
    )
    return kept(place, wanted, lambda: _asker(teacher, ids, hidden, wanted.dtype), say)


def source(teacher: Path, data: Path, max_tokens: int) -> dict[str, Any]:
    """What rows' answers depend on besides their ids."""
    from export.checkpoint import identity

    return {
        "teacher": {"sha256": identity(teacher)},
        "data": {"sha256": sha256(data)},
        "tokenizer": {"sha256": sha256(teacher / "tokenizer.json")},
        "max_tokens": max_tokens,
    }


def _asker(teacher: "PreTrainedModel", ids: list[list[int]], hidden: Hidden | None, dtype: "np.dtype") -> Ask:
    """What asks `teacher` about some of the rows `ids`."""
    import numpy as np
    import torch

    from toolchain.glue.classifier import pad
    from toolchain.glue.methods.reading import ask

    def asked(start: int, stop: int) -> "np.ndarray":
        made, device = np.empty(stop - start, dtype), teacher.device
        batch = {name: t.to(device) for name, t in pad(ids[start:stop], teacher.config.pad_token_id).items()}
        with torch.autocast(device.type, torch.bfloat16, device.type != "cpu"):
            logits, states = ask(teacher, batch, hidden)
        made["logits"] = logits.float().cpu().numpy()
        if states is not None:
            made["hidden"] = states.float().cpu().numpy()
        return made

    return asked
