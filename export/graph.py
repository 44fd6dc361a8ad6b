"""The inference graph of a decoder or a classifier, written node by node from an architecture's description.

Residual sums and norms are two nodes: the fused operator is slower on a prompt and no faster on a step
(docs/log.md). Rows may be padded on either side: see export/padding.py.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from export.architecture import Architecture
from export.attention import Context, attention, context, wants_positions
from export.builder import CONTRIB, DATA, Builder, typed, value
from export.checkpoint import Checkpoint
from export.families import GELUS
from export.padding import Packing, from_left, pack, to_left
from export.recipes import Recipe
from export.weights import MINOR_BITS, Source, gather, head, project, table, vector

INT64 = ir.DataType.INT64
Values = list[ir.Value]


def write_graph(
    checkpoint: Checkpoint,
    arch: Architecture,
    recipe: Recipe,
    folder: Path,
    producer: str,
    make_source: Callable[..., Source] = Source,
) -> dict[str, int]:
    """Write model.onnx and model.onnx.data into `folder`; returns stored bytes by precision."""
    with (folder / DATA).open("wb") as stream:
        builder = Builder(folder, stream)
        source = make_source(checkpoint, arch, recipe, builder)
        inputs, outputs = _classifier(source) if arch.kind == "classifier" else _decoder(source)
        builder.save(inputs, outputs, arch.kind, producer)
    return builder.bytes


def _decoder(source: Source) -> tuple[Values, Values]:
    """input_ids, attention_mask[, position_ids], past... -> logits [batch, kept, vocab], present..."""
    arch, b = source.arch, source.builder
    ids = value("input_ids", INT64, ["batch", "sequence"])
    mask = value("attention_mask", INT64, ["batch", "total_sequence"])
    positions = value("position_ids", INT64, ["batch", "sequence"]) if wants_positions(arch) else None
    packing = pack(b, ids, mask)
    moved = None if positions is None else to_left(b, packing, positions, "positions.packed")
    shared = context(source, mask, moved, cached=True)
    embedding = table(source, "embedding", source.recipe.head_bits if arch.tied else _minor_bits(source))
    x = _body(source, gather(source, embedding, to_left(b, packing, ids, "ids.packed"), "embedding"), shared)
    # How many last positions pass through the head: 0, the default, is all of them, as -0 is the start.
    keep = b.tensor("logits_to_keep", np.array(0))
    # Reshaped, as callers through IO binding may feed a scalar or one element.
    start = b.op(
        "Reshape", [b.op("Neg", [keep], "keep.start"), b.tensor("flat_1", np.array([1]))], "keep.starts"
    )
    x = from_left(b, packing, x, start)
    last = embedding if arch.tied else table(source, "head", source.recipe.head_bits)
    # Called "sequence" although fewer may be kept: optimum-onnx sizes the output it binds by this name.
    logits = typed(head(source, last, x, "logits"), ["batch", "sequence", arch.vocab])
    inputs = [
        ids,
        mask,
        *([positions] if positions else []),
        *(v for past in shared.pasts for v in past),
        keep,
    ]
    return inputs, [logits, *shared.presents]


def _classifier(source: Source) -> tuple[Values, Values]:
    """input_ids, attention_mask -> logits [batch, labels], read at each row's last real token."""
    arch, b = source.arch, source.builder
    ids = value("input_ids", INT64, ["batch", "sequence"])
    mask = value("attention_mask", INT64, ["batch", "sequence"])
    embedding = table(source, "embedding", _minor_bits(source))
    packing = pack(b, ids, mask)
    shared = context(source, mask, own_positions(source, packing), cached=False)
    x = _body(source, gather(source, embedding, to_left(b, packing, ids, "ids.packed"), "embedding"), shared)
    last = b.op("Unsqueeze", [shared.last, b.tensor("axis_1", np.array([1]))], "last")
    x = b.op("GatherND", [x, last], "read", batch_dims=1)
    score = b.tensor("score.weight", source.outer("score").T, "float32")
    return [ids, mask], [typed(b.op("MatMul", [x, score], "logits"), ["batch", int(arch.labels or 0)])]


def own_positions(source: Source, packing: Packing) -> ir.Value | None:
    """Positions from 0 on, for a graph without a past: [1, sequence] if learned, [1] if rotated."""
    b = source.builder
    if not wants_positions(source.arch):
        return None
    if source.arch.family.position == "rotary":
        return b.tensor("first_position", np.array([0]))
    return b.op("Unsqueeze", [packing.steps, b.tensor("axis_0", np.array([0]))], "positions")


def _minor_bits(source: Source) -> int:
    """Bits of a table that is only gathered from; in a float recipe it stays float."""
    return 32 if source.recipe.head_bits == 32 else MINOR_BITS


def _body(source: Source, x: ir.Value, shared: Context) -> ir.Value:
    """All layers and the final norm over embedded `x` [batch, sequence, hidden]; same shape out."""
    h, residual = enter(source, x, shared.positions)
    for i in range(source.arch.layers):
        h, residual = layer(source, i, h, residual, shared)
    return h


def enter(source: Source, x: ir.Value, positions: ir.Value | None) -> tuple[ir.Value, ir.Value]:
    """What the first layer reads, of embedded `x`: (its norm, the residual stream)."""
    if source.arch.family.position == "learned" and positions is not None:
        rows = table(source, "positions", _minor_bits(source))
        # Not the fused operator: it does not broadcast positions that all rows share.
        x = source.builder.op("Add", [x, gather(source, rows, positions, "position")], "embedded")
    return _first_norm(source, x), x


def layer(
    source: Source, i: int, h: ir.Value, residual: ir.Value, shared: Context
) -> tuple[ir.Value, ir.Value]:
    """Layer `i` on its normed input `h` and the residual stream: what the next layer, or the head, reads."""
    out = project(source, i, "o", attention(source, i, h, shared), vector(source, i, "o.bias"))
    h, residual = _norm(source, (i, "norm2"), out, residual)
    following = (i + 1, "norm1") if i + 1 < source.arch.layers else None
    return _norm(source, following, _mlp(source, i, h), residual)


def _norm_weights(source: Source, at: tuple[int, str] | None) -> list[ir.Value | None]:
    """Weight, and bias for LayerNorm, of a layer's norm or (None) the final one."""
    parts = ("weight", "bias") if source.arch.family.norm == "layer" else ("weight",)
    if at is None:
        return [source.builder.tensor(f"final.{p}", source.outer(f"final.{p}"), "float32") for p in parts]
    return [vector(source, at[0], f"{at[1]}.{part}") for part in parts]


def _first_norm(source: Source, x: ir.Value) -> ir.Value:
    kind = "LayerNormalization" if source.arch.family.norm == "layer" else "RMSNormalization"
    weights = _norm_weights(source, (0, "norm1"))
    return source.builder.op(kind, [x, *weights], "layers.0.norm1", axis=-1, epsilon=source.arch.eps)


def _norm(
    source: Source, at: tuple[int, str] | None, x: ir.Value, skip: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """(norm of the sum, the sum) of branch `x` and the residual stream `skip`."""
    name = "final" if at is None else f"layers.{at[0]}.{at[1]}"
    total = source.builder.op("Add", [x, skip], f"{name}.sum")
    kind = "LayerNormalization" if source.arch.family.norm == "layer" else "RMSNormalization"
    weights = _norm_weights(source, at)
    return source.builder.op(kind, [total, *weights], name, axis=-1, epsilon=source.arch.eps), total


def _mlp(source: Source, i: int, h: ir.Value) -> ir.Value:
    """The layer's MLP over `h` [batch, sequence, hidden]; same shape out."""
    b, name = source.builder, f"layers.{i}.activation"
    up = project(source, i, "up", h, vector(source, i, "up.bias"))
    if "gate" not in source.arch.family.layer:
        return project(source, i, "down", _activate(source, up, name), vector(source, i, "down.bias"))
    gate = project(source, i, "gate", h, vector(source, i, "gate.bias"))
    gated = b.op("Mul", [_activate(source, gate, name), up], f"layers.{i}.gated")
    return project(source, i, "down", gated, vector(source, i, "down.bias"))


def _activate(source: Source, x: ir.Value, name: str) -> ir.Value:
    b, kind = source.builder, source.arch.activation
    if kind in GELUS:  # the tanh approximation, which is FastGelu's formula
        return b.op("FastGelu", [x], name, domain=CONTRIB)
    if kind == "gelu":
        return b.op("Gelu", [x], name, domain=CONTRIB)
    if kind == "relu":
        return b.op("Relu", [x], name)
    return b.op("QuickGelu", [x], name, domain=CONTRIB, alpha=1.0)  # x * sigmoid(x): SiLU
