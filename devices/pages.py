"""How the kernel keeps the weights in memory: in large pages where they are streamed, in small ones where
single rows are read.

A step of generation reads all weights once. In pages of 4 KiB the processor looks up an address and starts
its prefetching anew 20,000 times for 80 MB; in pages of 2 MiB 40 times (docs/log.md: a fifth to a third more
tokens per second). Only Linux is asked, and what it declines stays as it was.
"""

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

SMAPS = Path("/proc/self/smaps")
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE = 1 << 21
MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_COLLAPSE = 14, 15, 16, 25  # <asm-generic/mman-common.h>
STRIP = (
    1 << 16
)  # bytes of a mapped file that one row may make resident; what Linux maps around a fault anyway
FULL = 0.9  # of a region resident: weights are, stacks and unused arenas are not and must not be filled
HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)")

Region = tuple[int, int, str, int]  # start, end, path ("" or "[heap]" where none), resident anonymous bytes


def regions() -> list[Region]:
    """The private writable and the mapped regions of this process; empty where the kernel does not tell."""
    try:
        lines = SMAPS.read_text().splitlines()
    except OSError:
        return []
    return list(_parse(lines))


def _parse(lines: list[str]) -> Iterator[Region]:
    start, end, path = 0, 0, ""
    for line in lines:
        if found := HEADER.fullmatch(line):
            start, end, path = int(found[1], 16), int(found[2], 16), found[4]
        elif line.startswith("Anonymous:"):
            yield start, end, path, int(line.split()[1]) * 1024


def settle(before: list[Region], data: Path) -> None:
    """Put what has come since `before` into large pages, and the file `data` into small ones.

    Of the file only the embedding's rows stay mapped after loading: mapped by large pages, a prompt of 128
    tokens makes nearly all of them resident. The same goes for large folios of the page cache, which Linux
    (6.16 and later) maps whole where they fit the region: so it is cut into strips that few fit, every other
    one left out of core dumps, since only regions that differ stay apart. Memory does not grow, since only
    full regions are collapsed.
    """
    try:
        offered = "[never]" not in ENABLED.read_text()
        advise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    known, name = {(start, end) for start, end, *_ in before}, str(data.resolve())
    for start, end, path, anonymous in regions():
        if path == name:
            advise(start, end - start, MADV_NOHUGEPAGE)
            for strip in range(start + STRIP, end, 2 * STRIP):
                advise(strip, min(STRIP, end - strip), MADV_DONTDUMP)
        new = (start, end) not in known and path in ("", "[heap]")
        if offered and new and end - start >= HUGE and anonymous >= FULL * (end - start):
            advise(start, end - start, MADV_HUGEPAGE)
            first, last = -(-start // HUGE) * HUGE, end // HUGE * HUGE
            advise(first, max(last - first, 0), MADV_COLLAPSE)
