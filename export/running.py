"""The graph as ONNX Runtime runs it, after its own optimisations, and the weights it reads.

ONNX Runtime saves it with references to the weights it left alone, so that only what it made itself is read.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from devices.artifact import GRAPH, Artifact
from devices.session import open_session
from export.operators import ROWS, SCALES, TABLES

FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)
PACKED = (onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.UINT4, onnx.TensorProto.INT4)
CHUNK = 1 << 20


@dataclass(frozen=True)
class Weight:
    """An initializer, the nodes that read it (operator, input), the bits that its reader says it has.

    `made`: ONNX Runtime made it; nothing was written by that name.
    """

    tensor: onnx.TensorProto
    readers: tuple[tuple[str, int], ...]
    bits: int
    made: bool

    @property
    def role(self) -> str:
        """What `bytes` counts it as: float32, int8, int4, scales or tables."""
        if any(at in SCALES.get(kind, ()) for kind, at in self.readers):
            return "scales"
        if any(at in TABLES.get(kind, ()) for kind, at in self.readers):
            return "tables"
        if self.tensor.data_type in FLOATS:
            return "float32"
        return f"int{min(self.bits, 8)}" if self.tensor.data_type in PACKED else "tables"

    @property
    def bytes(self) -> int:
        """Bytes of its data."""
        length = _place(self.tensor).get("length")
        return int(length) if length else len(onnx.numpy_helper.to_array(self.tensor).tobytes())


def optimized(artifact: Artifact) -> onnx.GraphProto:
    """The graph that ONNX Runtime runs, weights that it did not touch left in their file."""
    with tempfile.TemporaryDirectory(prefix="toolchain-optimized-") as scratch:
        open_session(artifact, 1, optimized=Path(scratch) / GRAPH)
        return load(Path(scratch) / GRAPH)


def load(path: Path) -> onnx.GraphProto:
    """A graph without the data of its external weights."""
    return onnx.load(str(path), load_external_data=False).graph


def read_weights(graph: onnx.GraphProto, written: onnx.GraphProto) -> list[Weight]:
    """Every initializer of the graph that runs, views of the same bytes as one (`Builder.view`).

    `written` is the graph that this one was made from.
    """
    readers: dict[str, list[tuple[str, int]]] = {}
    bits: dict[str, int] = {}
    for node in graph.node:
        given = next((a.i for a in node.attribute if a.name == "bits"), 8 if node.op_type in ROWS else 32)
        for at, name in enumerate(node.input):
            readers.setdefault(name, []).append((node.op_type, at))
            bits[name] = min(given, bits.get(name, 32))
    names = {tensor.name for tensor in written.initializer}
    found: list[Weight] = []
    stored = sorted(graph.initializer, key=lambda tensor: (not _place(tensor), _extent(tensor)))
    for tensor in stored:  # a view of a part follows the whole
        read, precision = tuple(readers.get(tensor.name, ())), bits.get(tensor.name, 32)
        if found and _within(tensor, found[-1].tensor):
            whole = found.pop()
            tensor, read, precision = whole.tensor, (*whole.readers, *read), min(precision, whole.bits)
        found.append(Weight(tensor, read, precision, tensor.name not in names))
    return found


def _extent(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """File, first byte and (negative) length of an external tensor; the longest of those that begin alike first."""
    place = _place(tensor)
    return place.get("location", ""), int(place.get("offset", 0)), -int(place.get("length", 0))


def _within(part: onnx.TensorProto, whole: onnx.TensorProto) -> bool:
    """Whether all of `part`'s bytes in its file are `whole`'s, which begins no later."""
    (file, start, size), (other, first, length) = _extent(part), _extent(whole)
    return bool(file) and file == other and start - size <= first - length


def digest(weight: Weight, folder: Path) -> str:
    """Hex SHA-256 of a weight's bytes, which lie in `folder` unless ONNX Runtime made them."""
    place = _place(weight.tensor)
    if not place:
        return hashlib.sha256(onnx.numpy_helper.to_array(weight.tensor).tobytes()).hexdigest()
    found, left = hashlib.sha256(), int(place["length"])
    with (folder / place["location"]).open("rb") as file:
        file.seek(int(place.get("offset", 0)))
        while left and (piece := file.read(min(CHUNK, left))):
            found.update(piece)
            left -= len(piece)
    return found.hexdigest()


def _place(tensor: onnx.TensorProto) -> dict[str, str]:
    """Where an external tensor's data lies; empty for one in the graph itself."""
    return {entry.key: entry.value for entry in tensor.external_data}
