"""The graph as ONNX Runtime runs it, after its own optimisations: are the weights what the recipe says?

ONNX Runtime saves it with references to the weights it left alone, so that only what it made itself is read.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx

from devices.artifact import GRAPH, Artifact
from devices.errors import CheckFailed
from devices.session import open_session
from export.architecture import Architecture
from export.operators import READERS, SCALES, TABLES, expected
from export.recipes import Recipe, layer_bits, precisions, table_bits

FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)
PACKED = (onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.UINT4, onnx.TensorProto.INT4)
LARGE = 1 << 16  # elements from which a matrix is large, or those of the model's smallest matrix, packed
CHUNK = 1 << 20


@dataclass(frozen=True)
class Weight:
    """An initializer, the nodes that read it (operator, input) and the bits that its reader says it has."""

    tensor: onnx.TensorProto
    readers: tuple[tuple[str, int], ...]
    bits: int

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


def inspect(
    artifact: Artifact, arch: Architecture, recipe: Recipe, written: Mapping[str, int]
) -> dict[str, Any]:
    """What runs, for the manifest: how many nodes of which kind, bytes by precision, bytes made at loading.

    `written` is what the builder stored by precision.

    Raises:
        CheckFailed: naming the tensor or operator: a large weight left in float where the recipe quantizes it,
            stored twice, or read by anything but a weight's operators (a dequantization, say); more than one
            vocabulary-sized weight (two where the head is not tied); an operator that is not expected.
    """
    onnx.checker.check_model(str(artifact.path / GRAPH))
    graph = optimized(artifact)
    weights = list(_weights(graph))
    large = [w for w in weights if prod(w.tensor.dims) >= _large(arch) and w.role not in ("scales", "tables")]
    _operators(graph, arch, recipe)
    for weight in large:
        _float(weight, arch, recipe)
        _read(weight, recipe)
    _vocabulary(large, arch, recipe)
    _twice(large, artifact.path, recipe)
    sizes: Counter[str] = Counter()
    for weight in weights:
        sizes[weight.role] += weight.bytes
    for kind in ("float32", "int8", "int4"):
        if sizes[kind] > written.get(kind, 0) + CHUNK:
            raise _failed(
                recipe, f"{sizes[kind]} bytes of {kind} weights run where {written.get(kind, 0)} were written"
            )
    return {
        "nodes": len(graph.node),
        "operators": dict(sorted(Counter(node.op_type for node in graph.node).items())),
        "bytes": dict(sorted(sizes.items())),
        "made_at_loading": sum(weight.bytes for weight in weights if not _place(weight.tensor)),
    }


def optimized(artifact: Artifact) -> onnx.GraphProto:
    """The graph that ONNX Runtime runs, weights that it did not touch left in their file."""
    with tempfile.TemporaryDirectory(prefix="toolchain-optimized-") as scratch:
        open_session(artifact, 1, optimized=Path(scratch) / GRAPH)
        return onnx.load(str(Path(scratch) / GRAPH), load_external_data=False).graph


def _weights(graph: onnx.GraphProto) -> Iterator[Weight]:
    readers: dict[str, list[tuple[str, int]]] = {}
    bits: dict[str, int] = {}
    for node in graph.node:
        given = next((a.i for a in node.attribute if a.name == "bits"), 32)
        for at, name in enumerate(node.input):
            readers.setdefault(name, []).append((node.op_type, at))
            bits[name] = min(given, bits.get(name, 32))
    for tensor in graph.initializer:
        yield Weight(tensor, tuple(readers.get(tensor.name, ())), bits.get(tensor.name, 32))


def _large(arch: Architecture) -> int:
    return min(LARGE, arch.hidden * arch.kv_heads * arch.head_dim // 2)


def _operators(graph: onnx.GraphProto, arch: Architecture, recipe: Recipe) -> None:
    """Only what the recipe's graph is made of."""
    used = precisions(recipe) | ({32} if arch.kind == "classifier" else set())  # its score matrix is float
    known = expected(used)
    for node in graph.node:
        if node.op_type not in known:
            raise _failed(recipe, f"operator {node.op_type} ({node.name}) is not one this recipe is made of")


def _float(weight: Weight, arch: Architecture, recipe: Recipe) -> None:
    """A large weight in float is one that the recipe keeps in float."""
    name = weight.tensor.name
    if weight.tensor.data_type in FLOATS and not _kept_in_float(name, arch, recipe):
        raise _failed(recipe, f"{name} {list(weight.tensor.dims)} is left in float")


def _kept_in_float(name: str, arch: Architecture, recipe: Recipe) -> bool:
    first, *rest = name.split(".")
    if first == "layers" and len(rest) == 3:
        return layer_bits(recipe, rest[1], int(rest[0]), arch.layers) == 32
    if first in ("embedding", "head"):
        names = ("embedding", "head") if arch.tied and arch.kind == "decoder" else (first,)
        return table_bits(recipe, *names, default=recipe.head_bits) == 32
    return first == "score" or recipe.head_bits == 32


def _read(weight: Weight, recipe: Recipe) -> None:
    """A large weight goes into operators that multiply by it or gather from it, and into nothing else."""
    known = READERS[32 if weight.tensor.data_type in FLOATS else weight.bits]
    for kind, at in weight.readers:
        if known.get(kind) != at:
            raise _failed(recipe, f"{weight.tensor.name} is worked on by {kind} in every run")


def _vocabulary(large: list[Weight], arch: Architecture, recipe: Recipe) -> None:
    """One vocabulary-sized weight, or two where embedding and head are different."""
    packed = arch.vocab * arch.hidden // 4
    found = [w.tensor.name for w in large if arch.vocab in w.tensor.dims and prod(w.tensor.dims) >= packed]
    allowed = 1 if arch.tied or arch.kind == "classifier" else 2
    if len(found) > allowed:
        raise _failed(recipe, f"{', '.join(found)} are vocabulary-sized, {allowed} may be")


def _twice(large: list[Weight], folder: Path, recipe: Recipe) -> None:
    """Nothing that ONNX Runtime made is a copy of a weight.

    Two weights of the checkpoint may be equal (a layer that was doubled); that is no copy of ours.
    """
    made = [weight for weight in large if not _place(weight.tensor)]
    if not made:
        return
    digests = {weight.tensor.name: _digest(weight, folder) for weight in large}
    for copy in made:
        for name, digest in digests.items():
            if name != copy.tensor.name and digest == digests[copy.tensor.name]:
                raise _failed(recipe, f"{name} is stored twice, again as {copy.tensor.name}")


def _digest(weight: Weight, folder: Path) -> str:
    place = _place(weight.tensor)
    if not place:
        return hashlib.sha256(onnx.numpy_helper.to_array(weight.tensor).tobytes()).hexdigest()
    digest, left = hashlib.sha256(), int(place["length"])
    with (folder / place["location"]).open("rb") as file:
        file.seek(int(place.get("offset", 0)))
        while left and (piece := file.read(min(CHUNK, left))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def _place(tensor: onnx.TensorProto) -> dict[str, str]:
    """Where an external tensor's data lies; empty for one in the graph itself."""
    return {entry.key: entry.value for entry in tensor.external_data}


def _failed(recipe: Recipe, what: str) -> CheckFailed:
    return CheckFailed(f"{recipe.name}: in the graph that runs, {what}; report this")
