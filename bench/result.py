"""One result: what was measured, on what, how, and everything it descends from; and the file it goes to."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import instructions
from bench.stats import spread
from bench.workloads import Workload
from devices.artifact import Artifact
from devices.errors import UserError
from devices.files import read_json
from devices.profiles import Profile

SCHEMA = 1


def build(
    artifact: Artifact,
    path: Path,
    plan: Workload,
    profile: Profile,
    seed: int,
    rounds: list[dict[str, Any]],
    quality: dict[str, Any],
) -> dict[str, Any]:
    """The result JSON of an artifact from its workers' answers, one per round, and its `quality`."""
    per_round = {
        key: [r[key] for r in rounds if r.get(key) is not None] for key in ("load_s", "first_token_s")
    }
    pooled = {key: [s for r in rounds for s in r.get(key) or ()] for key in ("token_s", "sentence_s")}
    peaks = [r["peak_rss_bytes"] for r in rounds if r["peak_rss_bytes"] is not None]
    return {
        "schema": SCHEMA,
        "kind": "bench",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "subject": subject(artifact, path),
        "device": profile.as_dict(),
        "workload": plan.as_dict(),
        "environment": {**rounds[0]["environment"], "emulated": profile.emulated},
        "rounds": len(rounds),
        "threads": rounds[0]["threads"],
        "threads_from": rounds[0]["threads_from"],
        "seed": seed,
        **{key: spread(samples) for key, samples in {**per_round, **pooled}.items()},
        "peak_rss_bytes": spread(peaks),
        "instructions": instructions.summary(rounds),
        "file_bytes": artifact.file_bytes,
        "quality": quality,
    }


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
    return subject, device, result["workload"], result["threads"], *text, task.get("name"), task.get("rows")
