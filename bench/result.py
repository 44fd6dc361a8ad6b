"""One result: what was measured, on what, how, and everything it descends from; and the file it goes to."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench import instructions, roofline
from bench.stats import spread_of_rounds
from bench.workloads import Workload
from devices.artifact import Artifact
from devices.errors import UserError
from devices.files import read_json
from devices.profiles import Profile

SCHEMA = 1
SPREADS = ("load_s", "start_s", "first_token_s", "token_s", "sentence_s", "peak_rss_bytes")


def build(
    artifact: Artifact,
    path: Path,
    plan: Workload,
    profile: Profile,
    seed: int,
    rounds: list[dict[str, Any]],
    quality: dict[str, Any],
    run: dict[str, Any] | None = None,
    bandwidth: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The result JSON of an artifact from its workers' answers, one per round, and its `quality`.

    `run` has the `id` that results measured in the same interleaved rounds share, and in how many `sittings`
    that was; `bandwidth` is what the device's memory gave just before (bench/bandwidth.py).
    """
    first = rounds[0]
    spreads = {key: spread_of_rounds([_list(r.get(key)) for r in rounds]) for key in SPREADS}
    return {
        "schema": SCHEMA,
        "kind": "bench",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "subject": subject(artifact, path),
        "device": profile.as_dict(),
        "workload": plan.as_dict(),
        "environment": {**first["environment"], "emulated": profile.emulated},
        "run": run,
        "rounds": len(rounds),
        "threads": first["threads"],
        "threads_from": first["threads_from"],
        "affinity": first.get("affinity"),
        "seed": seed,
        **spreads,
        "warm_up": _warm_up(rounds),
        "memory": _memory(rounds),
        "energy": _energy(rounds),
        "machine": _machine(rounds),
        "over_time": [point for r in rounds for point in r.get("over_time") or ()] or None,
        "roofline": roofline.of(artifact, plan, spreads["token_s"], bandwidth),
        "instructions": instructions.summary(rounds),
        "file_bytes": artifact.file_bytes,
        "quality": quality,
    }


def _list(value: Any) -> list[float]:
    """A round's samples: one of load, of first token and of peak, many of the others."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _warm_up(rounds: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What came before the timed part, by the same names: never part of the figures."""
    found = [r["warm_up"] for r in rounds if r.get("warm_up")]
    keys = dict.fromkeys(key for one in found for key in one)
    return {key: spread_of_rounds([_list(one.get(key)) for one in found]) for key in keys} or None


def _memory(rounds: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Medians over rounds, in bytes, of each figure of devices.state.memory at `load`, `prompt` and `end`."""
    found = [r["memory"] for r in rounds if r.get("memory")]
    return {
        at: {what: _median([one[at][what] for one in found]) for what in found[0][at]}
        for at in (found[0] if found else ())
    } or None


def _energy(rounds: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Joules of the timed part by round, and for each token or sentence pass; null where nothing counts them."""
    found = [(r["energy"], r) for r in rounds if r.get("energy")]
    if len(found) < len(rounds):
        return None
    tokens = [len(_list(r.get("token_s"))) + len(_list(r.get("first_token_s"))) for _, r in found]
    each = [one["joules"] / count for (one, _), count in zip(found, tokens, strict=True) if count]
    return {
        "joules": spread_of_rounds([[one["joules"]] for one, _ in found]),
        "joules_per_token": spread_of_rounds([[value] for value in each]),
        "source": found[0][0]["source"],
        "label": found[0][0]["label"],
    }


def _machine(rounds: list[dict[str, Any]]) -> dict[str, Any] | None:
    """How the machine was: clocks and heat before and after, and what others used of it, median and worst."""
    found = [r["machine"] for r in rounds if r.get("machine")]
    if not found:
        return None
    others = [one["others"] + one["stolen"] for one in found if None not in (one["others"], one["stolen"])]
    return {
        "others": _median(others),
        "others_worst": max(others, default=None),
        "before": found[0]["before"],
        "after": found[-1]["after"],
        "rounds": found,
    }


def _median(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def subject(artifact: Artifact, path: Path) -> dict[str, Any]:
    """What a result says was measured: enough to join it with its checkpoint, student and teacher."""
    manifest = artifact.manifest
    return {
        "type": "artifact",
        "name": artifact.name,
        "path": str(path),
        "sha256": artifact.sha256,
        "kind": artifact.kind,
        "recipe": artifact.manifest["recipe"],
        "parameters": artifact.model.get("parameters"),
        "layers": artifact.model["layers"],
        "file_bytes": artifact.file_bytes,
        "model": artifact.model,
        "lineage": manifest.get("lineage"),
        "task": manifest.get("task"),
        "parity": manifest.get("parity"),
    }


def place(out: Path, result: dict[str, Any]) -> Path:
    """Where a result goes: NAME--DEVICE--WORKLOAD.json, numbered where that name holds another's.

    An earlier result of the same bytes and the same settings is overwritten: it has been measured again.
    """
    parts = (result["subject"]["name"], result["device"]["name"], result["workload"]["name"])
    stem = "--".join(re.sub(r"[^\w.+-]+", "_", part).strip(".")[:80] or "_" for part in parts)
    number, path = 1, out / f"{stem}.json"
    while path.exists() and not _same(path, result):
        number += 1
        path = out / f"{stem}-{number}.json"
    return path


def _same(path: Path, result: dict[str, Any]) -> bool:
    """Whether the file holds a result that `result` measures again."""
    try:
        return _identity(read_json(path, "a result")) == _identity(result)
    except (UserError, KeyError, TypeError, AttributeError):
        return False  # somebody else's file: left alone


def _identity(result: dict[str, Any]) -> tuple[Any, ...]:
    perplexity, task = (result["quality"][key] or {} for key in ("perplexity", "task"))
    text = (
        (perplexity.get("corpus") or {}).get("sha256"),
        perplexity.get("window"),
        perplexity.get("blocks"),
    )
    subject, device = result["subject"]["sha256"], result["device"]["name"]
    settings = result["workload"], result["threads"], result.get("affinity")
    return subject, device, *settings, *text, task.get("name"), task.get("rows")
