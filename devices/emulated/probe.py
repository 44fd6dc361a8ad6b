"""Run in an emulated process: what it is to programs there. `python -m devices.emulated.probe` prints one JSON line."""

import ctypes
import json
import sys

from devices import machine
from devices.errors import UserError
from devices.marks import Marks

AT_HWCAP = 16  # getauxval(3)
# Bits of AT_HWCAP on arm64 (Linux, arch/arm64/include/uapi/asm/hwcap.h), of those in machine.ISA_ARM.
BITS = {1: "asimd", 9: "fphp", 10: "asimdhp", 20: "asimddp", 22: "sve"}


def hwcap() -> list[str]:
    """The instruction sets that the processor itself admits to: what ONNX Runtime asks, not what we wrote down."""
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype = ctypes.c_ulong
    found = getauxval(AT_HWCAP)
    return [name for bit, name in BITS.items() if found >> bit & 1]


def counts() -> bool:
    """Whether instructions are counted here."""
    try:
        Marks()
    except UserError:
        return False
    return True


def main() -> None:
    """Print what was found."""
    import numpy
    import onnxruntime
    import tokenizers

    told = machine.environment()
    kept = ("cpu", "arch", "isa", "python", "onnxruntime", "numpy", "tokenizers")
    loaded = {module.__name__: module.__version__ for module in (numpy, onnxruntime, tokenizers)}
    seen = {**{key: told[key] for key in kept}, "hwcap": hwcap(), "counts": counts(), "loaded": loaded}
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
