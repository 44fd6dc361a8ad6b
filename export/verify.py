"""All that an artifact is held against before it is sealed: PyTorch, text, a labelled task, and the gates."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from devices.artifact import Artifact
from devices.errors import CheckFailed, UserError
from export import blame, parity, quality
from export.answers import Arrays, Say, answers
from export.architecture import Architecture, Model
from export.checkpoint import Checkpoint
from export.gates import Gates, Judge, Quality, default_gates, failures
from export.recipes import Recipe
from export.weights import Source

BLAME_TOKENS = 1024  # what each part is tried on when a gate fails
SPREAD_ROWS, SPREAD_LENGTH = 3, 32  # rows that are run together and alone, and their tokens


@dataclass(frozen=True)
class Checks:
    """What is asked of an artifact; see `export.build.export`."""

    parity: bool = True
    text: Path | None = None
    tokens: int = quality.TOKENS
    batch: int = 1
    gates: Gates | None = None
    judge: Judge | None = None


@dataclass(frozen=True)
class Subject:
    """An artifact that is not sealed yet, and what it was made from."""

    artifact: Artifact
    checkpoint: Checkpoint
    arch: Model
    recipe: Recipe
    sources: Callable[[], Callable[..., Source]] = lambda: Source  # makes what a graph is made from, anew


def verify(subject: Subject, identity: str, checks: Checks, say: Say) -> dict[str, Any]:
    """The manifest's `parity`, `quality` and the `seconds` that PyTorch and the checks took.

    Raises:
        CheckFailed: the graph is not the model, or a gate does not hold; then with the part to keep.
        UserError: a text that cannot be used, a labelled task for a decoder.
    """
    arch, gates = subject.arch, default_gates(subject.recipe) if checks.gates is None else checks.gates
    if checks.judge is not None and arch.kind == "decoder":
        raise UserError(f"{subject.checkpoint.path}: is a decoder, and labelled tasks are for classifiers")
    ids, sample, start = _ids(subject, checks), _sample(subject, checks), time.monotonic()
    questions = {} if ids is None else {"parity": parity.question(ids)}
    if sample is not None:
        questions["text"] = {"ids": sample.ids}
    wanted = answers(subject.checkpoint.path, identity, arch.kind, questions, say)
    asked, found = time.monotonic(), None
    noise = parity.noise(float(wanted["parity"]["error"]) if ids is not None else 0.0)
    if ids is not None:
        say("comparing with PyTorch")
        found = parity.compare(
            subject.artifact, arch, subject.recipe, ids, wanted["parity"], sample is not None
        )
    measured = _measure(subject, sample, wanted.get("text"), noise, checks, say)
    if failed := failures(measured, gates):
        probe = _probe(sample, wanted.get("text"), noise, checks)
        raise CheckFailed(_explain(subject, failed, gates, probe, say))
    seconds = {"pytorch": round(asked - start, 2), "checks": round(time.monotonic() - asked, 2)}
    return {
        "parity": found,
        "quality": {**measured, "gates": asdict(gates)} if measured else None,
        "seconds": seconds,
    }


def _ids(subject: Subject, checks: Checks) -> np.ndarray | None:
    return parity.sample_ids(subject.checkpoint.path, subject.arch) if checks.parity else None


def _sample(subject: Subject, checks: Checks) -> quality.Sample | None:
    if checks.text is None or not checks.tokens or subject.arch.kind != "decoder":
        return None
    return quality.sample(subject.checkpoint.path, subject.arch, checks.text, checks.tokens, checks.batch)


def _measure(
    subject: Subject,
    sample: quality.Sample | None,
    wanted: Arrays | None,
    noise: float,
    checks: Checks,
    say: Say,
) -> dict[str, Any]:
    """Quality on text, or on a labelled task; empty where neither was asked for."""
    if checks.judge is not None:
        say("scoring the labelled task")
        return {"task": checks.judge(subject.artifact)}
    if sample is None or wanted is None:
        return {}
    steps = quality.stepped(sample, sum(subject.artifact.manifest["bytes"].values()))
    say(
        f"measuring quality on {sample.ids.size:,} tokens, {steps} of {len(sample.ids)} windows by steps, too"
    )
    found = quality.measure(subject.artifact, sample, wanted, noise, steps)
    rows = np.resize(sample.ids, (SPREAD_ROWS, sample.ids.shape[1]))[:, :SPREAD_LENGTH]
    return {**found, "neighbours": quality.spread(subject.artifact, rows, noise)}


def _probe(
    sample: quality.Sample | None, wanted: Arrays | None, noise: float, checks: Checks
) -> tuple[blame.Probe, str]:
    """How the parts are tried, quicker than the artifact was, and on what."""
    if checks.judge is not None or sample is None or wanted is None:
        judge = checks.judge
        return lambda artifact: {"task": judge(artifact)} if judge else {}, "the same rows"
    few = replace(sample, ids=sample.ids[: max(1, BLAME_TOKENS // sample.ids.shape[1])])
    part = {name: array[: len(few.ids)] for name, array in wanted.items()}
    return lambda artifact: quality.measure(artifact, few, part, noise, 0), f"{few.ids.size:,} tokens"


def _explain(
    subject: Subject, failed: dict[str, str], gates: Gates, probe: tuple[blame.Probe, str], say: Say
) -> str:
    """One line: the gates that failed, and the part to keep at higher precision."""
    if not isinstance(subject.arch, Architecture):
        return f"{subject.recipe.name}: {'; '.join(failed.values())}. Choose a recipe with more bits"
    measure, what = probe
    say(f"a gate does not hold; trying each part of the model at higher precision on {what}")
    now: Quality = measure(subject.artifact)
    given = (subject.artifact, subject.checkpoint, subject.arch, subject.recipe, subject.sources)
    found = blame.trials(*given, measure, say)
    return f"{subject.recipe.name}: {'; '.join(failed.values())}. {blame.advice(now, found, gates, what)}"
