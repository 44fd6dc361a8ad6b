"""How good is the artifact on text? Perplexity and argmax, through the runtime that ships, against PyTorch's.

Text is cut into windows. Each is run with all positions at once, and as in use: its first half as a prompt,
the rest by cached steps, teacher-forced. Only one batch of windows' logits is in memory at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from devices.artifact import Artifact
from devices.errors import CheckFailed, UserError
from devices.files import sha256
from devices.runtime import Decoder
from devices.text import encode_text, load_tokenizer, read_text
from export.answers import Arrays
from export.architecture import Model

TOKENS = 4096
WINDOW = 256  # tokens, or the model's positions where they are fewer
CHARACTERS = 1 << 20  # of a long text, so many from its start are read
# A step reads all weights: cached steps go on until they have read about so many bytes, and through one
# batch of windows at least. On two cores of 2026 a minute or less, whatever the model.
STEP_BYTES = 3e11
ROWS = 64  # positions worked on together, so that a large vocabulary's temporaries stay small


@dataclass(frozen=True)
class Sample:
    """Windows of text: `ids` int64 [windows, w], what they are called, and how many run together."""

    ids: np.ndarray
    text: dict[str, Any]
    batch: int

    @property
    def prompt(self) -> int:
        """Tokens of a window that are its prompt when the rest is stepped through."""
        return max(1, self.ids.shape[1] // 2)


def sample(folder: Path, arch: Model, text: Path, tokens: int, batch: int) -> Sample:
    """About `tokens` tokens of `text`, in windows spread over it and shuffled: any first few are a sample.

    UserError where the folder has no tokenizer, or one that is not the model's, or the text is too short.
    """
    ids = np.array(encode_text(load_tokenizer(folder), read_text(text)[:CHARACTERS]), np.int64)
    if len(ids) < 2:
        raise UserError(f"{text}: holds {len(ids)} tokens, too few to measure quality on; name a longer text")
    if ids.max() >= arch.vocab:
        raise UserError(
            f"{folder}: tokenizer.json gives id {ids.max()}, the model knows {arch.vocab} tokens; use its own"
        )
    window = min(WINDOW, arch.positions, len(ids))
    count = max(1, min(tokens, len(ids)) // window)
    spread = ids[: len(ids) // count * count].reshape(count, -1)[:, :window]
    shuffled = spread[np.random.default_rng(0).permutation(count)]
    return Sample(shuffled, {"name": text.name, "sha256": sha256(text)}, min(batch, count))


def stepped(sample: Sample, weight_bytes: int) -> int:
    """How many of the sample's windows go through cached steps too; see STEP_BYTES."""
    count, window = sample.ids.shape
    batches = STEP_BYTES / max(1, weight_bytes) / max(1, window - sample.prompt)
    return min(count, sample.batch * max(1, round(batches)))


def measure(artifact: Artifact, sample: Sample, wanted: Arrays, noise: float, steps: int) -> dict[str, Any]:
    """Figures for the manifest. `wanted` is export/reference.py's `text`; see `figures` for `noise`.

    `whole`: all positions at once; `cached`: the first `steps` windows, in whole batches, by prompt and steps
    (absent for 0); `cached_from_whole`: what is between the two at the same positions.
    """
    whole, cached, distance = _run(artifact, sample, steps)
    window, start = sample.ids.shape[1], sample.prompt - 1
    found: dict[str, Any] = {
        "text": {**sample.text, "tokens": sample.ids.size, "window": window, "batch": sample.batch},
        "whole": figures(whole, wanted, noise),
    }
    if steps:
        count = len(cached["top"])  # whole batches
        found["cached"] = {"prompt": sample.prompt, **figures(cached, _part(wanted, count, start), noise)}
        between = figures(cached, _part(whole, count, start), noise)
        found["cached_from_whole"] = {
            "max_error": distance,
            **{key: between[key] for key in ("perplexity_ratio", "nll_error", "argmax_agreement")},
        }
    return found


def figures(found: Arrays, wanted: Arrays, noise: float) -> dict[str, Any]:
    """What `found` costs against `wanted`, both `top` [n, s] and `nll` [n, s - 1].

    `argmax_agreement` is the share of positions with the same likeliest token among the `compared`: those
    where the leading token of `wanted` leads by more than `noise` logits. `nll_error` is the mean distance of
    a token's log likelihoods (nats), which tells small differences apart that the others cannot.
    CheckFailed for what is no number.
    """
    compared = wanted["margin"] > noise if "margin" in wanted else np.ones_like(wanted["top"], bool)
    same = (found["top"] == wanted["top"])[compared]
    ours, theirs = (side["nll"].astype(np.float64) for side in (found, wanted))
    if not np.isfinite(ours).all():
        raise CheckFailed("quality: the graph gives logits that are no numbers; report this model")
    return {
        "perplexity": {"pytorch": float(np.exp(theirs.mean())), "artifact": float(np.exp(ours.mean()))},
        "perplexity_ratio": float(np.exp((ours - theirs).mean())),
        "nll_error": float(np.abs(ours - theirs).mean()),
        "argmax_agreement": float(same.mean()) if same.size else 1.0,
        "compared": int(same.size),
    }


def _part(arrays: Arrays, windows: int, start: int) -> Arrays:
    """The first `windows` windows from position `start` on."""
    return {name: array[:windows, start:] for name, array in arrays.items()}


def _run(artifact: Artifact, sample: Sample, steps: int) -> tuple[Arrays, Arrays, float]:
    """`top` and `nll` of all windows at once and of the first `steps` by steps, and their largest distance."""
    decoder = Decoder(artifact, context=sample.ids.shape[1])
    whole, cached, distance = [], [], 0.0
    for start in range(0, len(sample.ids), sample.batch):
        ids = sample.ids[start : start + sample.batch]
        logits = decoder.logits(ids)
        whole.append(scores(logits, ids[:, 1:]))
        if start < steps:
            columns = []
            for at, step in enumerate(_steps(decoder, ids, sample.prompt), sample.prompt - 1):
                distance = max(distance, float(np.abs(step - logits[:, at]).max()))
                columns.append(scores(step[:, None], ids[:, at + 1 : at + 2]))
            cached.append(_joined(columns, 1))
    return _joined(whole, 0), _joined(cached, 0), distance


def _joined(pieces: list[Arrays], axis: int) -> Arrays:
    return {
        name: np.concatenate([piece[name] for piece in pieces], axis) for name in ("top", "nll") if pieces
    }


def _steps(decoder: Decoder, ids: np.ndarray, prompt: int) -> Iterator[np.ndarray]:
    """Logits [batch, vocab] of the prompt's last token and, by cached steps, of each later one."""
    yield decoder.prefill(ids[:, :prompt])
    for column in ids[:, prompt:].T:
        yield decoder.step(column)


def scores(logits: np.ndarray, targets: np.ndarray) -> Arrays:
    """`top` int32 [b, s] and `nll` float32 [b, t] of the first t targets, given logits [b, s, vocab]."""
    top = logits.argmax(-1).astype(np.int32)
    nll = np.empty(targets.shape, np.float32)
    for row in range(len(targets)):
        for start in range(0, targets.shape[1], ROWS):
            wanted = targets[row, start : start + ROWS]
            piece = logits[row, start : start + len(wanted)]
            peak = piece.max(-1, keepdims=True)
            total = np.exp(piece - peak).sum(-1, dtype=np.float64)
            hits = piece[np.arange(len(wanted)), wanted]
            nll[row, start : start + len(wanted)] = np.log(total) + (peak[:, 0] - hits)
    return {"top": top, "nll": nll}


def spread(artifact: Artifact, ids: np.ndarray, noise: float) -> dict[str, Any]:
    """How far a row's logits move when it has neighbours: `ids` [rows, s] run together and one by one.

    Prompt, steps and all positions at once; 0 where rows cannot see each other. `noise` is what counts as 0.
    """
    decoder, prompt = Decoder(artifact, context=ids.shape[1]), max(1, ids.shape[1] // 2)
    together = _every_way(decoder, ids, prompt)
    alone = np.concatenate([_every_way(decoder, row[None], prompt) for row in ids])
    error = float(np.abs(together - alone).max())
    same = float((together.argmax(-1) == alone.argmax(-1)).mean())
    return {"rows": len(ids), "max_error": error, "argmax_agreement": same, "independent": error <= noise}


def _every_way(decoder: Decoder, ids: np.ndarray, prompt: int) -> np.ndarray:
    return np.concatenate([decoder.logits(ids), np.stack([*_steps(decoder, ids, prompt)], 1)], 1)
