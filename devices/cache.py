"""The key-value cache: one fixed buffer per layer and side, bound to the graph as past and present alike.

GroupQueryAttention sees that both are the same memory and writes new positions in place, so that a step
copies nothing and allocates nothing but its logits.
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
