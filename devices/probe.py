"""What a device is to the programs on it: `python probe.zip PACKAGE...` answers a line of JSON behind MARK.

The archive is our code; a board that is looked at before it is set up runs it from a temporary file.
"""

import importlib
import json
import sys
from typing import Any

from devices import machine, state

PACKAGES = ("onnxruntime", "numpy", "tokenizers")  # what the worker imports
# Which kernels ONNX Runtime has for int8, by the first instruction set that is there.
INT8 = {
    "amx_int8": "AMX",
    "avx512_vnni": "VNNI",
    "avx_vnni": "VNNI",
    "avx512bw": "AVX-512 without VNNI: sums of u8 by s8 may saturate",
    "avx2": "AVX2 without VNNI: sums of u8 by s8 may saturate",
    "i8mm": "i8mm and dot product",
    "asimddp": "dot product",
    "asimd": "no dot product",
}


def probe(packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """`environment` of this machine, and `imports` {package: (whether it imports, its version or the error)}."""
    imports: dict[str, tuple[bool, str]] = {}
    for name in packages:
        try:
            imports[name] = True, importlib.import_module(name).__version__
        except Exception as error:  # noqa: BLE001 - a package that fails in any way is a finding
            imports[name] = False, f"{type(error).__name__}: {error}"
    return {"environment": environment(), "imports": imports}


def environment() -> dict[str, Any]:
    """What a result records, with `int8`, the kernels that the processor has for it, and `celsius`."""
    found = machine.environment()
    isa = found["isa"] or ()
    found["int8"] = next((text for name, text in INT8.items() if name in isa), None)
    found["celsius"] = state.celsius()
    versions = ("onnxruntime", "numpy", "tokenizers", "emulated")
    return {key: value for key, value in found.items() if key not in versions}


def main() -> None:
    """Print it."""
    sys.stdout.write(f"\n#toolchain# {json.dumps(probe(tuple(sys.argv[1:])))}\n")


if __name__ == "__main__":
    main()
