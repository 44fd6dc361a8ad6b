"""Which logical processors a measurement runs on: the fastest first, one of each core before two of any."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from devices.errors import UserError

CPUS = Path("/sys/devices/system/cpu")


def order(allowed: Iterable[int]) -> list[int]:
    """Processors as threads should get them: of all cores the first thread, big cores before little ones."""
    seen: dict[str, int] = {}
    placed = []
    for cpu in sorted(allowed):
        core = _read(cpu, "topology/thread_siblings_list") or str(cpu)
        seen[core] = seen.get(core, -1) + 1
        placed.append((seen[core], -_capacity(cpu), cpu))
    return [cpu for *_, cpu in sorted(placed)]


def choose(asked: str | None, threads: int) -> list[int] | None:
    """Processors for `threads` threads: those `asked` for ("0,2-3"), none in particular ("none"), or the first
    of `order` (None). None where the system has no affinity; UserError for what is no list or not usable."""
    if not hasattr(os, "sched_getaffinity") or asked == "none":
        return None
    allowed = os.sched_getaffinity(0)
    if asked is None:
        return sorted(order(allowed)[:threads])
    wanted = parse(asked)
    if not set(wanted) <= allowed:
        raise UserError(f"--affinity {asked}: this process may use processors {_written(allowed)} only")
    return wanted


def parse(text: str) -> list[int]:
    """Processor numbers of "0,2-3", in order and once each; UserError for anything else."""
    found: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not (low.isdecimal() and (high.isdecimal() if dash else not high)) or int(high or low) < int(low):
            raise UserError(f"--affinity {text}: is no list of processors; write it like 0,2-3, or none")
        if int(high or low) > 4095:
            raise UserError(f"--affinity {text}: no machine has so many processors; write it like 0,2-3")
        found |= set(range(int(low), int(high or low) + 1))
    return sorted(found)


@contextmanager
def pinned(cpus: list[int] | None) -> Iterator[None]:
    """Let this thread, and those that it starts in the block, run on `cpus` alone (None: wherever they may)."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise UserError(f"--affinity: cannot be set ({error.strerror}); leave it out, or say none") from None
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _capacity(cpu: int) -> int:
    """How fast a core is beside the others: the kernel's capacity on ARM, else the clock it may reach; or 0."""
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        text = _read(cpu, name)
        if text and text.isdecimal():
            return int(text)
    return 0


def _read(cpu: int, name: str) -> str | None:
    try:
        return (CPUS / f"cpu{cpu}" / name).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _written(cpus: Iterable[int]) -> str:
    return ",".join(map(str, sorted(cpus)))
