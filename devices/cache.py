"""The key-value cache: one fixed buffer per layer and side, bound to the graph as past and present alike.

GroupQueryAttention sees that both are the same memory and writes new positions in place, so that a step
copies nothing and allocates nothing: its inputs and its logits have places of their own too (`Step`).
Graphs that were traced do not have that operator: see devices/growing.py.
"""

import math
import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from devices.errors import UserError
from devices.session import dtype_of, input_shapes

PAST, PRESENT = "past_key_values.", "present."


class Cache:
    """Buffers [batch, kv_heads, context, head_dim] for each layer's keys and values; zeroed pages, which
    the system hands out as they are written, so that an unused context costs no memory.

    `lengths` int64 [rows]: positions of each row that are filled; setting a smaller one forgets what lies
    beyond. Rows are packed to the left. The first `rows` of the batch are in use.
    """

    def __init__(self, session: Any, batch: int, context: int, vocab: int) -> None:
        self.session, self.batch, self.context, self.vocab = session, batch, context, vocab
        self.buffers: dict[str, np.ndarray] = {}
        outputs = {value.name for value in session.get_outputs()}
        for value in past_inputs(session):
            present = value.name.replace(PAST, PRESENT, 1)
            if present not in outputs:
                raise UserError(f"the graph takes {value.name} but gives no {present}; export it again")
            self.buffers[value.name] = _zeros(past_shape(value, batch, context), dtype_of(value))
        self.lengths = np.zeros(batch, dtype=np.int64)
        self._bind()

    def use(self, rows: int) -> None:
        """Start anew with so many rows, at most `batch`."""
        changed = rows != self.rows
        self.lengths = np.zeros(rows, dtype=np.int64)
        if changed:
            self._bind()

    def drop(self, row: int) -> None:
        """Give up a row; the last one takes its place."""
        last = self.rows - 1
        if row < last:
            filled = int(self.lengths[last])
            for buffer in self.buffers.values():
                buffer[row, :, :filled] = buffer[last, :, :filled]
            self.lengths[row] = self.lengths[last]
        self.lengths = self.lengths[:last].copy()
        self._bind()

    @property
    def rows(self) -> int:
        """How many rows are in use."""
        return len(self.lengths)

    def _bind(self) -> None:
        self.binding = bound(self.session, self.buffers, self.rows)
        self.binding.bind_output("logits", "cpu")
        self._step: Step | None = None

    def run(self, feeds: Mapping[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
        """Run the graph on `feeds`, after which rows are `lengths` long; its logits [rows, kept, vocab]."""
        for name, array in feeds.items():
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            self.binding.bind_ortvalue_input(name, value)
        self.session.run_with_iobinding(self.binding)
        self.lengths = lengths
        logits = self.binding.get_outputs()[-1].numpy()  # bound after the presents, so it is the last
        # Bound anew: ONNX Runtime would otherwise write the next run's logits into these.
        self.binding.bind_output("logits", "cpu")
        return logits

    def step(self, ids: np.ndarray, total: int) -> np.ndarray:
        """One more token for each row, ids int64 [rows], the longest then having `total`.

        Returns logits [rows, vocab] in memory that the next step overwrites.
        """
        if self._step is None:
            self._step = Step(self.session, self.buffers, self.rows, self.context, self.vocab)
        logits = self._step.run(ids, self.lengths, total)
        self.lengths = self.lengths + 1
        return logits


class Step:
    """A run of one token per row in which nothing moves: each input and the logits have a fixed place.

    Only `attention_mask` is bound anew each time, since its width says how long the rows are: a longer
    view of one buffer.
    """

    def __init__(
        self, session: Any, buffers: Mapping[str, np.ndarray], rows: int, context: int, vocab: int
    ) -> None:
        self.session = session
        self.binding = bound(session, buffers, rows)
        inputs = input_shapes(session)
        self.ids = np.zeros((rows, 1), dtype=np.int64)
        self.positions = np.zeros((rows, 1), dtype=np.int64)
        self.mask = np.ones(rows * context, dtype=np.int64) if "attention_mask" in inputs else None
        keep = np.ones([1] * len(inputs.get("logits_to_keep", [])), dtype=np.int64)
        fixed = {"input_ids": self.ids, "position_ids": self.positions, "logits_to_keep": keep}
        for name in fixed.keys() & inputs.keys():
            self.binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(fixed[name]))
        output = next(value for value in session.get_outputs() if value.name == "logits")
        self.logits = np.empty((rows, 1, vocab), dtype=dtype_of(output))
        self.binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self.logits))

    def run(self, ids: np.ndarray, lengths: np.ndarray, total: int) -> np.ndarray:
        """Logits [rows, vocab] of ids int64 [rows] that follow `lengths` [rows] positions, below `total`."""
        self.ids[:, 0] = ids
        self.positions[:, 0] = lengths
        if self.mask is not None:
            rows = len(lengths)
            mask = self.mask[: rows * total].reshape(rows, total)
            if rows > 1:  # one row's mask is all ones
                np.less_equal(np.arange(total), lengths[:, None], out=mask, casting="unsafe")
            self.binding.bind_cpu_input("attention_mask", mask)
        self.session.run_with_iobinding(self.binding)
        return self.logits[:, 0]


def bound(session: Any, buffers: Mapping[str, np.ndarray], rows: int) -> Any:
    """A binding with the first `rows` of the buffers as past and present."""
    binding = session.io_binding()
    for name, buffer in buffers.items():
        shared = ort.OrtValue.ortvalue_from_numpy(buffer[:rows])
        binding.bind_ortvalue_input(name, shared)
        binding.bind_ortvalue_output(name.replace(PAST, PRESENT, 1), shared)
    return binding


def _zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeroed memory in small pages that become resident one by one, as they are written.

    np.zeros asks the kernel for huge pages: a head's first position would then take the room of thousands
    (a 30-layer model with 8192 positions: 248 MB resident after a prompt of 128 tokens instead of 6).
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype=dtype).reshape(shape)


def past_inputs(session: Any) -> list[Any]:
    """The session's inputs that hold the past."""
    return [value for value in session.get_inputs() if value.name.startswith(PAST)]


def past_shape(value: Any, batch: int, positions: int) -> tuple[int, int, int, int]:
    """The shape of one past input for `batch` rows of `positions`; kv_heads and head_dim are the graph's."""
    shape = value.shape
    if len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
        raise UserError(f"{value.name} has shape {shape} where [batch, kv_heads, past, head_dim] is expected")
    return (batch, shape[1], positions, shape[3])
