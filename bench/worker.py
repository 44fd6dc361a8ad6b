"""The process that measures one artifact once: `python -m bench.worker` reads a request, answers a line.

A process id as its only argument is that of who asks: the worker ends with it.

The request is a JSON object on standard input, the answer one line of JSON on standard output. Each round
gets a process of its own, because peak memory is the process's high-water mark and a warm allocator, page
cache of the heap or thread pool of another artifact would show in the times.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench import instructions, quality
from bench.measure import STYLES, as_rows
from bench.measure import bandwidth as read_bandwidth
from bench.workloads import Workload
from devices import cores
from devices.artifact import open_artifact
from devices.errors import UserError
from devices.machine import environment, physical_cores
from devices.process import end_with
from devices.runtime import Classifier, Decoder
from devices.state import Busy, clocks
from devices.text import encode_text, read_text
from devices.threads import candidates


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """One timed round, as the request's workload asks; memory is read before anything else happens."""
    busy, before = Busy(), clocks()
    artifact = open_artifact(Path(request["artifact"]), verify=False)
    workload = Workload(**request["workload"])
    cpus = cores.choose(request.get("affinity"), request["threads"])
    with cores.pinned(cpus):
        found = STYLES[workload.style](artifact, workload, request)
        machine = {**busy.read(), "before": before, "after": clocks()}
    peak = found["memory"]["end"]["peak"]
    return {
        **found,
        "peak_rss_bytes": peak,
        "affinity": cpus,
        "machine": machine,
        "environment": environment(),
    }


def bandwidth(request: dict[str, Any]) -> dict[str, Any]:
    """How fast so many threads read memory, on the processors that the rounds will use."""
    with cores.pinned(cores.choose(request.get("affinity"), request["threads"])):
        return read_bandwidth(request)


def threads(request: dict[str, Any]) -> dict[str, Any]:
    """How many threads the artifact gets where none are named, and where that comes from.

    Asked before the rounds: a sweep's sessions would show in a round's times and in its peak memory.
    """
    artifact = open_artifact(Path(request["artifact"]), verify=False)
    opened = (Decoder if artifact.kind == "decoder" else Classifier)(artifact, request["threads"])
    return {
        "threads": opened.threads,
        "threads_from": opened.threads_from,
        "candidates": candidates(physical_cores()),
    }


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


ACTIONS = {
    "measure": measure,
    "instructions": instructions.count,  # in place of measure, where seconds mean nothing
    "threads": threads,
    "bandwidth": bandwidth,
    "perplexity": perplexity,
    "predict": predict,
}


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
