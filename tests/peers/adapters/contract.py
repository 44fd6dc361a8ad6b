"""What every adapter does alike: read one request, take the times and the memory, answer one line.

An adapter runs in its peer's environment, a fresh process for each measurement, so this file needs numpy
and nothing else. A request is a JSON object on standard input that names an `action` and:

- `generate`: `model` (the peer's own file or folder), `ids` (the prompt), `new` (tokens to pick greedily),
  `threads`, `settings` (what the harness chose for this peer);
- `classify`: `model`, `rows` (lists of ids), `batch`, `sort`, `threads`, `settings`;
- `convert`: `checkpoint` (an HF folder), `out`, `variant`: the peer's own conversion;
- `export`: `checkpoint`, `out`: the conversion to int8 that is itself timed.

The answer is one line of JSON, seconds and bytes.
"""

import gc
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()  # adapters import this file first: loading a peer counts its imports
WARM_STEPS = 2


def memory() -> dict[str, int]:
    """Bytes from the kernel: the high-water mark, and what is resident now, anonymous and of mapped files."""
    keys = {"VmHWM": "peak", "RssAnon": "anonymous", "RssFile": "file"}
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {keys[line[0][:-1]]: int(line[1]) * 1024 for line in lines if line and line[0][:-1] in keys}


def stepwise(request: dict[str, Any], load: Callable[[], tuple[Callable, Callable]]) -> dict[str, Any]:
    """Time a peer that is driven token by token.

    `load` gives two functions: one takes a prompt's ids, starts anew and gives the first token; the other
    takes a token and gives the next. A prompt and two steps go before, untimed, as for every peer.
    """
    prompt, step = load()
    load_s, at_load = time.perf_counter() - BEGAN, memory()
    token = prompt(request["ids"])
    at_prompt = memory()
    for _ in range(WARM_STEPS):
        token = step(token)
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    tokens, times = [prompt(request["ids"])], [time.perf_counter()]
    while len(tokens) < request["new"]:
        tokens.append(step(tokens[-1]))
        times.append(time.perf_counter())
    return timed(load_s, at_load, at_prompt, start, times, tokens)


def timed(
    load_s: float,
    at_load: dict[str, int],
    at_prompt: dict[str, int],
    start: float,
    times: list[float],
    tokens: list[int],
) -> dict[str, Any]:
    """The answer to `generate`, from the moment the prompt went in and those at which tokens came out."""
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return {
        "load_s": load_s,
        "first_token_s": times[0] - start,
        "token_s": [round(step, 7) for step in steps],
        "tokens": [int(token) for token in tokens],
        "memory": {"load": at_load, "prompt": at_prompt, "end": memory()},
    }


def batches(rows: list[list[int]], size: int, sort: bool) -> list[list[list[int]]]:
    """`rows` in batches of `size`, by length where `sort` asks for it."""
    rows = sorted(rows, key=len) if sort else rows
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def passes(request: dict[str, Any], run: Callable[[], object], load_s: float) -> dict[str, Any]:
    """Time one pass over all rows of a `classify` request, after an eighth of them untimed."""
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return {
        "load_s": load_s,
        "sentences_s": len(request["rows"]) / seconds,
        "memory": {"end": memory()},
    }


def answer(actions: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Read the request, do it, print the answer; what the peer prints meanwhile goes to standard error."""
    request = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr
    found = actions[request["action"]](request)
    out.write(json.dumps(found) + "\n")
    out.flush()
