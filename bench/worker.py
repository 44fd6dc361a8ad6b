"""The process that measures one artifact once: `python -m bench.worker` reads a request, answers a line.

A process id as its only argument is that of who asks: the worker ends with it.

The request is a JSON object on standard input, the answer one line of JSON on standard output. Each round
gets a process of its own, because peak memory is the process's high-water mark and a warm allocator, page
cache of the heap or thread pool of another artifact would show in the times.
"""

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import instructions, quality
from bench.workloads import Workload, prompt_ids, row_ids
from devices.artifact import Artifact, open_artifact
from devices.errors import UserError
from devices.machine import environment, peak_rss, physical_cores
from devices.process import end_with
from devices.runtime import Classifier, Decoder
from devices.text import encode_text, read_text


def measure_decoder(artifact: Artifact, workload: Workload, threads: int | None, seed: int) -> dict[str, Any]:
    """Seconds to load, to the first token and for each further one; greedy, batch 1, ids in and ids out.

    The cache holds the workload's positions and no more. One untimed prompt and two steps go before, so
    that the times are those of a process that has been asked before; the tokenizer is never loaded.
    """
    assert workload.prompt is not None and workload.generate is not None
    began = time.perf_counter()
    decoder = Decoder(artifact, threads, context=workload.prompt + workload.generate)
    loaded = time.perf_counter()
    prompt = [prompt_ids(artifact.model["vocab"], workload.prompt, seed)]
    logits = decoder.prefill(prompt)
    for _ in range(min(2, workload.generate)):
        logits = decoder.step(logits.argmax(axis=-1), copy=False)
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    token = decoder.prefill(prompt).argmax(axis=-1)
    first = last = time.perf_counter()
    token_s = []
    for _ in range(workload.generate - 1):
        token = decoder.step(token, copy=False).argmax(axis=-1)
        now = time.perf_counter()
        token_s.append(now - last)
        last = now
    return {
        "load_s": loaded - began,
        "first_token_s": first - start,
        "token_s": token_s,
        "threads": decoder.threads,
    }


def measure_classifier(
    artifact: Artifact,
    workload: Workload,
    threads: int | None,
    seed: int,
    rows: list[list[str | None]] | None,
) -> dict[str, Any]:
    """Seconds to load and per sentence, a sample per pass over all rows; tokenizing counts for texts."""
    assert workload.rows is not None and workload.tokens is not None
    began = time.perf_counter()
    classifier = Classifier(artifact, threads)
    loaded = time.perf_counter()
    if rows is None:
        ids = row_ids(artifact.model["vocab"], workload.rows, workload.tokens, seed)
        count, run = len(ids), lambda: classifier.predict_ids(ids, workload.batch)
    else:
        texts = as_rows(rows[: workload.rows])
        count, run = len(texts), lambda: classifier.predict(texts, workload.batch)
    run()
    gc.collect()
    gc.disable()
    sentence_s = []
    for _ in range(workload.passes):
        start = time.perf_counter()
        run()
        sentence_s.append((time.perf_counter() - start) / count)
    return {"load_s": loaded - began, "sentence_s": sentence_s, "threads": classifier.threads}


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """One timed round, as the request's workload asks; peak memory is read before anything else happens."""
    artifact = open_artifact(Path(request["artifact"]), verify=False)
    workload = Workload(**request["workload"])
    threads, seed = request["threads"], request["seed"]
    if artifact.kind == "decoder":
        found = measure_decoder(artifact, workload, threads, seed)
    else:
        found = measure_classifier(artifact, workload, threads, seed, request.get("rows"))
    return {**found, "peak_rss_bytes": peak_rss(), "environment": environment()}


def threads(request: dict[str, Any]) -> dict[str, Any]:
    """How many threads the artifact gets where none are named, and where that comes from.

    Asked before the rounds: a sweep's sessions would show in a round's times and in its peak memory.
    """
    artifact = open_artifact(Path(request["artifact"]), verify=False)
    opened = (Decoder if artifact.kind == "decoder" else Classifier)(artifact, request["threads"])
    return {"threads": opened.threads, "threads_from": opened.threads_from}


def perplexity(request: dict[str, Any]) -> dict[str, Any]:
    """Perplexity of a decoder on a text file, one window at a time, as it would be used."""
    artifact = open_artifact(Path(request["artifact"]), verify=False)
    # The default is for a token at a time; whole windows use all cores.
    decoder = Decoder(artifact, request["threads"] or physical_cores())
    text = read_text(Path(request["corpus"]))
    window = request["window"] or quality.default_window(artifact.model["positions"])
    blocks = quality.windows(encode_text(decoder.tokenizer, text), window, request["blocks"])
    return quality.perplexity(decoder.logits, blocks)


def predict(request: dict[str, Any]) -> dict[str, Any]:
    """Logits of every row of a task; what they are worth is computed by who asked."""
    artifact = open_artifact(Path(request["artifact"]), verify=False)
    classifier = Classifier(artifact, request["threads"] or physical_cores())
    logits = classifier.predict(as_rows(request["rows"]))
    return {"logits": np.asarray(logits, dtype=np.float64).tolist()}


def as_rows(rows: list[list[str | None]]) -> list[tuple[str, str | None]]:
    """Rows as JSON carries them, as the classifier takes them."""
    return [(row[0] or "", row[1]) for row in rows]


ACTIONS = {"measure": measure, "threads": threads, "perplexity": perplexity, "predict": predict}
ACTIONS["instructions"] = instructions.count  # in place of measure, where seconds mean nothing


def main() -> int:
    """Answer the request on standard input: 0, or 2 with one line on standard error."""
    if sys.argv[1:]:
        end_with(int(sys.argv[1]))
    try:
        request = json.load(sys.stdin)
        answer = ACTIONS[request["action"]](request)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except MemoryError:
        sys.stderr.write("out of memory; use a smaller model, window or workload\n")
        return 2
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
