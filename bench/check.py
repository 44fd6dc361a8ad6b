"""Whether an artifact has become dearer: instructions per token on an emulated device against a kept baseline.

A baseline is one JSON file with an entry for each device, checkpoint, recipe and workload. The artifact's own bytes
need not be those of the baseline, since what an exporter now writes is what is to be checked.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from devices.artifact import GRAPH, MANIFEST
from devices.errors import CheckFailed, UserError, unknown
from devices.files import read_json, write_json

SCHEMA = 1
KIND = "instructions"
THRESHOLD = 0.5  # percent
REPEATS = 0.1  # percent: repeats that differ by more are said
CHECKED = ("per_prompt_token", "per_generated_token", "per_sentence")
TOLD = ("load", "first_token")
IDENTITY = ("device", "checkpoint", "recipe", "workload")
WORK = ("name", "prompt", "generate", "rows", "tokens", "batch")
VERSIONS = ("emulator", "python", "onnxruntime", "numpy")


def entry(result: dict[str, Any]) -> dict[str, Any]:
    """What a baseline keeps of a result; UserError for one that counted no instructions."""
    counted = result.get("instructions")
    if counted is None:
        raise UserError(
            f"{result['device']['name']}: has times and counts no instructions, which --check compares; name an "
            "emulated device, or compare times with --compare"
        )
    subject = result["subject"]
    lineage = (subject.get("lineage") or {}).get("checkpoint") or {}
    return {
        "device": result["device"]["name"],
        "checkpoint": lineage.get("sha256"),
        "recipe": subject["recipe"]["name"],
        "workload": {key: result["workload"].get(key) for key in WORK},
        "name": subject["name"],
        "graph": _graph(subject),
        "versions": {key: result["environment"].get(key) for key in VERSIONS},
        "instructions": {key: counted[key]["median"] for key in (*CHECKED, *TOLD) if counted.get(key)},
    }


def _graph(subject: dict[str, Any]) -> str | None:
    """One hash of the graph and its weights, without the manifest's date; None where the artifact has gone."""
    try:
        listed = read_json(Path(subject["path"]) / MANIFEST, "a manifest")["files"]
        files = [listed[name]["sha256"] for name in sorted(listed) if name.startswith(GRAPH)]
    except (UserError, KeyError, TypeError):
        return None
    return hashlib.sha256("".join(files).encode()).hexdigest()


def renew(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Write the results' entries into the baseline; entries of others stay."""
    new = [entry(result) for result in results]
    kept = [old for old in (read(path) if path.exists() else []) if not any(_same(old, one) for one in new)]
    ordered = sorted([*kept, *new], key=lambda one: (one["name"], one["recipe"], one["device"]))
    write_json(path, {"schema": SCHEMA, "kind": KIND, "entries": ordered})


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of a baseline; UserError, one line, for a file that is none."""
    found = read_json(path, "a baseline of instructions")
    schema = found.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise UserError(f"{path}: written by a newer toolchain (schema {schema}); install that one here")
    entries = found.get("entries")
    if schema != SCHEMA or found.get("kind") != KIND or not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: is no baseline of instructions; name another file, which --renew writes")
    for at, one in enumerate(entries):
        if wrong := _wrong(one):
            raise UserError(f"{path}: entry {at}: {wrong}; mend it, or renew the baseline")
    return entries


def _wrong(one: Any) -> str | None:
    """What an entry lacks, or None."""
    if not isinstance(one, dict):
        return "is no object"
    wanted = {
        "device": str,
        "recipe": str,
        "name": str,
        "workload": dict,
        "versions": dict,
        "instructions": dict,
    }
    for key, kind in wanted.items():
        if not isinstance(one.get(key), kind):
            return f"{key} is missing or has the wrong type"
    counts = one["instructions"]
    if not any(key in counts for key in CHECKED):
        return f"instructions has none of {', '.join(CHECKED)}"
    for key, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
            return f"instructions.{key} must be a positive number"
    return None


def check(path: Path, results: Sequence[dict[str, Any]], threshold: float = THRESHOLD) -> list[str]:
    """A line on each figure of each result; CheckFailed, naming the figures, where one grew by over `threshold` %.

    Versions that are others than the baseline's are said, and do not excuse growth: they may be its cause.
    UserError where the baseline has no entry for a result.
    """
    known = read(path)
    lines: list[str] = []
    grown: list[str] = []
    for result in results:
        now = entry(result)
        old = _find(known, now, path)
        lines += _differences(old, now)
        if result["instructions"]["repeats_within"] * 100 > REPEATS:
            within = result["instructions"]["repeats_within"]
            lines.append(
                f"{now['name']} on {now['device']}: repeats differ by {within:.2%}, more than {REPEATS} %"
            )
        for key, count in now["instructions"].items():
            before = old["instructions"].get(key)
            if before is None:
                continue
            line = f"{now['name']} on {now['device']}: {words(key)} {_change(before, count)}"
            lines.append(line)
            if key in CHECKED and count > before * (1 + threshold / 100):
                grown.append(line)
    if grown:
        raise CheckFailed(f"instructions grew by more than {threshold:g} %: {'; '.join(grown)}")
    return lines


def known_for(path: Path, device: str) -> None:
    """UserError, before anything is measured, for a baseline that cannot be read or does not know the device."""
    if not path.exists():
        raise UserError(f"{path}: no such file; write it by giving the same command with --renew")
    devices = sorted({one["device"] for one in read(path)})
    if device not in devices:
        raise UserError(f"{path}: {unknown('device in the baseline', device, devices)}; add it with --renew")


def words(key: str) -> str:
    """A figure's name in a sentence."""
    return {"load": "to load", "first_token": "to the first token"}.get(key, key.replace("_", " "))


def _change(before: float, now: float) -> str:
    return f"{now:,.0f} instructions, {100 * (now / before - 1):+.3f} % against {before:,.0f}"


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in IDENTITY)


def _find(known: Sequence[dict[str, Any]], now: dict[str, Any], path: Path) -> dict[str, Any]:
    """The entry to compare with; UserError saying what differs from the nearest one."""
    if found := next((one for one in known if _same(one, now)), None):
        return found
    near = max(known, key=lambda one: sum(one.get(key) == now[key] for key in IDENTITY))
    other = [key for key in IDENTITY if near.get(key) != now[key]]
    raise UserError(
        f"{path}: has no entry for {now['name']} on {now['device']} ({', '.join(other)} other than in its "
        f"{near['name']} on {near['device']}); measure what it knows, or add this with --renew"
    )


def _differences(old: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lines on what is not as it was when the baseline was made."""
    where = f"{now['name']} on {now['device']}"
    lines = [
        f"{where}: {key} {now['versions'][key]}, the baseline's is {old['versions'].get(key)}"
        for key in VERSIONS
        if now["versions"][key] != old["versions"].get(key)
    ]
    if now["graph"] != old.get("graph"):
        lines.append(
            f"{where}: the graph or its weights are others than the baseline's, of the same checkpoint and recipe"
        )
    return lines
