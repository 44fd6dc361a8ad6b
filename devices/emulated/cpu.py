"""What Linux would say of an emulated processor: /proc/cpuinfo and /sys/devices/system/cpu, made from cpus.toml.

ONNX Runtime reads both and crashes on an x86 machine's; qemu opens a path below its root first, where there is one.
"""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from devices.errors import unknown

CORES = 4  # of every board these processors stand for
ARM = 0x41  # the implementer's number


@cache
def processors() -> dict[str, dict[str, Any]]:
    """The processors of cpus.toml by name."""
    return tomllib.loads(Path(__file__).with_name("cpus.toml").read_text(encoding="utf-8"))


def processor(name: str) -> dict[str, Any]:
    """The description of a processor; UserError with the near names where there is none."""
    if name not in processors():
        raise unknown("emulated processor", name, processors())
    return processors()[name]


def describe(name: str, root: Path) -> None:
    """Write the processor's files below `root`, which becomes the one that qemu looks in first.

    /proc/self/smaps is there too, and empty: qemu would hand on its own memory's regions for the program's.
    """
    found = processor(name)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text("\n".join(_block(found, at) for at in range(CORES)), encoding="utf-8")
    (root / "proc/self/smaps").write_text("", encoding="utf-8")
    system = root / "sys/devices/system/cpu"
    _write(system, dict.fromkeys(("possible", "present", "online"), f"0-{CORES - 1}"))
    for core in range(CORES):
        _write(system / f"cpu{core}/topology", {"core_id": core, "physical_package_id": 0})
        for at, (level, kind, kib, ways, shared) in enumerate(found["caches"]):
            sharing = f"0-{CORES - 1}" if shared > 1 else str(core)
            cached = {"level": level, "type": kind, "size": f"{kib}K", "coherency_line_size": 64}
            cached |= {"ways_of_associativity": ways, "number_of_sets": kib * 1024 // 64 // ways}
            _write(system / f"cpu{core}/cache/index{at}", {**cached, "shared_cpu_list": sharing})


def _block(found: dict[str, Any], core: int) -> str:
    lines = {
        "processor": core,
        "BogoMIPS": "108.00",
        "Features": found["features"],
        "CPU implementer": hex(ARM),
        "CPU architecture": 8,
        "CPU variant": hex(found["variant"]),
        "CPU part": hex(found["part"]),
        "CPU revision": found["revision"],
    }
    return "".join(f"{key}\t: {value}\n" for key, value in lines.items())


def _write(folder: Path, values: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    for key, value in values.items():
        (folder / key).write_text(f"{value}\n", encoding="utf-8")
