"""How an artifact is measured once, a function for each style of workload. Ids in and ids out, greedy, batch 1.

Clocks are monotonic, garbage collection is off in the timed part, and everything that is read from the kernel
is read outside it.
"""

import gc
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from bench.workloads import Workload, prompt_ids, row_ids
from devices import process, state
from devices.artifact import Artifact
from devices.energy import Meter
from devices.errors import UserError
from devices.runtime import Classifier, Decoder

Found = dict[str, Any]
WARM_STEPS = 2
SLICE = 1.0  # seconds that a point of `over_time` covers, at least
SAMPLES = 10_000  # a sustained run keeps at most about so many times of tokens, evenly thinned
EVERY = 15.0  # seconds between two lines of progress


@contextmanager
def timed() -> Iterator[Found]:
    """Around what is timed: no garbage collection; afterwards `energy` is in the dict that it gives."""
    found: Found = {}
    gc.collect()
    gc.disable()
    try:
        with Meter() as meter:
            yield found
    finally:
        gc.enable()
    found["energy"] = meter.read()


def generate(artifact: Artifact, workload: Workload, request: Found) -> Found:
    """Seconds to load, to the first token and for each further one, in a process that has been asked before.

    The cache holds the workload's positions and no more. One prompt and two steps go before and are told
    apart (`warm_up`); memory is read after loading, after that prompt and at the end.
    """
    decoder, found = _ready(artifact, workload, request)
    prompt = [prompt_ids(artifact.model["vocab"], workload.prompt or 1, request["seed"])]
    slower = request.get("slower")
    with timed() as around:
        first_token_s, token_s = _pass(decoder, prompt, workload.generate or 1, slower)
    found["memory"]["end"] = state.memory()
    return {**found, **around, "first_token_s": first_token_s, "token_s": token_s}


def _ready(artifact: Artifact, workload: Workload, request: Found) -> tuple[Decoder, Found]:
    """A decoder that has been asked once, and what that took: load_s, warm_up, memory, threads."""
    assert workload.prompt is not None and workload.generate is not None
    began = time.perf_counter()
    decoder = Decoder(artifact, request["threads"], context=workload.prompt + workload.generate)
    load_s = time.perf_counter() - began
    memory = {"load": state.memory()}
    prompt = [prompt_ids(artifact.model["vocab"], workload.prompt, request["seed"])]
    start = time.perf_counter()
    logits = decoder.prefill(prompt)
    first = last = time.perf_counter()
    token_s = []
    for _ in range(min(WARM_STEPS, workload.generate)):
        logits = decoder.step(logits.argmax(axis=-1), copy=False)
        token_s.append(time.perf_counter() - last)
        last = time.perf_counter()
    memory["prompt"] = state.memory()
    warm_up = {"first_token_s": first - start, "token_s": token_s}
    return decoder, {"load_s": load_s, "warm_up": warm_up, "memory": memory, "threads": decoder.threads}


def _pass(
    decoder: Decoder, prompt: list[list[int]], new: int, slower: float | None = None
) -> tuple[float, list[float]]:
    """Seconds from the prompt to the first token, and for each of the `new` - 1 that follow.

    `slower` is for tests of the comparison alone: it makes each of them so many times as long, by waiting.
    """
    start = time.perf_counter()
    token = decoder.prefill(prompt).argmax(axis=-1)
    last = time.perf_counter()
    if slower:
        last = _wait(start, last, slower)
    first_token_s = last - start
    token_s = []
    for _ in range(new - 1):
        token = decoder.step(token, copy=False).argmax(axis=-1)
        now = time.perf_counter()
        if slower:
            now = _wait(last, now, slower)
        token_s.append(now - last)
        last = now
    return first_token_s, token_s


def _wait(since: float, now: float, slower: float) -> float:
    until = since + (now - since) * slower
    while now < until:
        now = time.perf_counter()
    return now


def sustained(artifact: Artifact, workload: Workload, request: Found) -> Found:
    """`generate` again and again for the workload's minutes; `over_time` has a point for each second or pass.

    A point: `at_s` since the start, the medians `token_s` and `first_token_s`, `mhz` and `celsius` then. A
    processor that slows down when it is hot shows there. Of the tokens' times, evenly thinned ones are kept.
    """
    decoder, found = _ready(artifact, workload, request)
    prompt = [prompt_ids(artifact.model["vocab"], workload.prompt or 1, request["seed"])]
    length = (workload.minutes or 0) * 60
    points: list[Found] = []
    firsts: list[float] = []
    tokens: list[float] = []
    with timed() as around:
        began = said = time.perf_counter()
        while not points or time.perf_counter() - began < length:
            point, one, many = _slice(decoder, prompt, workload.generate or 1, began)
            points.append(point)
            firsts += one
            tokens += many
            if time.perf_counter() - said >= EVERY:
                said = time.perf_counter()
                _progress(point, length)
    found["memory"]["end"] = state.memory()
    kept = tokens[:: len(tokens) // SAMPLES + 1]
    return {
        **found,
        **around,
        "first_token_s": float(np.median(firsts)),
        "token_s": kept,
        "over_time": points,
    }


def _slice(
    decoder: Decoder, prompt: list[list[int]], new: int, began: float
) -> tuple[Found, list[float], list[float]]:
    """Passes for at least SLICE seconds: a point of `over_time`, seconds to first tokens and for the others."""
    firsts: list[float] = []
    tokens: list[float] = []
    start = time.perf_counter()
    while not firsts or time.perf_counter() - start < SLICE:
        first, others = _pass(decoder, prompt, new)
        firsts.append(first)
        tokens += others
    point = {
        "at_s": round(time.perf_counter() - began, 3),
        "first_token_s": float(np.median(firsts)),
        "token_s": float(np.median(tokens)) if tokens else None,
        "mhz": state.mhz(),
        "celsius": state.celsius(),
    }
    return point, firsts, tokens


def _progress(point: Found, length: float) -> None:
    token = "" if point["token_s"] is None else f", {point['token_s'] * 1e3:.3g} ms/token"
    heat = "" if point["celsius"] is None else f", {point['celsius']:.0f} degrees"
    line = {"progress": f"sustained: {point['at_s']:.0f} of {length:.0f} s{token}{heat}"}
    os.write(1, (json.dumps(line) + "\n").encode())


def cold(artifact: Artifact, workload: Workload, request: Found) -> Found:
    """Seconds from the start of a process to its first token, `passes` times (bench/cold.py is that process).

    `start_s` is the whole, `load_s` its part from the end of the imports to a decoder that is ready, every
    file's hash verified. The files are in the page cache: a board that has just booted takes longer.
    """
    answers = []
    for _ in range(workload.passes):
        began = time.monotonic()
        answer = _child("bench.cold", {**request, "artifact": str(artifact.path)})
        answers.append({**answer, "start_s": answer["first"] - began})
    peak = max(answers, key=lambda one: one["memory"]["peak"] or 0)
    return {
        "start_s": [one["start_s"] for one in answers],
        "load_s": float(np.median([one["loaded"] - one["main"] for one in answers])),
        "memory": {"end": peak["memory"]},
        "threads": answers[0]["threads"],
    }


def bandwidth(request: Found) -> Found:
    """Bytes a second that so many threads read from memory: a process of its own, told how by the request."""
    # A library that splits one thread's work among others would make one thread look fast.
    single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return _child("bench.bandwidth", {"threads": request["threads"]}, **single)


def _child(module: str, request: Found, **variables: str) -> Found:
    """What our `module`, a process on this machine that ends with this one, answers."""
    import subprocess  # by none of the processes whose memory is measured

    done = subprocess.run(
        process.command(module, str(os.getpid())),
        input=json.dumps(request),
        env={**process.environment(), **variables},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(last if done.returncode == 2 else f"{module} failed ({last[:200]}); run it again")
    return json.loads(done.stdout)


def classify(artifact: Artifact, workload: Workload, request: Found) -> Found:
    """Seconds to load and per sentence, a sample per pass over all rows; tokenizing counts for texts."""
    assert workload.rows is not None and workload.tokens is not None
    rows = request.get("rows")
    began = time.perf_counter()
    classifier = Classifier(artifact, request["threads"])
    load_s = time.perf_counter() - began
    memory = {"load": state.memory()}
    if rows is None:
        ids = row_ids(artifact.model["vocab"], workload.rows, workload.tokens, request["seed"])
        count, run = len(ids), lambda: classifier.predict_ids(ids, workload.batch)
    else:
        texts = as_rows(rows[: workload.rows])
        count, run = len(texts), lambda: classifier.predict(texts, workload.batch)
    start = time.perf_counter()
    run()
    warm_up = {"sentence_s": (time.perf_counter() - start) / count}
    memory["prompt"] = state.memory()
    slower = request.get("slower")
    sentence_s = []
    with timed() as around:
        for _ in range(workload.passes):
            start = time.perf_counter()
            run()
            end = time.perf_counter()
            if slower:
                end = _wait(start, end, slower)
            sentence_s.append((end - start) / count)
    memory["end"] = state.memory()
    found = {"load_s": load_s, "warm_up": warm_up, "memory": memory, "threads": classifier.threads}
    return {**found, **around, "sentence_s": sentence_s}


def as_rows(rows: list[list[str | None]]) -> list[tuple[str, str | None]]:
    """Rows as JSON carries them, as the classifier takes them."""
    return [(row[0] or "", row[1]) for row in rows]


# By a workload's `style`.
STYLES: dict[str, Callable[[Artifact, Workload, Found], Found]] = {
    "generate": generate,
    "sustained": sustained,
    "cold": cold,
    "classify": classify,
}
