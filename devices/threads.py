"""How many threads: tried out when an artifact is first opened on a machine, and remembered.

More threads are not always faster: on shared or few cores one can beat two, and what pays depends on the
model's size. The answer lies in the user's cache folder, by artifact, processor, usable cores and ONNX Runtime.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort

from devices.artifact import Artifact
from devices.errors import UserError
from devices.files import cache_folder, read_json, write_json
from devices.machine import cpu_model, physical_cores, usable_threads
from devices.session import thread_count

GAIN = 0.95  # more threads are taken only if they need less than this share of the time
STEPS, SECONDS = (3, 16), 0.05  # timed calls per candidate, at least and at most; enough after so long


def choose(
    artifact: Artifact, asked: int | None, prepare: Callable[[int], Callable[[], object]]
) -> tuple[int, str]:
    """How many threads to use, and where that comes from: asked, remembered, sweep or cores.

    `prepare(threads)` gives a call to time, opened for that many threads. An artifact without an identity
    (one that is only being written) gets the physical cores.
    """
    if asked is not None or not artifact.sha256:
        return thread_count(asked), "cores" if asked is None else "asked"
    path = _place(artifact)
    known = _recall(path)
    if known is not None:
        return known, "remembered"
    times = sweep(candidates(physical_cores()), prepare)
    best = fewest(times)
    if len(times) > 1:
        _remember(path, {"threads": best, "seconds": {str(n): seconds for n, seconds in times.items()}})
    return best, "sweep"


def candidates(cores: int) -> list[int]:
    """Powers of two below `cores`, and `cores`."""
    return [*(1 << n for n in range(cores.bit_length()) if 1 << n < cores), cores]


def sweep(counts: list[int], prepare: Callable[[int], Callable[[], object]]) -> dict[int, float]:
    """Median seconds of a call by threads, in the order given, until twice in a row more threads gain nothing.

    A single candidate needs no measurement.
    """
    if len(counts) == 1:
        return {counts[0]: 0.0}
    times: dict[int, float] = {}
    for count in counts:
        times[count] = _median_seconds(prepare(count))
        if fewest(times) not in list(times)[-2:]:
            break
    return times


def fewest(times: dict[int, float]) -> int:
    """The number of threads to take: each larger one must earn its place."""
    best = min(times)
    for count in sorted(times):
        if times[count] < GAIN * times[best]:
            best = count
    return best


def _median_seconds(call: Callable[[], object]) -> float:
    call()  # the first one also touches memory for the first time
    samples: list[float] = []
    least, most = STEPS
    while len(samples) < least or (len(samples) < most and sum(samples) < SECONDS):
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
    return sorted(samples)[len(samples) // 2]


def _place(artifact: Artifact) -> Path | None:
    """The file that remembers; None where the system names no home."""
    key = json.dumps([artifact.sha256, cpu_model(), usable_threads(), ort.__version__])
    try:
        return cache_folder("threads") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    except (RuntimeError, OSError):
        return None


def _recall(path: Path | None) -> int | None:
    """The number in the file, unless there is none that makes sense here."""
    try:
        found = read_json(path, "a number of threads").get("threads") if path else None
    except (UserError, OSError):
        return None
    return found if type(found) is int and 1 <= found <= usable_threads() else None


def _remember(path: Path | None, answer: dict[str, object]) -> None:
    """Write the file where it can be written: a cache that cannot is no error, only slower next time."""
    if path is None:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, answer)
