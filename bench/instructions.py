"""Instructions in place of seconds: what an artifact costs on an emulated processor.

The emulator's plugin (devices/emulated/instructions.c) counts what the guest executes; a system call of our own asks
it for the counts so far. Two such marks bracket a piece of work. Time, energy and memory mean nothing there: the
emulator's are not the device's.
"""

import gc
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.stats import spread
from bench.workloads import Workload, prompt_ids, row_ids
from devices.artifact import Artifact, open_artifact
from devices.errors import UserError
from devices.machine import environment
from devices.marks import Counts, Marks

REPEATS = 3  # of each piece of work within a process, of which the fewest counts: see count
KEYS = ("load", "first_token", "per_prompt_token", "per_generated_token", "per_sentence")
UNKNOWN_THERE = (
    "memory_bytes",
    "memory_available_bytes",
    "governor",
    "mhz",
    "load",
)  # the host's, not the device's


def settled(chosen: Any) -> Any:
    """The settings of bench.run for a device without time: one thread, since threads wait for each other by
    spinning, and how long is chance. UserError for more."""
    if chosen.threads not in (None, 1, [1], (1,)):
        raise UserError(
            f"threads is {chosen.threads}; instructions are counted with 1, since waiting for others costs them too: "
            "leave --threads out"
        )
    return replace(chosen, threads=1)


def count(request: dict[str, Any]) -> dict[str, Any]:
    """One round: `instructions` and `instructions_all`, of the main thread and of all, counts by KEYS.

    Of REPEATS the fewest is taken: what the allocator's state adds to one or the other differs, up to 0.2 %.
    """
    artifact = open_artifact(Path(request["artifact"]), verify=False)
    workload = Workload(**request["workload"])
    if artifact.kind == "decoder":
        found = count_decoder(artifact, workload, request["seed"])
    else:
        found = count_classifier(artifact, workload, request["seed"])
    return {
        "instructions": {key: min(main for main, _ in counts) for key, counts in found.items()},
        "instructions_all": {key: min(every for _, every in counts) for key, counts in found.items()},
        "threads": 1,
        "peak_rss_bytes": None,
        "environment": {
            **environment(),
            **dict.fromkeys(UNKNOWN_THERE),
            "emulator": os.environ.get("EMULATOR"),
        },
    }


def count_decoder(artifact: Artifact, workload: Workload, seed: int) -> dict[str, list[tuple[float, float]]]:
    """Instructions to load, to the first token, per token of the prompt and per generated one; one thread.

    Greedy, batch 1; the whole is done once before it counts, since the first time also allocates. The first token
    is the prompt and the choice of its successor; a prompt token is its share of that.
    """
    from devices.runtime import Decoder  # only in the worker: who asks need not load ONNX Runtime

    assert workload.prompt is not None and workload.generate is not None
    marks = Marks()
    marks.set()
    decoder = Decoder(artifact, 1, context=workload.prompt + workload.generate)
    marks.set()
    load = marks.read()
    prompt = [prompt_ids(artifact.model["vocab"], workload.prompt, seed)]
    gc.collect()
    gc.disable()
    first, steps = [], []
    for _ in range(1 + REPEATS):
        marks.set()
        token = decoder.prefill(prompt).argmax(axis=-1)
        marks.set()
        for _ in range(workload.generate - 1):
            token = decoder.step(token, copy=False).argmax(axis=-1)
        marks.set()
        begun, prefilled, ended = marks.read()
        first.append(_between(begun, prefilled))
        steps.append(_between(prefilled, ended, workload.generate - 1))
    del first[0], steps[0]
    return {
        "load": [_between(load[0], load[1])],
        "first_token": first,
        "per_prompt_token": [(main / workload.prompt, every / workload.prompt) for main, every in first],
        **({"per_generated_token": steps} if workload.generate > 1 else {}),
    }


def count_classifier(
    artifact: Artifact, workload: Workload, seed: int
) -> dict[str, list[tuple[float, float]]]:
    """Instructions to load and per sentence of ids, one thread; a first pass is not counted."""
    from devices.runtime import Classifier

    assert workload.rows is not None and workload.tokens is not None
    marks = Marks()
    marks.set()
    classifier = Classifier(artifact, 1)
    marks.set()
    load = marks.read()
    ids = row_ids(artifact.model["vocab"], workload.rows, workload.tokens, seed)
    classifier.predict_ids(ids, workload.batch)
    gc.collect()
    gc.disable()
    passes = []
    for _ in range(REPEATS):
        marks.set()
        classifier.predict_ids(ids, workload.batch)
        marks.set()
        begun, ended = marks.read()
        passes.append(_between(begun, ended, len(ids)))
    return {"load": [_between(load[0], load[1])], "per_sentence": passes}


def _between(begun: Counts, ended: Counts, pieces: int = 1) -> tuple[float, float]:
    return (ended[0] - begun[0]) / pieces, (ended[1] - begun[1]) / pieces


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What a result's `instructions` holds: a spread over rounds by key, the same of all threads, and how far
    rounds differ: `repeats_within`, the largest (most - fewest) / median. None where nothing counted.
    """
    if not rounds or rounds[0].get("instructions") is None:
        return None

    def pooled(field: str) -> dict[str, Any]:
        return {key: spread([r[field][key] for r in rounds if key in r[field]]) for key in KEYS}

    found = pooled("instructions")
    within = [(max(one["samples"]) - min(one["samples"])) / one["median"] for one in found.values() if one]
    return {**found, "all_threads": pooled("instructions_all"), "repeats_within": max(within)}
