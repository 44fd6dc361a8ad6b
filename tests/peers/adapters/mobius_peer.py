"""mobius-onnx: a graph built without tracing; its command line makes it, plain ONNX Runtime runs it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import contract
import onnx_loop


def generate(request: dict[str, Any]) -> dict[str, Any]:
    """Greedy with the file that the settings name."""
    file = str(Path(request["model"]) / request["settings"]["file"])
    return contract.stepwise(request, lambda: onnx_loop.load(file, request["threads"]))


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """The graph for ONNX Runtime's CPU provider, and the same with the last position's logits only."""
    out = Path(request["out"])
    command = [sys.executable, "-m", "mobius", "build", "--config", request["checkpoint"], str(out)]
    said = subprocess.run([*command, "--ep", "cpu", "--dtype", "f32"], capture_output=True, text=True)
    if said.returncode:
        raise RuntimeError(said.stderr.strip().splitlines()[-1])
    onnx_loop.slice_logits(out / "model.onnx", out / "last.onnx")
    return {}


if __name__ == "__main__":
    contract.answer({"generate": generate, "convert": convert})
