"""Greedy generation with another exporter's ONNX graph: plain ONNX Runtime, no torch, no transformers.

Their own classes for it import torch and copy more; what is measured here is the best their graphs can do.
The cache they return is bound as the next step's past, so that it never passes through numpy.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

PAST, PRESENT = "past_key_values.", "present."


def open_session(path: str, threads: int) -> Any:
    """A session with everything that ONNX Runtime can optimise on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def load(path: str, threads: int) -> tuple[Any, Any]:
    """The two functions that `contract.stepwise` asks for."""
    session = open_session(path, threads)
    shapes = {value.name: value.shape for value in session.get_inputs()}
    state: dict[str, Any] = {"past": {}, "length": 0}

    def run(ids: list[int], past: dict[str, Any]) -> int:
        total = state["length"] + len(ids)
        feeds = {
            "input_ids": np.array([ids], dtype=np.int64),
            "attention_mask": np.ones((1, total), dtype=np.int64),
            "position_ids": np.arange(state["length"], total, dtype=np.int64)[None],
        }
        binding = session.io_binding()
        for name, array in feeds.items():
            if name in shapes:
                binding.bind_cpu_input(name, array)
        for name, value in past.items():
            binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            binding.bind_output(output.name, "cpu")
        session.run_with_iobinding(binding)
        found = dict(zip((o.name for o in session.get_outputs()), binding.get_outputs(), strict=True))
        state["past"] = {n.replace(PRESENT, PAST, 1): v for n, v in found.items() if n.startswith(PRESENT)}
        state["length"] = total
        return int(found["logits"].numpy()[0, -1].argmax())

    def prompt(ids: list[int]) -> int:
        state["length"] = 0
        empty = {name: _empty(shape) for name, shape in shapes.items() if name.startswith(PAST)}
        return run(ids, empty)

    return prompt, lambda token: run([token], state["past"])


def _empty(shape: list[Any]) -> Any:
    """A past of no positions: batch 1, the sequence axis (the third) empty, the rest as declared."""
    sizes = [size if isinstance(size, int) else 1 for size in shape]
    sizes[2] = 0
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(sizes, dtype=np.float32))


def slice_logits(source: Path, out: Path) -> None:
    """Write `source` again so that only the last position passes through the head: equal work for all.

    The head is what computes `logits`; its input that depends on the prompt is cut before it.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(source))
    graph = model.graph
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    head = made_by["logits"]
    while head.op_type not in ("MatMul", "Gemm"):
        head = made_by[next(name for name in head.input if name in made_by)]
    at = next(i for i, name in enumerate(head.input) if name not in constants and _varies(name, made_by))
    hidden = head.input[at]
    bounds = {"starts": [-1], "ends": [np.iinfo(np.int64).max], "axes": [1]}
    for name, value in bounds.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), f"last.{name}"))
    cut = helper.make_node("Slice", [hidden, *(f"last.{name}" for name in bounds)], ["last.hidden"])
    head.input[at] = "last.hidden"
    graph.node.insert(list(graph.node).index(head), cut)
    # Shapes recorded for what follows hold no longer; the output's sequence axis gets a name of its own.
    del graph.value_info[:]
    for output in graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].dim_param = "last_position"
    onnx.save(model, str(out), save_as_external_data=True, location=f"{out.name}.data", size_threshold=1024)


def _varies(name: str, made_by: dict[str, Any]) -> bool:
    """Whether a value depends on the graph's inputs: a transposed weight does not."""
    node = made_by.get(name)
    if node is None:
        return name == "input_ids"
    return node.op_type != "Constant" and any(_varies(one, made_by) for one in node.input if one)
