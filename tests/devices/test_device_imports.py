"""What runs on a device imports only what a device installs."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["torch", "transformers", "onnx", "onnx_ir", "safetensors", "datasets", "sklearn", "pandas", "scipy"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "module",
    [
        "devices.runtime",
        "devices.artifact",
        "devices.machine",
        "devices.profiles",
        "bench.worker",
        "bench.run",
    ],
)
def test_nothing_heavy_is_imported(module):
    """Importing a device's module loads no host package, and turns ONNX Runtime's telemetry off first."""
    code = (
        f"import sys, os, {module}; print([m for m in {HEAVY} if m in sys.modules]);"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "1"]


@pytest.mark.parametrize("name", ["generate", "bench", "devices"])
def test_a_commands_help_loads_no_runtime(name):
    """Help is answered without ONNX Runtime or numpy."""
    code = (
        "import sys\nfrom toolchain.cli import main\n"
        f"try: main(['{name}', '--help'])\n"
        "except SystemExit: print('LOADED', [m for m in ('onnxruntime', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout
    assert "Example:\n" in done.stdout
