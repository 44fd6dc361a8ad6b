"""Padding on either side: rows are packed to the left inside the graph and put back in the caller's places.

The attention operator takes rows that start at the left and their lengths, nothing else. transformers pads
prompts on the left, our runtime on the right; a mask fed as attention bias would serve the first at the price
of a [sequence, total] matrix in every layer. Moving ids before the embedding and the rows that are kept
before the head costs a few small integers instead, and the cache holds no padding.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.builder import Builder

END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Packing:
    """`steps` int64 [sequence], 0 on; `start` int64 [batch, 1], padding at the left of each row's new ids;
    `source` int64 [batch, sequence], from which place each packed place takes its id."""

    steps: ir.Value
    start: ir.Value
    source: ir.Value


def pack(b: Builder, ids: ir.Value, mask: ir.Value) -> Packing:
    """How to pack `ids` [batch, sequence] by `mask` [batch, total], whose last columns are the ids' own."""
    one, axis = b.tensor("one", np.array(1)), b.tensor("axis_1", np.array([1]))
    zero, end = b.tensor("zero_scalar", np.array(0)), b.tensor("end", np.array([END]))
    length = b.op("Gather", [b.op("Shape", [ids], "ids.shape"), one], "ids.length")
    flat = b.tensor("flat_1", np.array([1]))
    first = b.op("Reshape", [b.op("Neg", [length], "ids.minus"), flat], "ids.first")
    new = b.op("Slice", [mask, first, end, axis], "mask.new")
    # A row of the batch that ended earlier has no 1 among its new ids; the first index is then 0.
    start = b.op("ArgMax", [new], "padding", axis=1, keepdims=1)
    steps = b.op("Range", [zero, length, one], "steps")
    last = b.op("Sub", [length, one], "ids.last")
    source = b.op("Min", [b.op("Add", [steps, start], "steps.moved"), last], "steps.packed")
    return Packing(steps, start, source)


def to_left(b: Builder, packing: Packing, values: ir.Value, name: str) -> ir.Value:
    """`values` [batch, sequence], packed; places beyond a row's length repeat its last value."""
    return b.op("GatherElements", [values, packing.source], name, axis=1)


def from_left(b: Builder, packing: Packing, x: ir.Value, keep: ir.Value) -> ir.Value:
    """Packed `x` [batch, sequence, hidden] at the caller's places from `keep` on: [batch, kept, hidden].

    `keep` int64 [1] counts from the end if negative. A place of padding reads the row's first token.
    """
    zeros, end = b.tensor("zero", np.array([0])), b.tensor("end", np.array([END]))
    kept = b.op("Slice", [packing.steps, keep, end, zeros], "steps.kept")
    back = b.op("Sub", [kept, packing.start], "steps.back")
    back = b.op("Max", [back, b.tensor("zero_scalar", np.array(0))], "steps.places")
    places = b.op("Unsqueeze", [back, b.tensor("axis_2", np.array([2]))], "steps.index")
    return b.op("GatherND", [x, places], "kept", batch_dims=1)
