"""Generating: tokens picked one by one, text streamed in whole characters, stopped by ids or strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from devices.errors import UserError
from devices.sampling import Sampling, generators, pick


@dataclass(frozen=True)
class Speculation:
    """What a draft was worth: tokens it proposed, `at_a_time` and in all, how many of them the model
    accepted, and how often the model ran for `tokens` new ones (the prompt's run counts; without a draft it
    is once a token)."""

    at_a_time: int
    proposed: int
    accepted: int
    runs: int
    tokens: int

    @property
    def acceptance_rate(self) -> float | None:
        """Share of the proposed tokens that were accepted; None where none was proposed."""
        return self.accepted / self.proposed if self.proposed else None

    @property
    def tokens_per_run(self) -> float:
        """New tokens for each run of the model."""
        return self.tokens / self.runs

    def as_dict(self) -> dict[str, Any]:
        """The counts and both rates."""
        rates = {"acceptance_rate": self.acceptance_rate, "tokens_per_run": self.tokens_per_run}
        return {**asdict(self), **rates}


@dataclass(frozen=True)
class Generation:
    """New token ids (an end token not among them), their text, and why they ended: eos, stop or length.

    The text is empty where only ids went in: the tokenizer is not loaded for them.
    """

    ids: list[int]
    text: str
    finish_reason: str
    speculation: Speculation | None = field(default=None, compare=False)


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
        from tokenizers.decoders import DecodeStream

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


@dataclass
class Row:
    """A sequence under way: its prompt, the new ids, and why it ended (None: it goes on)."""

    prompt: list[int]
    max_new_tokens: int
    eos: Sequence[int]
    stream: TextStream | None = None
    ids: list[int] = field(default_factory=list)
    reason: str | None = None

    def take(self, token: int) -> bool:
        """Add one more id; whether the sequence has ended with it."""
        if token in self.eos:
            self.reason = "eos"
            return True
        self.ids.append(token)
        if self.stream is not None and self.stream.add(token):
            self.reason = "stop"
        elif len(self.ids) == self.max_new_tokens:
            self.reason = "length"
        return self.reason is not None

    def finish(self, speculation: Speculation | None = None) -> Generation:
        """The result, once it has ended."""
        text = "" if self.stream is None else self.stream.finish()
        return Generation(self.ids, text, self.reason or "length", speculation)


def run(decoder: Any, rows: Sequence[Row], sampling: Sampling) -> None:
    """Generate for every row at once, until all have ended; one that has leaves the batch to the others.

    A sequence that fills the context goes on as a new prompt without its oldest tokens (`newest`).
    """
    live = list(zip(rows, generators(sampling, len(rows)), strict=True))
    logits = decoder.prefill([row.prompt for row in rows])
    while True:
        ended = [at for at, (row, rng) in enumerate(live) if row.take(pick(logits[at], sampling, rng))]
        if len(ended) == len(live):
            return
        for at in reversed(ended):
            live[at] = live[-1]
            live.pop()
            decoder.drop(at)
        if decoder.length == decoder.context:
            logits = decoder.prefill([newest([*row.prompt, *row.ids], decoder.context) for row, _ in live])
        else:
            logits = decoder.step([row.ids[-1] for row, _ in live], copy=False)


def newest(ids: list[int], context: int) -> list[int]:
    """The end of `ids` that fits: without as many halves of the context as it takes, oldest first."""
    half = (context + 1) // 2
    return ids[max(-(-(len(ids) - context) // half), 0) * half :]
