"""What this machine is: recorded beside every number, without asking. What cannot be read is null."""

import os
import platform
from collections.abc import Collection
from pathlib import Path
from typing import Any

# The instruction sets by which ONNX Runtime's CPU kernels differ.
ISA_X86 = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
)
ISA_ARM = ("asimd", "asimddp", "asimdhp", "fphp", "i8mm", "bf16", "sve", "sve2", "sme")
CPUINFO = Path("/proc/cpuinfo")
CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def environment() -> dict[str, Any]:
    """CPU, cores, memory, clock, load and versions, as a result records them (bytes, MHz)."""
    first = _cpu()
    return {
        "cpu": cpu_model(),
        "arch": platform.machine(),
        "isa": isa(),
        "cores": physical_cores(),
        "threads": usable_threads(),
        "memory_bytes": _meminfo("MemTotal"),
        "memory_available_bytes": _meminfo("MemAvailable"),
        "governor": _read(CPUFREQ / "scaling_governor"),
        "mhz": _mhz(first),
        "load": _load(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "numpy": version("numpy"),
        "tokenizers": version("tokenizers"),
        "emulated": False,
    }


def isa() -> list[str] | None:
    """The instruction sets of ISA_X86 and ISA_ARM that the processor has; None where the kernel names none."""
    first = _cpu()
    flags = (first.get("flags") or first.get("Features") or "").split()
    return [name for name in (*ISA_X86, *ISA_ARM) if name in flags] if flags else None


def exact_int8(found: Collection[str]) -> bool:
    """Whether sums of int8 products are exact with these instruction sets: ARM's, or x86's VNNI.

    Other x86 processors add two products in 16 bits and saturate (devices/session.py tries it).
    """
    return bool({"asimd", "avx512_vnni", "avx_vnni", "amx_int8"} & set(found))


def cpu_model() -> str | None:
    """The processor's name, or a board's, as the kernel tells it."""
    first = _cpu()
    named = (first.get(key) for key in ("model name", "Model", "CPU part"))
    return next(filter(None, named), None) or platform.processor() or None


def version(package: str) -> str | None:
    """The installed version of a package, without importing it; null where it is not installed."""
    import importlib.metadata  # brings the email package along: 30 ms that a program in use need not spend

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def usable_threads() -> int:
    """Logical processors this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def physical_cores() -> int:
    """Physical cores this process may run on: the default thread count, since two threads of one core share
    the units that multiply. Where the kernel does not say which belong together, all logical processors."""
    try:
        allowed = os.sched_getaffinity(0)
    except (AttributeError, OSError):
        return usable_threads()
    cores = {
        (block.get("physical id"), block["core id"])
        for block in _cpu_blocks()
        if block.get("processor", "").isdigit() and int(block["processor"]) in allowed and "core id" in block
    }
    return len(cores) or len(allowed)


def peak_rss() -> int | None:
    """Bytes this process ever had resident at once: VmHWM, the kernel's high-water mark."""
    for line in (_read(Path("/proc/self/status")) or "").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _cpu_blocks() -> list[dict[str, str]]:
    """/proc/cpuinfo, one dict per block of lines: a processor each, and on boards one for the board."""
    blocks = []
    for text in (_read(CPUINFO) or "").split("\n\n"):
        pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
        block = {key.strip(): value.strip() for key, _, value in pairs}
        blocks.append(block)
    return blocks


def _cpu() -> dict[str, str]:
    """Every line of /proc/cpuinfo by name. A board's stand below the last processor; the first of a name wins."""
    return {key: value for block in reversed(_cpu_blocks()) for key, value in block.items()}


def _meminfo(key: str) -> int | None:
    for line in (_read(Path("/proc/meminfo")) or "").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _mhz(block: dict[str, str]) -> float | None:
    kilohertz = _read(CPUFREQ / "scaling_cur_freq")
    if kilohertz and kilohertz.isdigit():
        return int(kilohertz) / 1000
    try:
        return float(block["cpu MHz"])
    except (KeyError, ValueError):
        return None


def _load() -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except OSError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
