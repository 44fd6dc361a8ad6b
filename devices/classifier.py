"""Classifying with an artifact: texts in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from devices.artifact import GRAPH, Artifact, opened
from devices.errors import UserError
from devices.session import explained, input_shapes, open_session
from devices.text import encode_row, load_tokenizer, special_ids
from devices.threads import choose

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROWS_AT_ONCE = 32
TRIAL_TOKENS = 32


class Classifier:
    """A sentence or pair classifier: rows of text in, logits out; the last real token is what is read.

    `threads` defaults to what a short sweep finds fastest, as a Decoder's.
    """

    def __init__(self, artifact: Artifact | Path | str, threads: int | None = None) -> None:
        self.artifact = opened(artifact, "classifier")
        self.max_tokens = _max_tokens(self.artifact)
        self.threads, self.threads_from = choose(self.artifact, threads, self._trial)
        self.session = open_session(self.artifact, self.threads)
        self.inputs = input_shapes(self.session)
        special = special_ids(self.artifact.path)
        self.separator = (special["eos"] or [0])[0]
        self.pad = (special["pad"] or [self.separator])[0]

    def _trial(self, threads: int) -> Callable[[], object]:
        """A sentence through a classifier with so many threads, to be timed."""
        classifier = Classifier(self.artifact, threads)
        return lambda: classifier.logits([[0] * min(TRIAL_TOKENS, self.max_tokens)])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The artifact's tokenizer, loaded when first asked for."""
        return load_tokenizer(self.artifact.path)

    def encode(self, rows: Sequence[tuple[str, str | None]]) -> list[list[int]]:
        """Ids of sentences or pairs, by the rule training uses."""
        return [encode_row(self.tokenizer, a, b, self.max_tokens, self.separator) for a, b in rows]

    def predict(self, rows: Sequence[tuple[str, str | None]], batch: int = ROWS_AT_ONCE) -> np.ndarray:
        """Logits float32 [rows, labels], in the order given; rows of like length run together."""
        return self.predict_ids(self.encode(rows), batch)

    def predict_ids(self, rows: Sequence[Sequence[int]], batch: int = ROWS_AT_ONCE) -> np.ndarray:
        """The same for rows of ids, one id or more each."""
        if not rows or any(len(row) == 0 for row in rows):
            raise UserError(
                "there is no row to classify, or one without tokens; give at least one token per row"
            )
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        pieces = []
        for start in range(0, len(order), batch):
            pieces.append(self.logits([rows[row] for row in order[start : start + batch]]))
        result = np.concatenate(pieces)
        return result[np.argsort(order)]

    def logits(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Logits float32 [batch, labels] of one batch of ids, padded to the right to its longest row."""
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), self.pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
            mask[at, : len(row)] = 1
        positions = np.broadcast_to(np.arange(longest), ids.shape)
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        feeds = {name: array for name, array in feeds.items() if name in self.inputs}
        with explained(self.artifact.path / GRAPH, "run"):
            return self.session.run(["logits"], feeds)[0]


def _max_tokens(artifact: Artifact) -> int:
    """Tokens a row keeps: as many as in training, where the manifest says, and never more than positions."""
    glue = (artifact.manifest.get("lineage") or {}).get("glue") or {}
    trained = (artifact.manifest.get("task") or {}).get("max_tokens") or glue.get("max_tokens")
    positions = artifact.model["positions"]
    return min(trained, positions) if isinstance(trained, int) and trained > 0 else positions
