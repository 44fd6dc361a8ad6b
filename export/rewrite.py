"""A traced graph made to look like the graphs this project writes: weights streamed, quantized, stored once.

Only how weights are stored and multiplied by changes; attention and all else stay as torch.onnx wrote them.
ONNX Runtime's own quantizer (matmul_nbits_quantizer) would do for the matrices, but not for the vocabulary:
it gathers from 4 bits only, and stores a table that is embedding and head twice.
"""

from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir

from devices.errors import UserError
from export.blocks import Form, Stored, gather_rows, multiply, multiply_vocabulary
from export.builder import CONTRIB, DATA, Builder
from export.quantize import SMALLEST_BLOCK, fit_block, quantize
from export.recipes import Recipe
from export.weights import MINOR_BITS

KEPT = "kept"  # the traced graph's input: which positions pass through the head
OPTIONAL = (KEPT, "position_ids")  # inputs that are left out where the model does not look at them
FEW = 1 << 16  # elements up to which a weight that no operator reads quantized may stay in float
END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Target:
    """Where a traced graph goes, and how; `buffers` are initializers that are no weights (rotary tables)."""

    builder: Builder
    recipe: Recipe
    vocab: int
    buffers: set[str]
    quantized: dict[str, tuple[Stored, Form]] = field(default_factory=dict)  # by the initializer's name


@dataclass(frozen=True)
class Product:
    """`x` times an initializer, [out, in] where it is `turned` and [in, out] otherwise, plus `bias` [out]."""

    x: ir.Value
    weight: ir.Value
    turned: bool
    bias: ir.Value | None = None

    def matrix(self) -> np.ndarray:
        """The weight as [out, in]."""
        return _array(self.weight) if self.turned else _array(self.weight).T


def rewrite(
    traced: ir.Model, recipe: Recipe, folder: Path, producer: str, kind: str, vocab: int, buffers: set[str]
) -> dict[str, int]:
    """Write model.onnx and model.onnx.data into `folder`; returns stored bytes by precision.

    `traced` is used up. Its input `kept` becomes `logits_to_keep`, a number with the default 0 (all).
    UserError where the recipe quantizes and a large weight has no operator that reads it so.
    """
    with (folder / DATA).open("wb") as stream:
        target = Target(Builder(folder, stream), recipe, vocab, buffers)
        graph, builder = traced.graph, target.builder
        inputs = _inputs(builder, list(graph.inputs))
        for node in list(graph):
            _take(target, node)
            graph.remove(node)
        outputs = list(graph.outputs)
        graph.inputs.clear()
        graph.outputs.clear()
        builder.nodes = _used(builder.nodes, outputs)
        _store_rest(target)
        builder.save(inputs, outputs, kind, producer)
    return builder.bytes


def _inputs(b: Builder, found: list[ir.Value]) -> list[ir.Value]:
    """The traced inputs that are used, `kept` replaced by what follows from `logits_to_keep`."""
    inputs = [value for value in found if value.name not in OPTIONAL or value.uses()]
    kept = next((value for value in inputs if value.name == KEPT), None)
    if kept is None:
        return inputs
    keep, one = b.tensor("logits_to_keep", np.array(0)), b.tensor("keep.one", np.array(1))
    length = b.op("Gather", [b.op("Shape", [inputs[0]], "keep.shape"), one], "keep.length")
    steps = b.op("Range", [b.tensor("keep.zero", np.array(0)), length, one], "keep.steps")
    # Reshaped, as callers through IO binding may feed a scalar or one element.
    flat = b.tensor("keep.flat", np.array([1]))
    start = b.op("Reshape", [b.op("Neg", [keep], "keep.negative"), flat], "keep.start")
    kept.replace_all_uses_with(
        b.op("Slice", [steps, start, b.tensor("keep.end", np.array([END]))], "keep.last")
    )
    return [*(value for value in inputs if value is not kept), keep]


def _take(target: Target, node: ir.Node) -> None:
    """Append `node`, or what replaces it, to the target."""
    product = _product(node)
    if product is not None:
        new = _multiply(target, product, str(node.outputs[0].name))
    else:
        new = _gather(target, node) if node.op_type == "Gather" else None
    if new is None:
        node.metadata_props.clear()  # where in whose Python it came from
        target.builder.nodes.append(node)
        return
    old = node.outputs[0]
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    _detach(node)


def _product(node: ir.Node) -> Product | None:
    """What `node` multiplies, if one factor is a float matrix of the model."""
    if node.op_type == "MatMul":
        x, weight = node.inputs
        turned = weight.producer() if weight is not None else None
        if turned is not None and turned.op_type == "Transpose" and _is_matrix(turned.inputs[0]):
            return Product(x, turned.inputs[0], True)  # type: ignore[arg-type]
        return Product(x, weight, False) if _is_matrix(weight) else None  # type: ignore[arg-type]
    if node.op_type != "Gemm" or not _is_matrix(node.inputs[1]):
        return None
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    if any(node.attributes[key].value != value for key, value in plain.items() if key in node.attributes):
        return None
    turned_b = "transB" in node.attributes and bool(node.attributes["transB"].value)
    return Product(node.inputs[0], node.inputs[1], turned_b, (*node.inputs, None)[2])  # type: ignore[arg-type]


def _multiply(target: Target, product: Product, name: str) -> ir.Value | None:
    """The product by MatMulNBits; in float, a weight that the graph turned is turned when it is stored.

    A weight that others read too, which is an embedding and a head in one, is read as it lies.
    """
    b, recipe, weight = target.builder, target.recipe, product.weight
    out, size = product.matrix().shape
    bits = recipe.head_bits if out == target.vocab else recipe.bits
    if bits < 32 and out >= SMALLEST_BLOCK and size % SMALLEST_BLOCK == 0:
        stored, form = _quantized(target, weight, product.matrix(), bits, out == target.vocab)
        if out == target.vocab and product.bias is None:
            return multiply_vocabulary(b, name, product.x, stored, form, recipe.accuracy_level)
        return multiply(b, name, product.x, stored, form, recipe.accuracy_level, product.bias)
    if not product.turned or product.bias is not None:
        return None
    if len(weight.uses()) > 1:
        stored_as_is = b.tensor(_name(weight), _array(weight), "float32")
        return b.op("FusedMatMul", [product.x, stored_as_is], name, domain=CONTRIB, transB=1)
    return b.op("MatMul", [product.x, b.tensor(_name(weight), _array(weight).T, "float32")], name)


def _gather(target: Target, node: ir.Node) -> ir.Value | None:
    """Rows of a quantized table, the very one that the head multiplies by where they are tied."""
    (table, ids), b, recipe = node.inputs, target.builder, target.recipe
    axis = node.attributes["axis"].value if "axis" in node.attributes else 0
    if table is None or ids is None or not _is_matrix(table) or _name(table) in target.buffers or axis != 0:
        return None
    tied = len(table.uses()) > 1
    bits = recipe.head_bits if tied or recipe.head_bits == 32 else MINOR_BITS
    width = _array(table).shape[1]
    if bits == 32 or width % SMALLEST_BLOCK or ids.shape is None or len(ids.shape) != 2:
        return None
    stored, form = _quantized(target, table, _array(table), bits, True)
    return gather_rows(b, str(node.outputs[0].name), ids, stored, form)


def _quantized(
    target: Target, weight: ir.Value, matrix: np.ndarray, bits: int, vocabulary: bool
) -> tuple[Stored, Form]:
    """`matrix` [out, in] quantized and stored, once; a table of the vocabulary as export/weights.py does it."""
    name, recipe = _name(weight), target.recipe
    if name not in target.quantized:
        block = fit_block(matrix.shape[1], recipe.head_block if vocabulary else recipe.block)
        symmetric, search = (True, bits < 8) if vocabulary else (recipe.symmetric, recipe.search)
        found = quantize(matrix, bits, block, symmetric=symmetric, search=search)
        target.quantized[name] = (target.builder.quantized(name, found), (*matrix.shape, block, bits))
    return target.quantized[name]


def _used(nodes: list[ir.Node], outputs: list[ir.Value]) -> list[ir.Node]:
    """`nodes` without those whose results nobody reads: what turned weights that are turned now."""
    used = []
    for node in reversed(nodes):
        if any(value.uses() or value in outputs for value in node.outputs):
            used.append(node)
        else:
            _detach(node)
    return used[::-1]


def _store_rest(target: Target) -> None:
    """Store the initializers that nodes still read as the trace left them."""
    for node in target.builder.nodes:
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is None or _is_stored(target, value):
                continue
            array, name = _array(value), _name(value)
            weight = array.dtype == np.float32 and name not in target.buffers
            if weight and target.recipe.bits < 32 and array.ndim > 1 and prod(array.shape) > FEW:
                raise UserError(
                    f"{target.recipe.name}: {name} {list(array.shape)} has no quantized form in a traced graph; "
                    "export this model as fp32"
                )
            stored = target.builder.tensor(name, array, "float32" if weight else "tables")
            node.replace_input_with(index, stored)


def _is_stored(target: Target, value: ir.Value) -> bool:
    return target.builder.initializers.get(str(value.name)) is value


def _detach(node: ir.Node) -> None:
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)


def _is_matrix(value: ir.Value | None) -> bool:
    tensor = None if value is None else value.const_value
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == 2


def _name(value: ir.Value) -> str:
    """The initializer's name as the checkpoint has it, without that of the wrapper the model was traced in."""
    return str(value.name).removeprefix("model.")


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()
