"""Inference with an artifact: a decoder that scores and generates, a classifier that labels. No torch.

`Classifier` is in classifier.py and is named here too: this module is what a program imports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from devices import draft as drafts
from devices import generation
from devices.artifact import GRAPH, Artifact, opened
from devices.cache import Cache, past_inputs, past_shape
from devices.classifier import Classifier
from devices.errors import UserError, unknown
from devices.generation import Generation, Row, TextStream
from devices.growing import GrowingCache, new_cache
from devices.sampling import Sampling
from devices.session import dtype_of, explained, input_shapes, open_session
from devices.text import load_tokenizer, special_ids
from devices.threads import choose

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Classifier", "Decoder", "Generation", "Sampling"]

GREEDY = Sampling()
MAX_NEW_TOKENS = 64
OVERFLOW = ("error", "drop-oldest")


class Decoder:
    """A language model: one session, and one cache that a prompt and its continuation share.

    `artifact` is verified here if it is a path; `threads` defaults to what a short sweep finds fastest when
    the artifact is first opened on a machine (devices/threads.py; `threads_from` says where the number comes
    from); `context` is how many positions the cache holds, at most (and by default) all that the model has.
    """

    def __init__(
        self, artifact: Artifact | Path | str, threads: int | None = None, context: int | None = None
    ) -> None:
        self.artifact = opened(artifact, "decoder")
        positions = self.artifact.model["positions"]
        self.context = positions if context is None else context
        if not 1 <= self.context <= positions:
            raise UserError(f"context is {context}; {self.artifact.name} has 1 to {positions} positions")
        self.threads, self.threads_from = choose(self.artifact, threads, self._trial)
        self.graph = self.artifact.path / GRAPH
        self.session = open_session(self.artifact, self.threads)
        self.inputs = input_shapes(self.session)
        self.special = special_ids(self.artifact.path)
        self.cache: Cache | GrowingCache | None = None

    def _trial(self, threads: int) -> Callable[[], object]:
        """A token through a decoder with so many threads, to be timed."""
        decoder = Decoder(self.artifact, threads, context=1)
        return lambda: decoder.prefill([[0]])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The artifact's tokenizer, loaded when first asked for: ids alone need none."""
        return load_tokenizer(self.artifact.path)

    def logits(self, ids: np.ndarray | Sequence[Sequence[int]]) -> np.ndarray:
        """Logits float32 [batch, sequence, vocab] of int64 ids [batch, sequence], all positions at once.

        No past and no padding; the cache of a generation under way is left alone.
        """
        ids = self._checked(ids)
        batch, length = ids.shape
        if length > self.artifact.model["positions"]:
            raise self._overflow(f"{length} tokens")
        feeds = self._feeds(ids, np.zeros(batch, dtype=np.int64), np.full(batch, length), length, keep=0)
        for value in past_inputs(self.session):
            feeds[value.name] = np.zeros(past_shape(value, batch, 0), dtype=dtype_of(value))
        with self._explained():
            return self.session.run(["logits"], feeds)[0]

    def prefill(self, prompts: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        """Start anew with one prompt (ids, at least one) per row; logits [batch, vocab] of each row's last.

        Rows may differ in length: shorter ones are padded to the right, and their padding is never seen.
        """
        if len(prompts) == 0 or any(len(prompt) == 0 for prompt in prompts):
            raise UserError("a prompt has no tokens; give at least one per row")
        lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        longest = int(lengths.max())
        if longest > self.context:
            raise self._overflow(f"a prompt of {longest} tokens")
        ids = np.zeros((len(prompts), longest), dtype=np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        ids = self._checked(ids)
        if self.cache is None or len(prompts) not in (self.cache.batch, self.cache.rows):
            self.cache = None  # so that its memory is free before there is another
            self.cache = new_cache(
                self.artifact.cache, self.session, len(prompts), self.context, self.artifact.model["vocab"]
            )
        self.cache.use(len(prompts))
        # Only as many last positions pass through the head as the shortest row needs.
        keep = longest - int(lengths.min()) + 1
        feeds = self._feeds(ids, np.zeros_like(lengths), lengths, longest, keep)
        with self._explained():
            logits = self.cache.run(feeds, lengths)
        return logits[np.arange(len(prompts)), logits.shape[1] - 1 - (longest - lengths)]

    def step(self, ids: np.ndarray | Sequence[int], copy: bool = True) -> np.ndarray:
        """One more token per row, ids int64 [batch], after `prefill`; float32 logits [batch, vocab].

        With `copy=False` they are not the caller's to keep: they lie in the runtime's own memory, which the
        next step overwrites.
        """
        cache = self._started("step")
        ids = self._checked(np.asarray(ids, dtype=np.int64)[:, None])[:, 0]
        if len(ids) != cache.rows:
            raise UserError(f"step has {len(ids)} rows where there are {cache.rows}; give one id per row")
        total = self.length + 1
        if total > self.context:
            raise self._overflow(f"{total} tokens")
        with self._explained():
            logits = cache.step(ids, total)
        return logits.copy() if copy else logits

    def extend(self, ids: Sequence[int], keep: int = 0) -> np.ndarray:
        """Several more tokens, at least one, of the only row there is: what they would give one by one.

        Returns logits float32 [kept, vocab] of the last `keep` of them (0: all). The attention operator
        takes several tokens on a past for one row only.
        """
        cache = self._started("extend")
        if cache.rows != 1:
            raise UserError(f"extend is for one row, and there are {cache.rows}; step them one by one")
        if len(ids) == 1:
            return self.step(ids)
        block = self._checked([list(ids)])
        before, after = cache.lengths, cache.lengths + block.shape[1]
        if after[0] > self.context:
            raise self._overflow(f"{after[0]} tokens")
        with self._explained():
            return cache.run(self._feeds(block, before, after, int(after[0]), keep), after)[0]

    @property
    def length(self) -> int:
        """Positions that the longest row fills."""
        return 0 if self.cache is None else int(self.cache.lengths.max())

    def rewind(self, length: int) -> None:
        """Forget what lies beyond the first `length` positions of each row: as if it had never been fed."""
        if length < 0:
            raise UserError(f"rewind to {length}; it must be 0 or more")
        if self.cache is not None:
            self.cache.lengths = np.minimum(self.cache.lengths, length)

    def drop(self, row: int) -> None:
        """Take a row out of the batch, so that steps no longer pay for it; the last row takes its place."""
        self._started("drop").drop(row)

    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
        on_overflow: str = "error",
        draft: Decoder | None = None,
        draft_tokens: int | None = None,
    ) -> Generation:
        """Continue one prompt, a text or ids; `on_text` gets the new text piece by piece as it comes.

        What does not fit the context is an error, or with `on_overflow="drop-oldest"` loses the oldest half
        of the context, as often as it takes, and goes on with the rest as a new prompt: positions that were
        learned cannot slide. With a `draft`, a smaller model with the same tokenizer that proposes
        `draft_tokens` at a time (None: by the models' sizes), the answer is the same and its `speculation`
        says what the draft was worth (greedy and fp32 only; see devices/draft.py).
        """
        if draft is not None:
            drafts.check(self, draft, draft_tokens, sampling)
        rows = self._rows([prompt], max_new_tokens, stop, on_text, on_overflow)
        if draft is not None:
            return rows[0].finish(drafts.run(self, draft, rows[0], draft_tokens))
        generation.run(self, rows, sampling)
        return rows[0].finish()

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        on_overflow: str = "error",
    ) -> list[Generation]:
        """Continue several prompts at once; each ends on its own. A full context is met as in `generate`."""
        rows = self._rows(prompts, max_new_tokens, stop, None, on_overflow)
        generation.run(self, rows, sampling)
        return [row.finish() for row in rows]

    def _rows(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int,
        stop: Sequence[str],
        on_text: Callable[[str], None] | None,
        on_overflow: str,
    ) -> list[Row]:
        """The sequences to generate, checked."""
        if max_new_tokens < 1:
            raise UserError(f"max new tokens is {max_new_tokens}; it must be 1 or more")
        if on_overflow not in OVERFLOW:
            raise unknown("way to meet an overflow", on_overflow, OVERFLOW)
        generation.check_stop(stop)
        ids = [self.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        longest = max((len(row) for row in ids), default=0)
        if on_overflow == "drop-oldest":
            ids = [generation.newest(row, self.context) for row in ids]
        elif longest + max_new_tokens > self.context:
            raise self._overflow(f"{longest} prompt tokens and {max_new_tokens} new ones")
        texts = any(isinstance(prompt, str) for prompt in prompts) or stop or on_text is not None
        streams = [TextStream(self.tokenizer, row, stop, on_text) if texts else None for row in ids]
        eos = self.special["eos"]
        return [Row(row, max_new_tokens, eos, stream) for row, stream in zip(ids, streams, strict=True)]

    def encode(self, text: str) -> list[int]:
        """A prompt's ids as the tokenizer makes them; an empty text is the model's first token alone."""
        ids = self.tokenizer.encode(text).ids or self.special["bos"][:1]
        if not ids:
            raise UserError(
                f"the prompt is empty and {self.artifact.name} names no first token; give some text"
            )
        return ids

    def _started(self, what: str) -> Cache | GrowingCache:
        if self.cache is None:
            raise UserError(f"{what} before prefill: give the prompt to prefill first")
        return self.cache

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self.graph, "run")

    def _feeds(
        self, ids: np.ndarray, before: np.ndarray, after: np.ndarray, total: int, keep: int
    ) -> dict[str, np.ndarray]:
        """What the graph takes and lists: ids [batch, s] that follow `before` [batch] positions."""
        steps = np.arange(ids.shape[1])
        feeds = {
            "input_ids": ids,
            "attention_mask": (np.arange(total) < after[:, None]).astype(np.int64),
            # Padding repeats the last real position, so that no position lies outside a learned table.
            "position_ids": np.minimum(before[:, None] + steps, after[:, None] - 1),
            # A scalar or a list of one, as the graph declares it.
            "logits_to_keep": np.full([1] * len(self.inputs.get("logits_to_keep", [])), keep, dtype=np.int64),
        }
        return {name: array for name, array in feeds.items() if name in self.inputs}

    def _checked(self, ids: np.ndarray | Sequence[Sequence[int]]) -> np.ndarray:
        """int64 [batch, sequence] with every id in the vocabulary, or a UserError."""
        ids = np.asarray(ids, dtype=np.int64)
        vocab = self.artifact.model["vocab"]
        if ids.ndim != 2 or ids.size == 0:
            raise UserError(f"token ids have shape {ids.shape}; give [batch, sequence], at least one of each")
        if ids.view(np.uint64).max() >= vocab:  # a negative id is a huge one there
            raise UserError(
                f"token ids run from {ids.min()} to {ids.max()}, and {self.artifact.name} knows 0 to "
                f"{vocab - 1}; use the tokenizer it came with"
            )
        return ids

    def _overflow(self, what: str) -> UserError:
        return UserError(
            f"{what} do not fit the {self.context} positions of {self.artifact.name}; shorten the prompt, "
            "ask for fewer new tokens, or drop the oldest"
        )
