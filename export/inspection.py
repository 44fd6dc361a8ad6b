"""Is the graph that ONNX Runtime runs what the recipe says? Its weights and operators, looked at one by one."""

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import onnx

from devices.artifact import GRAPH, Artifact
from devices.errors import CheckFailed
from export.architecture import Architecture
from export.operators import READERS, expected
from export.recipes import Recipe, layer_bits, precisions, table_bits
from export.running import FLOATS, Weight, digest, load, optimized, read_weights

LARGE = 1 << 16  # elements from which a matrix is large, or those of the model's smallest matrix, packed
SLACK = 1 << 20  # bytes of small constants that ONNX Runtime may add


def inspect(
    artifact: Artifact, arch: Architecture, recipe: Recipe, written: Mapping[str, int]
) -> dict[str, Any]:
    """`examine` the graph that ONNX Runtime makes of an artifact's, after ONNX's own check of the latter."""
    onnx.checker.check_model(str(artifact.path / GRAPH))
    return examine(optimized(artifact), artifact, arch, recipe, written)


def examine(
    graph: onnx.GraphProto, artifact: Artifact, arch: Architecture, recipe: Recipe, written: Mapping[str, int]
) -> dict[str, Any]:
    """What runs, for the manifest: how many nodes of which kind, bytes by precision, bytes made at loading.

    `artifact` holds the graph as written and the weights; `written` is what the builder stored by precision.

    Raises:
        CheckFailed: naming the tensor or operator: a large weight left in float where the recipe quantizes it,
            stored twice, or read by anything but a weight's operators (a dequantization, say); more than one
            vocabulary-sized weight (two where the head is not tied); an operator that is not expected.
    """
    weights = read_weights(graph, load(artifact.path / GRAPH))
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
        if sizes[kind] > written.get(kind, 0) + SLACK:
            more = f"{sizes[kind]} bytes of {kind} weights run where {written.get(kind, 0)} were written"
            raise _failed(recipe, more)
    return {
        "nodes": len(graph.node),
        "operators": dict(sorted(Counter(node.op_type for node in graph.node).items())),
        "bytes": dict(sorted(sizes.items())),
        "made_at_loading": sum(weight.bytes for weight in weights if weight.made),
    }


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
    known = READERS.get(32 if weight.tensor.data_type in FLOATS else weight.bits, {})
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
    made = [weight for weight in large if weight.made]
    digests = {weight.tensor.name: digest(weight, folder) for weight in large} if made else {}
    for copy in made:
        for name, found in digests.items():
            if name != copy.tensor.name and found == digests[copy.tensor.name]:
                raise _failed(recipe, f"{name} is stored twice, again as {copy.tensor.name}")


def _failed(recipe: Recipe, what: str) -> CheckFailed:
    return CheckFailed(f"{recipe.name}: in the graph that runs, {what}; report this")
