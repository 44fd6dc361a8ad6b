"""The key-value cache: one fixed buffer per layer and side, bound to the graph as past and present alike.

GroupQueryAttention sees that both are the same memory and writes new positions in place, so that a step
copies nothing and allocates nothing but its logits. Graphs that were traced do not have that operator: theirs
grows, each run's present being the next one's past. The manifest says which.
"""

import math
import mmap
from typing import Any

import numpy as np
import onnxruntime as ort

from devices.errors import UserError
from devices.session import dtype_of

PAST, PRESENT = "past_key_values.", "present."


class Cache:
    """Buffers [batch, kv_heads, context, head_dim] for each layer's keys and values; zeroed pages, which
    the system hands out as they are written, so that an unused context costs no memory.

    `lengths` int64 [batch]: positions of each row that are filled. Rows are packed to the left.
    """

    def __init__(self, session: Any, batch: int, context: int) -> None:
        self.session, self.batch, self.context = session, batch, context
        self.lengths = np.zeros(batch, dtype=np.int64)
        self.binding = session.io_binding()
        self.buffers: dict[str, np.ndarray] = {}
        outputs = {value.name for value in session.get_outputs()}
        for value in past_inputs(session):
            present = value.name.replace(PAST, PRESENT, 1)
            if present not in outputs:
                raise UserError(f"the graph takes {value.name} but gives no {present}; export it again")
            self.buffers[value.name] = _zeros(past_shape(value, batch, context), dtype_of(value))
            shared = ort.OrtValue.ortvalue_from_numpy(self.buffers[value.name])
            self.binding.bind_ortvalue_input(value.name, shared)
            self.binding.bind_ortvalue_output(present, shared)

    def run(self, feeds: dict[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
        """Run the graph on `feeds`, after which rows are `lengths` long; its logits [batch, kept, vocab]."""
        for name, array in feeds.items():
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            self.binding.bind_ortvalue_input(name, value)
        # Bound anew each time: ONNX Runtime would otherwise write into the last run's logits.
        self.binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(self.binding)
        self.lengths = lengths
        return self.binding.get_outputs()[-1].numpy()  # bound after the presents, so it is the last


class GrowingCache:
    """The same for a graph whose present is a new tensor, longer than its past by what went in.

    A batch's rows end together, as if padded to the left: the graph counts a sliding window in places, and
    between two places of a row there must be no padding.
    """

    def __init__(self, session: Any, batch: int, context: int) -> None:
        self.session, self.batch, self.context = session, batch, context
        self.lengths = np.zeros(batch, dtype=np.int64)
        self.presents = {v.name.replace(PAST, PRESENT, 1): v for v in past_inputs(session)}
        self.past: dict[str, Any] = {}

    def run(self, feeds: dict[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
        """As `Cache.run`; feeds whose mask is as wide as their ids start anew."""
        mask = feeds["attention_mask"]
        starts = mask.shape[1] == feeds["input_ids"].shape[1]
        if starts:
            self.past = {name: _empty(value, self.batch) for name, value in self.presents.items()}
        else:
            feeds = {**feeds, "attention_mask": mask[:, ::-1]}
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
        for name, value in self.presents.items():
            binding.bind_ortvalue_input(value.name, self.past[name])
            binding.bind_output(name, "cpu")
        binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(binding)
        *found, logits = binding.get_outputs()
        if starts and lengths.min() < lengths.max():
            found = [_ends_together(present, lengths) for present in found]
        self.past, self.lengths = dict(zip(self.presents, found, strict=True)), lengths
        return logits.numpy()


def new_cache(kind: str, session: Any, batch: int, context: int) -> Cache | GrowingCache:
    """An empty cache of the `kind` that the artifact's manifest names, for `batch` rows."""
    return (GrowingCache if kind == "growing" else Cache)(session, batch, context)


def _empty(value: Any, batch: int) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(past_shape(value, batch, 0), dtype_of(value)))


def _ends_together(present: Any, lengths: np.ndarray) -> Any:
    """The present [batch, kv_heads, longest, head_dim] with each row's padding moved from its end to its start."""
    rows = zip(present.numpy(), lengths.max() - lengths, strict=True)
    return ort.OrtValue.ortvalue_from_numpy(np.stack([np.roll(row, shift, axis=1) for row, shift in rows]))


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
