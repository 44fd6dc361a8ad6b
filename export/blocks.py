"""Matrices quantized in blocks, as the nodes that multiply by them and gather from them.

Written graphs (export/weights.py) and traced ones (export/rewrite.py) both have them from here.
"""

from math import gcd

import numpy as np
import onnx_ir as ir

from export.builder import CONTRIB, PAGE, Builder

Stored = tuple[ir.Value, ir.Value, ir.Value | None]  # packed levels, scales, zero points
Form = tuple[int, int, int, int]  # (out, in, block, bits)

PART = 1 << 23  # bytes of a vocabulary that are packed together
TILE = 16  # rows that the kernel takes at a time


def multiply(
    b: Builder,
    name: str,
    x: ir.Value,
    stored: Stored,
    form: Form,
    accuracy_level: int,
    bias: ir.Value | None = None,
) -> ir.Value:
    """`x` [..., in] times the matrix, plus `bias` [out]: [..., out]."""
    inputs = [x, *stored, None, bias]
    while inputs[-1] is None:
        inputs.pop()
    attributes = dict(zip(("N", "K", "block_size", "bits"), form, strict=True))
    return b.op("MatMulNBits", inputs, name, domain=CONTRIB, **attributes, accuracy_level=accuracy_level)


def multiply_vocabulary(
    b: Builder, name: str, x: ir.Value, stored: Stored, form: Form, accuracy_level: int
) -> ir.Value:
    """As `multiply`, a large symmetric matrix in parts of its rows, each a view of the same bytes.

    ONNX Runtime packs a weight into memory of its own while the file's pages of it are mapped, and lets go
    of these afterwards: of the largest matrix, only a part is there twice at a time.
    """
    packed, scales, zeros = stored
    parts = _parts(packed)
    if len(parts) == 1 or zeros is not None:
        return multiply(b, name, x, stored, form, accuracy_level)
    outputs = []
    for i, (first, rows) in enumerate(parts):
        part: Stored = (
            b.view(f"{packed.name}.{i}", packed, (rows, *_dims(packed)[1:]), first),
            b.view(f"{scales.name}.{i}", scales, (rows, *_dims(scales)[1:]), first),
            None,
        )
        outputs.append(multiply(b, f"{name}.{i}", x, part, (rows, *form[1:]), accuracy_level))
    return b.op("Concat", outputs, name, axis=-1)


def _parts(packed: ir.Value) -> list[tuple[int, int]]:
    """(first row, rows) of parts of about PART bytes; each begins on a page, so that mappings share none."""
    rows = _dims(packed)[0]
    width = packed.const_value.nbytes // rows  # type: ignore[union-attr]
    step = max(TILE, PAGE // gcd(PAGE, width))
    count = -(-rows * width // PART)
    size = -(-rows // count // step) * step
    return [(first, min(size, rows - first)) for first in range(0, rows, size)]


def gather_rows(b: Builder, name: str, ids: ir.Value, stored: Stored, form: Form) -> ir.Value:
    """Rows of the matrix by `ids` [batch, sequence], expanded: float32 [batch, sequence, in].

    The packed rows are read as they lie, [out, blocks, block * bits / 8], by this operator and by a product alike.
    """
    packed, scales, _ = stored
    _, width, block, bits = form
    view = view_of(packed)
    blocks = b.op(
        "GatherBlockQuantized",
        [b.view(view, packed), ids, b.view(f"{view}.scales", scales, (*_dims(scales), 1))],
        f"{name}.blocks",
        domain=CONTRIB,
        bits=bits,
        block_size=block,
        gather_axis=0,
        quantize_axis=2,
    )
    padded = -(-width // block) * block
    shape = b.tensor(f"shape_{padded}", np.array([0, 0, padded]))
    if padded == width:
        return b.op("Reshape", [blocks, shape], name)
    flat = b.op("Reshape", [blocks, shape], f"{name}.rows")
    ends = b.tensor(f"width_{width}", np.array([width]))
    return b.op(
        "Slice", [flat, b.tensor("zero", np.array([0])), ends, b.tensor("axis_2", np.array([2]))], name
    )


def view_of(weight: ir.Value) -> str:
    """Name of the view that a gather reads: `embedding.view` of `embedding.weight`."""
    return str(weight.name).removesuffix(".weight") + ".view"


def _dims(stored: ir.Value) -> tuple[int, ...]:
    return tuple(stored.const_value.shape.numpy())  # type: ignore[union-attr]
