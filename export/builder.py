"""A graph under construction: nodes, and initializers whose bytes are streamed to the data file."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from export.quantize import Quantized

CONTRIB = "com.microsoft"
OPSET = 23
IR_VERSION = 10
DATA = "model.onnx.data"
INLINE = 1024  # bytes up to which a tensor stays in the graph itself
# Offsets: a cache line for small tensors, a page for large ones, so that they can be mapped.
LINE, PAGE, LARGE = 64, 4096, 1 << 16


class Builder:
    """Collects a graph; each tensor's bytes go to the open data file `stream` at once and are not kept.

    `bytes` counts what was stored by precision: `float32`, `int8`, `int4`, `scales` (with zero points) and
    `tables` (constants of the graph that are no weights).
    """

    def __init__(self, folder: Path, stream: BinaryIO) -> None:
        self.folder, self.stream = folder, stream
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.bytes: dict[str, int] = {}

    def op(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        outputs: int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> Any:
        """Append a node called `name`; its output value, or a tuple of several `outputs`."""
        node = ir.node(
            kind, inputs, attributes or None, domain=domain, num_outputs=outputs, name=name, version=None
        )
        for index, value in enumerate(node.outputs):
            value.name = name if index == 0 else f"{name}.{index}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def tensor(self, name: str, array: np.ndarray | np.generic, kind: str = "tables") -> ir.Value:
        """An initializer that holds `array`, counted as `kind`; asked for twice, it is stored once."""
        if name in self.initializers:
            return self.initializers[name]
        array = np.asarray(array, order="C")  # unlike ascontiguousarray, keeps scalars scalar
        self.bytes[kind] = self.bytes.get(kind, 0) + array.nbytes
        tensor = ir.Tensor(array, name=name) if array.nbytes <= INLINE else self._store(name, array)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.initializers[name] = value
        return value

    def _store(self, name: str, array: np.ndarray) -> ir.ExternalTensor:
        align = PAGE if array.nbytes >= LARGE else LINE
        self.stream.write(b"\0" * (-self.stream.tell() % align))
        offset = self.stream.tell()
        self.stream.write(array.data.cast("B"))
        dtype = ir.DataType.from_numpy(array.dtype)
        shape = ir.Shape(array.shape)
        return ir.ExternalTensor(
            DATA, offset, array.nbytes, dtype, shape=shape, name=name, base_dir=self.folder
        )

    def view(
        self, name: str, stored: ir.Value, shape: Sequence[int] | None = None, first: int = 0
    ) -> ir.Value:
        """A second initializer over the bytes of `stored` from row `first` on, in another shape if one is given.

        ONNX Runtime keeps a copy of a weight in the order its kernel likes and drops the weight itself, but
        only if nobody else reads it. A reader of a few rows gets a view: one copy on disk, one in memory,
        and of the view only the pages of those rows.
        """
        if name in self.initializers:
            return self.initializers[name]
        tensor = stored.const_value
        assert tensor is not None
        whole = tensor.shape.numpy()
        dims = ir.Shape(whole if shape is None else shape)
        row = prod(whole[1:])
        if isinstance(tensor, ir.ExternalTensor):
            size = tensor.dtype.itemsize
            place = (DATA, (tensor.offset or 0) + int(first * row * size), int(prod(dims.numpy()) * size))
            seen: Any = ir.ExternalTensor(*place, tensor.dtype, shape=dims, name=name, base_dir=self.folder)
        else:
            flat = tensor.numpy().reshape(-1)[first * row :][: prod(dims.numpy())]
            seen = ir.Tensor(flat.reshape(dims.numpy()), name=name)
        value = ir.Value(name=name, shape=seen.shape, type=ir.TensorType(seen.dtype), const_value=seen)
        self.initializers[name] = value
        return value

    def quantized(self, name: str, found: Quantized) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """Initializers of a quantized matrix: packed levels, scales, zero points (None where symmetric)."""
        zeros = None
        packed = self.tensor(name, found.packed, f"int{found.bits}")
        scales = self.tensor(f"{name}.scales", found.scales, "scales")
        if found.zeros is not None:
            zeros = self.tensor(f"{name}.zeros", found.zeros, "scales")
        return packed, scales, zeros

    def save(self, inputs: list[ir.Value], outputs: list[ir.Value], name: str, producer: str) -> None:
        """Write model.onnx, without initializers that only views are read of; the data file stays as it is."""
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self.nodes,
            initializers=[value for value in self.initializers.values() if value.uses()],
            opset_imports={"": OPSET, CONTRIB: 1},
            name=name,
        )
        self.stream.flush()
        ir.save(ir.Model(graph, ir_version=IR_VERSION, producer_name=producer), self.folder / "model.onnx")


def value(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    """A graph input or output; dimensions are numbers or names."""
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def typed(output: ir.Value, shape: list[int | str]) -> ir.Value:
    """`output`, declared a float tensor of `shape`."""
    output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    return output
