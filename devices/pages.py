"""How the kernel keeps the weights in memory: in large pages where they are streamed, not at all where only
loading has read them.

A step of generation reads all weights once. In pages of 4 KiB the processor looks up an address and starts
its prefetching anew 20,000 times for 80 MB; in pages of 2 MiB 40 times (docs/log.md: a fifth to a third more
tokens per second). Only Linux is asked, and what it declines stays as it was.
"""

import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path

SMAPS = Path("/proc/self/smaps")
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE = 1 << 21
MADV_DONTNEED, MADV_HUGEPAGE, MADV_DONTDUMP, MADV_COLLAPSE = 4, 14, 16, 25  # <asm-generic/mman-common.h>
STRIP = 1 << 16  # bytes that one row may make resident: what Linux maps around a fault anyway
STRIPS = 1 << 12  # at most so many of one mapping; a process may have 65,530 regions
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
    """Put what has come since `before` into large pages, and give back what loading has read of the file `data`.

    Of the file only the embedding's rows stay in use after loading, but the head, which is the same table, was
    packed from it: all of it is resident. Those pages are the file's own, and the kernel brings back whatever
    is read again; a mapping with pages that were written to is left alone. Memory does not grow by large pages
    either, since only full regions are collapsed.
    """
    found, advise = regions(), _madvise()
    if advise is None:
        return
    known, name, offered = {(start, end) for start, end, *_ in before}, str(data.resolve()), _offered()
    for start, end, path, anonymous in found:
        if path == name and not anonymous:
            advise(start, end - start, MADV_DONTNEED)
            _cut(advise, start, end)
        new = (start, end) not in known and path in ("", "[heap]")
        if offered and new and end - start >= HUGE and anonymous >= FULL * (end - start):
            advise(start, end - start, MADV_HUGEPAGE)
            first, last = -(-start // HUGE) * HUGE, end // HUGE * HUGE
            advise(first, max(last - first, 0), MADV_COLLAPSE)


def _cut(advise: Callable[[int, int, int], int], start: int, end: int) -> None:
    """Cut a mapping of the file into strips, so that a row of the embedding brings back a strip and not a folio.

    Linux (6.16 and later) maps a large folio of the page cache whole where it fits the region. Only regions
    that differ stay apart: every other strip is left out of core dumps.
    """
    strip = max(STRIP, -(-(end - start) // STRIPS // STRIP) * STRIP)
    for at in range(start + strip, end, 2 * strip):
        advise(at, min(strip, end - at), MADV_DONTDUMP)


def _madvise() -> Callable[[int, int, int], int] | None:
    """madvise(2) of an address, a length and an advice; None where the system has no such call."""
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, TypeError):
        return None
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise


def _offered() -> bool:
    """Whether the kernel has large pages for memory that asks for them."""
    try:
        return "[never]" not in ENABLED.read_text()
    except OSError:
        return False
