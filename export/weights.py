"""A checkpoint's weights as parts of the graph: matrix products, tables and head, as the recipe says.

Each function reads the tensors it needs, stores them through the builder and forgets them, so that an
export never holds more than one matrix (query, key and value together count as one).
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.architecture import Architecture, layer_tensors, outer_tensors
from export.blocks import Form, gather_rows, multiply, multiply_vocabulary, view_of
from export.builder import CONTRIB, Builder
from export.checkpoint import Checkpoint
from export.gptq import gptq
from export.quantize import Quantized, fit_block, quantize, quantize_columns
from export.recipes import Recipe, layer_bits, table_bits

# What each matrix of a layer reads, by the first that reads it; the head reads the final norm.
READS = {
    **dict.fromkeys(("qkv", "q", "k", "v"), "qkv"),
    "o": "o",
    **dict.fromkeys(("up", "gate"), "up"),
    "down": "down",
    "head": "head",
}
MINOR_BITS = 8  # tables that are gathered from and are no head: learned positions, an untied embedding


@dataclass(frozen=True)
class Source:
    """What a graph is made from, and the builder it goes to."""

    checkpoint: Checkpoint
    arch: Architecture
    recipe: Recipe
    builder: Builder

    def outer(self, slot: str) -> np.ndarray:
        """A tensor outside the layers as float32, as it is stored."""
        return self.checkpoint.read(outer_tensors(self.arch)[slot][0])

    def vector(self, layer: int, slot: str) -> np.ndarray | None:
        """A norm weight or bias of a layer; for `qkv.bias` those of q, k and v joined; None without one."""
        slots = layer_tensors(self.arch, layer)
        if slot == "qkv.bias" and slot not in slots:
            parts = [self.vector(layer, f"{part}.bias") for part in "qkv"]
            return None if any(part is None for part in parts) else np.concatenate(parts)  # type: ignore[arg-type]
        return self.checkpoint.read(slots[slot][0]) if slot in slots else None

    def matrix(self, layer: int, slot: str) -> np.ndarray:
        """A weight matrix of a layer as float32 [out, in]; for `qkv` those of q, k and v joined."""
        slots = layer_tensors(self.arch, layer)
        if slot == "qkv" and "qkv.weight" not in slots:
            return np.concatenate([self.matrix(layer, part) for part in "qkv"])
        stored = self.checkpoint.read(slots[f"{slot}.weight"][0])
        return stored.T if self.arch.family.conv1d else stored

    def moment(self, layer: int, slot: str) -> np.ndarray | None:
        """The sum of x x^T over the inputs x of a layer's matrix, float64 [in, in]; None where unknown."""
        return None


def vector(source: Source, layer: int, slot: str) -> ir.Value | None:
    """The initializer of a layer's norm weight or bias, None where the architecture has none."""
    array = source.vector(layer, slot)
    return None if array is None else source.builder.tensor(f"layers.{layer}.{slot}", array, "float32")


def project(source: Source, layer: int, slot: str, x: ir.Value, bias: ir.Value | None = None) -> ir.Value:
    """`x` [batch, sequence, in] times a layer's matrix, plus `bias`: [batch, sequence, out]."""
    name, recipe = f"layers.{layer}.{slot}", source.recipe
    weight = source.matrix(layer, slot)
    bits = layer_bits(recipe, slot, layer, source.arch.layers)
    if bits == 32:
        return _float_product(source.builder, name, x, weight, bias)
    if bits == 8 and recipe.kernel == "rows":
        return _row_product(source, name, x, quantize_columns(weight, recipe.weight_top), bias)
    block = fit_block(weight.shape[1], recipe.block)
    found = _rounded(source, weight, source.moment(layer, slot), bits, block, recipe.symmetric)
    stored = source.builder.quantized(f"{name}.weight", found)
    form = (*weight.shape, block, bits)
    return multiply(source.builder, name, x, stored, form, recipe.accuracy_level, bias)


def _rounded(
    source: Source, weight: np.ndarray, moment: np.ndarray | None, bits: int, block: int, symmetric: bool
) -> Quantized:
    """`weight` in blocks by the recipe's method; to nearest where nothing is known of its inputs."""
    search = source.recipe.search
    if source.recipe.method == "gptq" and moment is not None:
        return gptq(weight, moment, bits, block, symmetric=symmetric, search=search)
    return quantize(weight, bits, block, symmetric=symmetric, search=search)


def _float_product(b: Builder, name: str, x: ir.Value, weight: np.ndarray, bias: ir.Value | None) -> ir.Value:
    stored = b.tensor(f"{name}.weight", weight.T, "float32")
    if bias is None:
        return b.op("MatMul", [x, stored], name)
    return b.op("Add", [b.op("MatMul", [x, stored], f"{name}.product"), bias], name)


def _row_product(
    source: Source, name: str, x: ir.Value, found: tuple[np.ndarray, np.ndarray], bias: ir.Value | None
) -> ir.Value:
    """int8 GEMM with a scale for each row of `x`, found as it runs: largest magnitude / 127.

    Rows are brought to [-1, 1] first, so that one fixed scale quantizes all of them and a row's answer does
    not depend on its neighbours. A row of zeros divides to NaN, quantizes to some level and is multiplied
    by its scale, zero.
    """
    b = source.builder
    weight = b.tensor(f"{name}.weight", found[0], "int8")
    scales = b.tensor(f"{name}.weight.scales", found[1], "scales")
    step, zero = b.tensor("row_step", np.float32(1 / 127)), b.tensor("row_zero", np.uint8(128))
    last = b.tensor("axis_last", np.array([-1]))
    top = b.op("ReduceMax", [b.op("Abs", [x], f"{name}.abs"), last], f"{name}.top", keepdims=1)
    levels = b.op("QuantizeLinear", [b.op("Div", [x, top], f"{name}.unit"), step, zero], f"{name}.levels")
    product = b.op(
        "MatMulIntegerToFloat", [levels, weight, step, scales, zero], f"{name}.product", domain=CONTRIB
    )
    scaled = b.op("Mul", [product, top], name if bias is None else f"{name}.scaled")
    return scaled if bias is None else b.op("Add", [scaled, bias], name)


@dataclass(frozen=True)
class Table:
    """A stored table [rows, width] to gather from: an initializer, quantized where `form` is given."""

    stored: tuple[ir.Value, ir.Value | None, ir.Value | None]
    form: Form | None


def table(source: Source, slot: str, bits: int) -> Table:
    """Store the embedding, position or head table; quantized ones are symmetric.

    Symmetric because the two operators that read a tied table want zero points in different shapes. Fewer
    than 8 bits are chosen by what a head reads, if that is known: a tied table is rounded for the head's
    sake, whose errors reach the logits undamped.
    """
    weight, name = source.outer(slot), f"{slot}.weight"
    tied = source.arch.tied and source.arch.kind == "decoder"
    bits = table_bits(
        source.recipe, *(("embedding", "head") if slot == "embedding" and tied else (slot,)), default=bits
    )
    if bits == 32:
        return Table((source.builder.tensor(name, weight, "float32"), None, None), None)
    block = fit_block(weight.shape[1], source.recipe.head_block)
    if bits == 8:
        found = quantize(weight, bits, block, symmetric=True)
    else:
        moment = source.moment(source.arch.layers, "head") if tied or slot == "head" else None
        found = _rounded(source, weight, moment, bits, block, True)
    return Table(source.builder.quantized(name, found), (*weight.shape, block, bits))


def gather(source: Source, rows: Table, ids: ir.Value, name: str) -> ir.Value:
    """Rows of the table by id: float32 [batch, sequence, width]. Quantized ones are expanded."""
    b, weight = source.builder, rows.stored[0]
    if rows.form is None:
        return b.op("Gather", [b.view(view_of(weight), weight), ids], name)
    return gather_rows(b, name, ids, rows.stored, rows.form)  # type: ignore[arg-type]


def head(source: Source, rows: Table, x: ir.Value, name: str) -> ir.Value:
    """`x` [batch, kept, hidden] times the table, transposed: [batch, kept, vocab]."""
    if rows.form is None:
        return source.builder.op("FusedMatMul", [x, rows.stored[0]], name, domain=CONTRIB, transB=1)
    level = source.recipe.accuracy_level
    return multiply_vocabulary(source.builder, name, x, rows.stored, rows.form, level)  # type: ignore[arg-type]
