"""Walks a study: each stage a process of its own, several at once, what failed named and the rest gone on with."""

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from devices.process import command, environment
from toolchain.study.spec import Study
from toolchain.study.stages import arguments, finished, product, subject_path

CACHED, WAITING, RUNNING, DONE, FAILED, SKIPPED = "cached", "waiting", "running", "done", "failed", "skipped"
THERE = (CACHED, DONE)
GONE = (FAILED, SKIPPED)
ALONE = ("bench",)  # what is measured shares the machine with nothing


@dataclass
class Walk:
    """How far a study is: each stage's state, seconds and last line, for whoever shows it."""

    study: Study
    places: dict[str, Path]
    states: dict[str, str] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)


def begin(study: Study, places: dict[str, Path]) -> Walk:
    """The walk before its first step: what an earlier one finished is cached."""
    walk = Walk(study, places)
    for name, stage in study.stages.items():
        walk.states[name] = CACHED if finished(stage, places[name]) else WAITING
    return walk


def walk_stages(walk: Walk, logs: Path, jobs: int, threads: int, changed: Callable[[str], object]) -> None:
    """Run what is not there, at most `jobs` stages at once with `threads` threads each, until nothing is left.

    Each stage's output goes to `logs`/NAME.log; `changed` is told the name of a stage whose state or last line
    is new. A stage that fails is marked, and those that need it are skipped. KeyboardInterrupt is passed on to
    the stages and raised again when they have put away what they can resume from.
    """
    logs.mkdir(parents=True, exist_ok=True)
    ended: queue.Queue[tuple[str, int]] = queue.Queue()
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        while True:
            _skip(walk, changed)
            while (name := _next(walk, len(children), jobs)) is not None:
                children[name] = _start(walk, name, logs, threads, ended, changed)
            if not children:
                return
            name, code = ended.get()
            children.pop(name)
            _end(walk, name, code, changed)
    finally:
        for child in children.values():
            child.send_signal(signal.SIGINT)
        for child in children.values():
            child.wait()


def _skip(walk: Walk, changed: Callable[[str], object]) -> None:
    """Mark what waits for something that failed; stages come in the order in which they need each other."""
    for name, stage in walk.study.stages.items():
        lost = [need for need in stage.needs if walk.states[need] in GONE]
        if walk.states[name] == WAITING and lost:
            walk.states[name], walk.lines[name] = SKIPPED, f"needs {lost[0]}"
            changed(name)


def _next(walk: Walk, running: int, jobs: int) -> str | None:
    """A stage that can start now, or None."""
    kinds = [walk.study.stages[name].kind for name, state in walk.states.items() if state == RUNNING]
    if running >= jobs or any(kind in ALONE for kind in kinds):
        return None
    for name, stage in walk.study.stages.items():
        if walk.states[name] != WAITING or any(walk.states[need] not in THERE for need in stage.needs):
            continue
        twin = any(
            walk.places[other] == walk.places[name] for other, s in walk.states.items() if s == RUNNING
        )
        if not twin and not (stage.kind in ALONE and running):
            return name
    return None


def _start(
    walk: Walk,
    name: str,
    logs: Path,
    threads: int,
    ended: "queue.Queue[tuple[str, int]]",
    changed: Callable[[str], object],
) -> "subprocess.Popen[bytes]":
    """The stage's process, with a thread that reads what it says. From the main thread: a child dies with it."""
    study, stage = walk.study, walk.study.stages[name]
    paths = {need: product(study, need, walk.places[need]) for need in stage.needs}
    walk.places[name].parent.mkdir(parents=True, exist_ok=True)
    words = arguments(stage, subject_path(study, stage, paths), paths, walk.places[name])
    child = subprocess.Popen(
        command("toolchain.study.child", str(os.getpid()), stage.kind, *words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment(), "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
        start_new_session=True,  # Ctrl-C reaches the study alone, which passes it on
    )
    assert child.stdout is not None
    walk.states[name], walk.since[name] = RUNNING, time.monotonic()

    def read(stream: IO[bytes]) -> None:
        with (logs / f"{name}.log").open("wb") as log:
            for raw in stream:
                log.write(raw)
                log.flush()
                if line := raw.decode(errors="replace").strip():
                    walk.lines[name] = line
                    changed(name)
        ended.put((name, child.wait()))

    threading.Thread(target=read, args=(child.stdout,), daemon=True).start()
    changed(name)
    return child


def _end(walk: Walk, name: str, code: int, changed: Callable[[str], object]) -> None:
    walk.seconds[name] = time.monotonic() - walk.since[name]
    there = code == 0 and finished(walk.study.stages[name], walk.places[name])
    walk.states[name] = DONE if there else FAILED
    if there:  # another stage of this study may be the same command under another name
        for twin, place in walk.places.items():
            if place == walk.places[name] and walk.states[twin] == WAITING:
                walk.states[twin] = CACHED
                changed(twin)
    changed(name)
