"""How the machine is doing while something is measured: memory, processor time of others, clock, temperature.

All of it is read from /proc and /sys outside the timed part; what cannot be read is null.
"""

import os
import time
from pathlib import Path
from typing import Any

PROC = Path("/proc")
SYS = Path("/sys")
# Fields of the first line of /proc/stat (proc_stat(5)): waiting is not working.
USER, NICE, SYSTEM, IDLE, IOWAIT, IRQ, SOFTIRQ, STEAL = range(8)


def memory() -> dict[str, int | None]:
    """Bytes of this process: `peak` (VmHWM, the kernel's high-water mark), `resident`, of that `anonymous` and
    `file` (mapped files, as weights are, which the kernel may drop and read again).

    From smaps_rollup, which counts pages; where that is missing, from status, whose counters lag a little.
    """
    status = _fields(_read(PROC / "self/status"))
    rollup = _fields(_read(PROC / "self/smaps_rollup"))
    resident = rollup.get("Rss", status.get("VmRSS"))
    anonymous = rollup.get("Anonymous", status.get("RssAnon"))
    file = None if resident is None or anonymous is None else max(resident - anonymous, 0)
    return {"peak": status.get("VmHWM"), "resident": resident, "anonymous": anonymous, "file": file}


def clocks() -> dict[str, Any]:
    """Governor, clock and temperature now, and the load average: {governor, mhz, celsius, load}."""
    return {"governor": governor(), "mhz": mhz(), "celsius": celsius(), "load": _load()}


def governor() -> str | None:
    """The first processor's frequency governor."""
    return _read(SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor")


def mhz() -> float | None:
    """The mean clock of the processors this process may use, in MHz; a virtual machine's may be a fixed number."""
    root = SYS / "devices/system/cpu"
    found = [_read(root / f"cpu{cpu}/cpufreq/scaling_cur_freq") for cpu in _allowed()]
    clocks = [int(text) / 1000 for text in found if text and text.isdecimal()]
    if not clocks:
        lines = (_read(PROC / "cpuinfo") or "").splitlines()
        clocks = [
            float(value)
            for name, _, value in (line.partition(":") for line in lines)
            if name.strip() == "cpu MHz" and _is_number(value)
        ]
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def celsius() -> float | None:
    """The hottest thermal zone, in degrees: what makes a board slow down."""
    found = [_read(zone / "temp") for zone in SYS.glob("class/thermal/thermal_zone*")]
    degrees = [int(text) / 1000 for text in found if text and text.lstrip("-").isdecimal()]
    return max(degrees) if degrees else None


class Busy:
    """Processor time since it was made: how much of the machine others used meanwhile, and how much we did."""

    def __init__(self) -> None:
        self.began, self.ours, self.all = time.monotonic(), _own(), _stat()

    def read(self) -> dict[str, float | None]:
        """`others` and `stolen` (by a hypervisor's other guests), as shares of all processors' time, and `ours`."""
        now, ours = _stat(), _own() - self.ours
        if now is None or self.all is None:
            return {"others": None, "stolen": None, "ours": None}
        spent = [after - before for before, after in zip(self.all, now, strict=True)]
        tick = os.sysconf("SC_CLK_TCK")
        total = sum(spent) / tick
        if total <= 0:
            return {"others": None, "stolen": None, "ours": None}
        stolen = spent[STEAL] / tick
        busy = total - (spent[IDLE] + spent[IOWAIT]) / tick - stolen
        shares = {"others": max(busy - ours, 0.0), "stolen": stolen, "ours": ours}
        return {name: round(min(share / total, 1.0), 3) for name, share in shares.items()}


def cache_bytes() -> int | None:
    """Size of the largest cache of the first processor."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    found = []
    for index in SYS.glob("devices/system/cpu/cpu0/cache/index*"):
        text = _read(index / "size") or ""
        if text[:-1].isdecimal() and text[-1] in units:
            found.append(int(text[:-1]) * units[text[-1]])
    return max(found, default=None)


def _own() -> float:
    """Seconds of processor time of this process and of the children it has waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _stat() -> list[int] | None:
    """The first line of /proc/stat: ticks by kind, over all processors."""
    words = (_read(PROC / "stat") or "").partition("\n")[0].split()
    if len(words) < 9 or words[0] != "cpu" or not all(word.isdecimal() for word in words[1:9]):
        return None
    return [int(word) for word in words[1:9]]


def _fields(text: str | None) -> dict[str, int]:
    """Lines "Name:  12 kB" as bytes by name."""
    found = {}
    for line in (text or "").splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[0].isdecimal() and words[1] == "kB":
            found[name] = int(words[0]) * 1024
    return found


def _allowed() -> list[int]:
    try:
        return sorted(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return list(range(os.cpu_count() or 1))


def _load() -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except OSError:
        return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
