"""Attention of every supported architecture through one operator, com.microsoft GroupQueryAttention.

It serves prompt and continuation, and its past and present may be one buffer. It wants rows packed to the
left and each row's length, which the graph takes from `attention_mask` (export/padding.py does the packing).
"""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from export.architecture import Architecture
from export.builder import CONTRIB, Builder, typed, value
from export.rotary import caches
from export.weights import Source, project, vector

ROTARY_STEP = 16  # head sizes that the operator rotates itself are multiples of this


@dataclass(frozen=True)
class Context:
    """What all layers' attention shares.

    `last`: each row's length - 1, int64 [batch]. `lengths`: the same as int32, and the longest total length,
    int32 scalar. `tables`:
    cosines and sines, empty with learned positions. `positions`: int64 [batch, sequence] or [1] (the first
    position of all rows), None if nobody asks. `pasts`: (key, value) graph inputs by layer, empty without a
    cache; `presents`: the outputs that layers add.
    """

    last: ir.Value
    lengths: tuple[ir.Value, ir.Value]
    tables: tuple[ir.Value, ...]
    positions: ir.Value | None
    pasts: list[tuple[ir.Value, ir.Value]] = field(default_factory=list)
    presents: list[ir.Value] = field(default_factory=list)


def wants_positions(arch: Architecture) -> bool:
    """Whether the graph needs position ids: learned positions, or heads the operator cannot rotate."""
    return arch.family.position == "learned" or not rotates_inside(arch)


def rotates_inside(arch: Architecture) -> bool:
    """Whether rotary positions are left to the attention operator."""
    return arch.family.position == "rotary" and arch.head_dim % ROTARY_STEP == 0


def context(source: Source, mask: ir.Value, positions: ir.Value | None, cached: bool) -> Context:
    """Build the shared part from attention_mask, int64 [batch, total]."""
    b, arch, tables = source.builder, source.arch, ()
    if arch.family.position == "rotary":
        cos, sin = caches(arch)
        tables = (b.tensor("rotary.cos", cos), b.tensor("rotary.sin", sin))  # type: ignore[assignment]
    one = b.tensor("one", np.array(1))
    count = b.op("ReduceSum", [mask, b.tensor("axis_1", np.array([1]))], "mask.count", keepdims=0)
    last = b.op("Sub", [count, one], "mask.last")
    return Context(last, _lengths(b, mask, last), tables, positions, _pasts(arch) if cached else [])


def _lengths(b: Builder, mask: ir.Value, last: ir.Value) -> tuple[ir.Value, ir.Value]:
    one = b.tensor("one", np.array(1))
    width = b.op("Gather", [b.op("Shape", [mask], "mask.shape"), one], "mask.width")
    return (
        b.op("Cast", [last], "seqlens_k", to=ir.DataType.INT32),
        b.op("Cast", [width], "total_sequence_length", to=ir.DataType.INT32),
    )


def _pasts(arch: Architecture) -> list[tuple[ir.Value, ir.Value]]:
    shape: list[int | str] = ["batch", arch.kv_heads, "past_sequence", arch.head_dim]
    names = (f"past_key_values.{i}" for i in range(arch.layers))
    return [
        (value(f"{name}.key", ir.DataType.FLOAT, shape), value(f"{name}.value", ir.DataType.FLOAT, shape))
        for name in names
    ]


def attention(source: Source, i: int, h: ir.Value, shared: Context) -> ir.Value:
    """Causal attention of layer `i` on `h` [batch, sequence, hidden]: [batch, sequence, heads * head_dim]."""
    arch, inside = source.arch, rotates_inside(source.arch)
    past = shared.pasts[i] if shared.pasts else (None, None)
    outputs = source.builder.op(
        "GroupQueryAttention",
        [*_qkv(source, i, h, shared), *past, *shared.lengths, *(shared.tables if inside else ())],
        f"layers.{i}.attention",
        outputs=3 if shared.pasts else 1,
        domain=CONTRIB,
        num_heads=arch.heads,
        kv_num_heads=arch.kv_heads,
        scale=arch.scales[i],
        do_rotary=int(inside),
        local_window_size=arch.windows[i] or -1,
    )
    if not shared.pasts:
        return outputs
    for side, present in zip(("key", "value"), outputs[1:], strict=True):
        present.name = f"present.{i}.{side}"
        shared.presents.append(typed(present, ["batch", arch.kv_heads, "present_sequence", arch.head_dim]))
    return outputs[0]


def _qkv(source: Source, i: int, h: ir.Value, shared: Context) -> list[ir.Value | None]:
    """Query, key and value packed as one tensor, or as three where heads are changed in between."""
    arch = source.arch
    if not arch.family.head_norm and (rotates_inside(arch) or not shared.tables):
        return [_project(source, i, "qkv", h), None, None]
    sides = {slot: _project(source, i, slot, h) for slot in "qkv"}
    for slot in "qk":
        if arch.family.head_norm:
            sides[slot] = _head_norm(source, i, slot, sides[slot])
        if not rotates_inside(arch):
            sides[slot] = _rotate(source, i, slot, sides[slot], shared)
    return list(sides.values())


def _project(source: Source, i: int, slot: str, h: ir.Value) -> ir.Value:
    return project(source, i, slot, h, vector(source, i, f"{slot}.bias"))


def _head_norm(source: Source, i: int, slot: str, x: ir.Value) -> ir.Value:
    """RMSNorm over each head of query or key; the attention operator has it on GPUs only."""
    arch, b, name = source.arch, source.builder, f"layers.{i}.{slot}_norm"
    heads = b.op("Reshape", [x, b.tensor("heads", np.array([0, 0, -1, arch.head_dim]))], f"{name}.heads")
    weight = vector(source, i, f"{slot}_norm.weight")
    normed = b.op("RMSNormalization", [heads, weight], f"{name}.normed", axis=-1, epsilon=arch.eps)
    return b.op("Reshape", [normed, b.tensor("flat", np.array([0, 0, -1]))], name)


def _rotate(source: Source, i: int, slot: str, x: ir.Value, shared: Context) -> ir.Value:
    """Rotary positions by an operator of their own."""
    heads = source.arch.heads if slot == "q" else source.arch.kv_heads
    inputs = [x, shared.positions, *shared.tables]
    name = f"layers.{i}.{slot}_rotated"
    # It reads num_heads only together with rotary_embedding_dim, and takes a whole head for the latter.
    dim = source.arch.head_dim
    return source.builder.op(
        "RotaryEmbedding", inputs, name, domain=CONTRIB, num_heads=heads, rotary_embedding_dim=dim
    )
