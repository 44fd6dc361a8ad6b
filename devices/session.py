"""One ONNX Runtime session on the CPU, opened the same way for every artifact."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from devices import pages
from devices.artifact import GRAPH, Artifact
from devices.errors import UserError
from devices.machine import physical_cores, usable_threads, version

PROBE = Path(__file__).parent / "saturation.onnx"
OVERSUBSCRIBED = 4  # threads a processor may be asked to share
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


def open_session(artifact: Artifact, threads: int, optimized: Path | None = None) -> Any:
    """A session on the artifact's graph; its external data is memory-mapped by ONNX Runtime.

    With `optimized`, the graph as it is run is written there; it points to the weights it did not change.
    UserError for a graph whose integers this processor would saturate, and for whatever cannot be loaded.
    """
    if (artifact.manifest.get("recipe") or {}).get("needs") == "vnni" and saturates():
        raise UserError(
            f"{artifact.path}: was quantized for processors with VNNI, and this one saturates; export it "
            "with --recipe int8-dynamic"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal only: what goes wrong comes as an exception, with the same words
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry("session.disable_prepacking", "1")  # it is looked at, not run
    path = artifact.path / GRAPH
    before = pages.regions()
    with explained(path, "load"):
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    pages.settle(before, artifact.path / f"{GRAPH}.data")
    return session


def saturates() -> bool:
    """Whether ONNX Runtime's int8 product saturates on this processor, tried on the largest levels there are.

    The graph is one MatMulInteger of uint8 [4, 64] by int8 [64, 16], all 127: with 255 throughout, a kernel that
    adds two products in 16 bits gives half of the sum.
    """
    session = ort.InferenceSession(str(PROBE), providers=["CPUExecutionProvider"])
    (sums,) = session.run(None, {"a": np.full((4, 64), 255, np.uint8)})
    return bool((sums != 255 * 127 * 64).any())


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn whatever ONNX Runtime throws while `doing` something with the graph in `path` into a UserError."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no common base
        found = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: ONNX Runtime {version('onnxruntime')} cannot {doing} it ({found}); "
            "export it again, or install the version its manifest names"
        ) from None


def thread_count(threads: int | None) -> int:
    """`threads`, or the physical cores this process may use where none are named."""
    if threads is None:
        return physical_cores()
    if threads < 1:
        raise UserError(f"threads is {threads}; it must be 1 or more")
    if threads > (most := OVERSUBSCRIBED * usable_threads()):
        raise UserError(f"threads is {threads}; this machine takes at most {most}")
    return threads


def dtype_of(value: Any) -> Any:
    """The numpy type of a session's input or output."""
    if value.type not in DTYPES:
        raise UserError(f"{value.name}: has type {value.type}, which this runtime does not know; update it")
    return DTYPES[value.type]


def input_shapes(session: Any) -> dict[str, list[int | str | None]]:
    """Shapes of the inputs that must be fed, and of those with a default (ONNX Runtime lists them apart)."""
    values = [*session.get_inputs(), *session.get_overridable_initializers()]
    return {value.name: value.shape for value in values}
