"""The key-value cache of a graph that was traced: it grows, each run's present being the next one's past."""

from typing import Any

import numpy as np
import onnxruntime as ort

from devices.cache import PAST, PRESENT, Cache, past_inputs, past_shape
from devices.session import dtype_of, input_shapes


class GrowingCache:
    """What `Cache` is, for a graph whose present is a new tensor, longer than its past by what went in.

    A batch's rows end together, as if padded to the left: the graph counts a sliding window in places, and
    between two places of a row there must be no padding.
    """

    def __init__(self, session: Any, batch: int, context: int, vocab: int) -> None:
        self.session, self.batch, self.context, self.vocab = session, batch, context, vocab
        self.inputs = input_shapes(session)
        self.presents = {v.name.replace(PAST, PRESENT, 1): v for v in past_inputs(session)}
        self.use(batch)

    def use(self, rows: int) -> None:
        """Start anew with so many rows."""
        self.lengths = self.held = np.zeros(rows, dtype=np.int64)
        self.past = {name: _empty(value, rows) for name, value in self.presents.items()}

    def drop(self, row: int) -> None:
        """Give up a row; the last one takes its place."""
        order = np.arange(self.rows - 1)
        order[row:][:1] = self.rows - 1
        self.past = {name: _value(past.numpy()[order]) for name, past in self.past.items()}
        self.lengths, self.held = self.lengths[order], self.held[order]

    @property
    def rows(self) -> int:
        """How many rows are in use."""
        return len(self.lengths)

    def run(self, feeds: dict[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
        """Run the graph on `feeds`, after which rows are `lengths` long; its logits [rows, kept, vocab]."""
        self._fit()
        starts = not self.lengths.any()
        if not starts:
            feeds = {**feeds, "attention_mask": feeds["attention_mask"][:, ::-1]}
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, _value(array))
        for name, value in self.presents.items():
            binding.bind_ortvalue_input(value.name, self.past[name])
            binding.bind_output(name, "cpu")
        binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(binding)
        *found, logits = binding.get_outputs()
        if starts and lengths.min() < lengths.max():
            # A prompt's padding is on the right: each row's is moved to its start.
            found = [_moved(past, np.zeros_like(lengths), lengths) for past in found]
        self.past, self.lengths, self.held = dict(zip(self.presents, found, strict=True)), lengths, lengths
        return logits.numpy()

    def step(self, ids: np.ndarray, total: int) -> np.ndarray:
        """One more token for each row, ids int64 [rows], the longest then having `total`: [rows, vocab]."""
        after = self.lengths + 1
        feeds = {
            "input_ids": ids[:, None],
            "attention_mask": (np.arange(total) < after[:, None]).astype(np.int64),
            "position_ids": self.lengths[:, None],
            "logits_to_keep": np.ones([1] * len(self.inputs.get("logits_to_keep", [])), dtype=np.int64),
        }
        return self.run({name: array for name, array in feeds.items() if name in self.inputs}, after)[:, -1]

    def _fit(self) -> None:
        """Forget what lies beyond `lengths`, and places that no row needs any more."""
        # Not the most that a row holds: the longest one may have been dropped.
        places = next(iter(self.past.values())).shape()[2]
        if places == self.lengths.max() and (self.held == self.lengths).all():
            return
        self.past = {name: _moved(past, places - self.held, self.lengths) for name, past in self.past.items()}
        self.held = self.lengths


def new_cache(kind: str, session: Any, batch: int, context: int, vocab: int) -> Cache | GrowingCache:
    """An empty cache of the `kind` that the artifact's manifest names, for `batch` rows."""
    return (GrowingCache if kind == "growing" else Cache)(session, batch, context, vocab)


def _empty(value: Any, rows: int) -> Any:
    return _value(np.zeros(past_shape(value, rows, 0), dtype_of(value)))


def _value(array: np.ndarray) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _moved(past: Any, starts: np.ndarray, lengths: np.ndarray) -> Any:
    """`lengths` places of each row of a past [rows, kv_heads, places, head_dim] from `starts` on, ending together."""
    old = past.numpy()
    new = np.zeros((*old.shape[:2], int(lengths.max()), old.shape[3]), old.dtype)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        new[row, :, new.shape[2] - length :] = old[row, :, start : start + length]
    return _value(new)
