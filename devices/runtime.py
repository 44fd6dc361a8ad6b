"""Inference with an artifact: a decoder that scores and generates, a classifier that labels. No torch.

`Classifier` is in classifier.py and is named here too: this module is what a program imports.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from devices import generation
from devices.artifact import GRAPH, Artifact, opened
from devices.cache import Cache, GrowingCache, new_cache, past_inputs, past_shape
from devices.classifier import Classifier
from devices.errors import UserError
from devices.generation import Generation, TextStream
from devices.sampling import Sampling
from devices.session import dtype_of, explained, input_shapes, open_session, thread_count
from devices.text import load_tokenizer, special_ids

__all__ = ["Classifier", "Decoder", "Generation", "Sampling"]

GREEDY = Sampling()
MAX_NEW_TOKENS = 64


class Decoder:
    """A language model: one session, and one cache that a prompt and its continuation share.

    `artifact` is verified here if it is a path; `threads` defaults to the physical cores; `context` is how
    many positions the cache holds, at most (and by default) all that the model has.
    """

    def __init__(
        self, artifact: Artifact | Path | str, threads: int | None = None, context: int | None = None
    ) -> None:
        self.artifact = opened(artifact, "decoder")
        positions = self.artifact.model["positions"]
        self.context = positions if context is None else context
        if not 1 <= self.context <= positions:
            raise UserError(f"context is {context}; {self.artifact.name} has 1 to {positions} positions")
        self.threads = thread_count(threads)
        self.session = open_session(self.artifact, self.threads)
        self.inputs = input_shapes(self.session)
        self.special = special_ids(self.artifact.path)
        self.cache: Cache | GrowingCache | None = None

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
        with explained(self.artifact.path / GRAPH, "run"):
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
        if self.cache is None or self.cache.batch != len(prompts):
            self.cache = new_cache(self.artifact.cache, self.session, len(prompts), self.context)
        # Only as many last positions pass through the head as the shortest row needs.
        keep = longest - int(lengths.min()) + 1
        logits = self._run(self._feeds(ids, np.zeros_like(lengths), lengths, longest, keep), lengths)
        return logits[np.arange(len(prompts)), logits.shape[1] - 1 - (longest - lengths)]

    def step(self, ids: np.ndarray | Sequence[int]) -> np.ndarray:
        """One more token per row, ids int64 [batch], after `prefill`; float32 logits [batch, vocab]."""
        if self.cache is None:
            raise UserError("step before prefill: give the prompt to prefill first")
        ids = self._checked(np.asarray(ids, dtype=np.int64)[:, None])
        if len(ids) != self.cache.batch:
            raise UserError(
                f"step has {len(ids)} rows where prefill had {self.cache.batch}; give one id per row"
            )
        before = self.cache.lengths
        if before.max() >= self.context:
            raise self._overflow(f"{before.max() + 1} tokens")
        return self._run(self._feeds(ids, before, before + 1, int(before.max()) + 1, keep=1), before + 1)[
            :, -1
        ]

    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
    ) -> Generation:
        """Continue one prompt, a text or ids; `on_text` gets the new text piece by piece as it comes."""
        return self._generate([prompt], max_new_tokens, sampling, stop, on_text)[0]

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
    ) -> list[Generation]:
        """Continue several prompts at once; each ends on its own."""
        return self._generate(prompts, max_new_tokens, sampling, stop, None)

    def _generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling,
        stop: Sequence[str],
        on_text: Callable[[str], None] | None,
    ) -> list[Generation]:
        if max_new_tokens < 1:
            raise UserError(f"max new tokens is {max_new_tokens}; it must be 1 or more")
        generation.check_stop(stop)
        texts = any(isinstance(prompt, str) for prompt in prompts) or stop or on_text is not None
        rows = [self.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        longest = max((len(row) for row in rows), default=0)
        if longest + max_new_tokens > self.context:
            raise self._overflow(f"{longest} prompt tokens and {max_new_tokens} new ones")
        has_tokenizer = texts or (self.artifact.path / "tokenizer.json").is_file()
        streams = [TextStream(self.tokenizer, row, stop, on_text) if has_tokenizer else None for row in rows]
        return generation.run(self, rows, max_new_tokens, sampling, self.special["eos"], streams)

    def encode(self, text: str) -> list[int]:
        """A prompt's ids as the tokenizer makes them; an empty text is the model's first token alone."""
        ids = self.tokenizer.encode(text).ids or self.special["bos"][:1]
        if not ids:
            raise UserError(
                f"the prompt is empty and {self.artifact.name} names no first token; give some text"
            )
        return ids

    def _run(self, feeds: dict[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
        """Run on the cache, after which its rows are `lengths` [batch] long; logits [batch, kept, vocab]."""
        assert self.cache is not None
        with explained(self.artifact.path / GRAPH, "run"):
            return self.cache.run(feeds, lengths)

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
        if ids.min() < 0 or ids.max() >= vocab:
            raise UserError(
                f"token ids run from {ids.min()} to {ids.max()}, and {self.artifact.name} knows 0 to "
                f"{vocab - 1}; use the tokenizer it came with"
            )
        return ids

    def _overflow(self, what: str) -> UserError:
        return UserError(
            f"{what} do not fit the {self.context} positions of {self.artifact.name}; shorten the prompt, "
            "or ask for fewer new tokens"
        )
