"""How fast memory is read: `python -m bench.bandwidth PARENT`, {"threads": n} on standard input.

Each thread reads its share of a buffer several times the size of the largest cache; the best of a few passes
counts. Read by the inner product of a share with itself, numpy's fastest way (a sum in numpy reached 0.6 times
as much), and by its maximum; what a kernel written for it reaches may still be more. numpy asks for large
pages for such a buffer, as devices/pages.py does for weights.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from devices.machine import environment
from devices.process import end_with
from devices.state import cache_bytes

SMALLEST, LARGEST = 64 << 20, 256 << 20  # bytes
TIMES = 4  # the largest cache
PASSES = 7


def size(cache: int | None, available: int | None) -> int:
    """Bytes of the buffer: TIMES the cache within bounds, and at most a quarter of the memory that is free."""
    wanted = min(max(TIMES * (cache or 0), SMALLEST), LARGEST)
    return min(wanted, available // 4) if available else wanted


def read(threads: int, count: int) -> float:
    """Bytes a second that `threads` threads read, of a buffer of `count` bytes."""
    buffer = np.ones(count // 8)
    shares = np.array_split(buffer, threads)
    with ThreadPoolExecutor(threads) as pool:
        best = min(_best(pool, shares, reading) for reading in (_product, np.max))
    return buffer.nbytes / best


def _product(share: Any) -> Any:
    return share @ share


def _best(pool: ThreadPoolExecutor, shares: list[Any], reading: Callable[[Any], Any]) -> float:
    """Seconds of the fastest pass."""
    times = []
    for _ in range(PASSES):
        start = time.perf_counter()
        list(pool.map(reading, shares))
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> int:
    """Answer a line."""
    end_with(int(sys.argv[1]))
    threads = json.load(sys.stdin)["threads"]
    cache = cache_bytes()
    count = size(cache, environment()["memory_available_bytes"])
    found = {"bytes_per_s": read(threads, count), "buffer_bytes": count, "cache_bytes": cache}
    sys.stdout.write(json.dumps({**found, "threads": threads}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
