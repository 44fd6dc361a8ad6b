"""Generating: tokens picked one by one, text streamed in whole characters, stopped by ids or strings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers.decoders import DecodeStream

from devices.errors import UserError
from devices.sampling import Sampling, generators, pick


@dataclass(frozen=True)
class Generation:
    """New token ids (an end token not among them), their text, and why they ended: eos, stop or length."""

    ids: list[int]
    text: str
    finish_reason: str


class TextStream:
    """Ids in, text out in pieces that are whole characters and never part of a stop string.

    A character whose last byte never came is not in the text; neither is the stop string.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: Sequence[int] = (),
        stop: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self.tokenizer, self.stop, self.on_text = tokenizer, tuple(stop), on_text
        # The prompt goes first so that a word's leading space survives decoders that strip it at a start.
        self.decoder = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        self.text, self.sent = "", 0

    def add(self, token: int) -> bool:
        """Take one more id; True when the text has come to a stop string, which ends it."""
        self.text += self.decoder.step(self.tokenizer, token) or ""
        found = [
            at for at in (self.text.find(stop, self._search_from(stop)) for stop in self.stop) if at >= 0
        ]
        if found:
            self.text = self.text[: min(found)]
            self._send(len(self.text))
            return True
        held = max((_overlap(self.text, stop) for stop in self.stop), default=0)
        self._send(len(self.text) - held)
        return False

    def finish(self) -> str:
        """The whole text; what was held back in case a stop string came is sent now."""
        self._send(len(self.text))
        return self.text

    def _search_from(self, stop: str) -> int:
        return max(self.sent - len(stop) + 1, 0)

    def _send(self, end: int) -> None:
        if end > self.sent:
            if self.on_text is not None:
                self.on_text(self.text[self.sent : end])
            self.sent = end


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that may be the start of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def check_stop(stop: Sequence[str]) -> None:
    """UserError for an empty stop string, which would end every text before it starts."""
    if any(not text for text in stop):
        raise UserError(
            "a stop string is empty; leave --stop away to stop at the end token or the length only"
        )


def run(
    decoder: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    eos: Sequence[int],
    streams: Sequence[TextStream | None],
) -> list[Generation]:
    """Generate for every prompt (ids) at once; a row that ended waits, unheard, until all have.

    `decoder` offers `prefill(list of ids) -> float [batch, vocab]` and `step(int64 [batch])` likewise.
    """
    rows = range(len(prompts))
    rngs = generators(sampling, len(prompts))
    ids: list[list[int]] = [[] for _ in rows]
    reasons: list[str | None] = [None for _ in rows]
    logits = decoder.prefill(prompts)
    for done in range(1, max_new_tokens + 1):
        following = np.zeros(len(prompts), dtype=np.int64)
        for row in rows:
            if reasons[row] is None:
                following[row] = token = pick(logits[row], sampling, rngs[row])
                reasons[row] = _take(token, ids[row], eos, streams[row])
        if done == max_new_tokens or all(reasons):
            break
        logits = decoder.step(following)
    texts = ["" if stream is None else stream.finish() for stream in streams]
    return [Generation(ids[row], texts[row], reasons[row] or "length") for row in rows]


def _take(token: int, ids: list[int], eos: Sequence[int], stream: TextStream | None) -> str | None:
    """Add a token to a row; why the row ends with it, or None."""
    if token in eos:
        return "eos"
    ids.append(token)
    return "stop" if stream is not None and stream.add(token) else None
