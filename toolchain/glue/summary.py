"""glue.json of several tasks: each figure per seed with mean and spread, checkpoint beside exported file."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from devices.errors import UserError
from devices.files import read_json, write_json
from toolchain import __version__
from toolchain.glue.description import Task
from toolchain.glue.metrics import SEVEN

SCHEMA = 1
KIND = "glue"  # a classifier's own glue.json has none
FILE = "glue.json"
SIDES = {"pytorch": "PyTorch", "artifact": "exported"}


def read_summary(out: Path) -> dict[str, Any]:
    """The summary in `out`, with no tasks where there is none yet; UserError where `out` is something else."""
    file = out / FILE
    found = read_json(file, "figures of labelled tasks") if file.is_file() else None
    if (out / "config.json").exists() or (found is not None and found.get("kind") != KIND):
        raise UserError(
            f"{out}: is itself a checkpoint, and --out names a folder of them; choose another --out"
        )
    if found is not None and not isinstance(found.get("tasks"), dict):
        raise UserError(f"{file}: has no table of tasks; remove it, and the same command writes it anew")
    return found or {"schema": SCHEMA, "kind": KIND, "tasks": {}}


def save(out: Path, entry: dict[str, Any], command: str | None) -> dict[str, Any]:
    """Put a task's entry into the summary in `out`, beside what other calls put there; the summary."""
    out.mkdir(parents=True, exist_ok=True)
    tasks = read_summary(out)["tasks"] | {entry["task"]: entry}
    value = {
        "schema": SCHEMA,
        "kind": KIND,
        "toolchain": __version__,
        "command": command,
        "tasks": tasks,
        "average": average(tasks),
    }
    write_json(out / FILE, value)
    return value


def entry(task: Task, seeds: Sequence[int], recipe: str | None, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the summary says of a task, so far: `runs` are the seeds' that are done.

    Each run has seed, folder, sha256, teacher, data (hashes of the dev sets), record (the classifier's
    glue.json), dev ({set: {"rows", metric: value}})
    and artifact (None, or dev of the exported file, or why it failed). `figures` has a line for each dev set
    and metric, the one that stands for the task first.
    """
    record = runs[0]["record"]
    keys = ("epochs", "batch", "lr", "max_tokens", "rows", "options")
    settings = {key: record[key] for key in keys if key in record}
    return {
        "task": task.name,
        "metric": task.metric,
        "base": record.get("base"),
        "method": record.get("method"),
        "settings": settings,
        "recipe": recipe,
        "seeds": list(seeds),
        "runs": [{key: value for key, value in run.items() if key != "record"} for run in runs],
        "figures": [
            {
                "set": split,
                "metric": metric,
                "rows": runs[0]["dev"][split]["rows"],
                "pytorch": spread([run["dev"][split][metric] for run in runs]),
                "artifact": spread([_exported(run, split, metric) for run in runs]) if recipe else None,
            }
            for split in task.sets("dev")
            for metric in task.metrics
        ],
    }


def _exported(run: dict[str, Any], split: str, metric: str) -> float | None:
    """A figure of a run's artifact, or None where there is no artifact: a gate did not hold."""
    return ((run["artifact"] or {}).get("dev") or {}).get(split, {}).get(metric)


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Values by seed, their mean, and the sample standard deviation (n - 1); None where one value is lacking."""
    known = [value for value in values if value is not None]
    whole = len(known) == len(values)
    return {
        "values": list(values),
        "mean": mean(known) if whole else None,
        "spread": stdev(known) if whole and len(known) > 1 else None,
    }


def average(tasks: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The seven-task average as the study takes it, by seed; None where none of the seven is there.

    `missing` names tasks that are not there or lack a seed, `differ` in what the seven do not agree; the
    average is taken only where both are empty, that of the artifacts only where all were exported alike.
    """
    there = {name: tasks[name] for name in SEVEN if name in tasks}
    if not there:
        return None
    missing = [n for n in SEVEN if n not in there or len(there[n]["runs"]) < len(there[n]["seeds"])]
    differ = [key for key in ("base", "method", "seeds") if _several(there, key)]
    whole = not missing and not differ
    found = {side: spread(_by_seed(there, side)) if whole else None for side in SIDES}
    if _several(there, "recipe") or any(one["recipe"] is None for one in there.values()):
        found["artifact"] = None
    return {"tasks": list(SEVEN), "missing": missing, "differ": differ, **found}


def _several(entries: dict[str, dict[str, Any]], key: str) -> bool:
    """Whether the tasks differ in `key`."""
    values = [one[key] for one in entries.values()]
    return any(value != values[0] for value in values)


def _by_seed(entries: dict[str, dict[str, Any]], side: str) -> list[float | None]:
    columns = []
    for name, metric in SEVEN.items():
        figures = entries[name]["figures"]
        figure = next(one for one in figures if one["set"] == "dev" and one["metric"] == metric)
        columns.append((figure[side] or {"values": [None] * len(entries[name]["seeds"])})["values"])
    return [None if None in row else mean(row) for row in zip(*columns, strict=True)]


def best(runs: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The run with the highest principal figure; the first one at a tie."""
    return max(runs, key=lambda run: run["dev"]["dev"][metric])


def lines(summary: dict[str, Any], names: Sequence[str], out: Path) -> list[str]:
    """The tasks called `names` for a terminal: a sentence for one figure, a table for more."""
    entries = [summary["tasks"][name] for name in names]
    figures = [(one, figure) for one in entries for figure in one["figures"]]
    if len(figures) == 1 and not figures[0][1]["artifact"] and len(entries[0]["seeds"]) == 1:
        one, figure = figures[0]
        where = f"on {figure['rows']} dev rows"
        return [
            f"{out / one['task']}: {one['metric']} {figure['pytorch']['mean']:.3f} {where}",
            *_closing(summary),
        ]
    recipes = list(dict.fromkeys(one["recipe"] for one in entries if one["recipe"]))
    table = [["task", "dev set", "rows", "metric", "PyTorch", *recipes]]
    for one, figure in figures:
        split = figure["set"].removeprefix("dev_")
        exported = [text(figure["artifact"]) if one["recipe"] == recipe else "" for recipe in recipes]
        left = [one["task"], split, f"{figure['rows']:,}", figure["metric"]]
        table.append([*left, text(figure["pytorch"]), *exported])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table)
    return [*rows, *_closing(summary)]


def text(figure: dict[str, Any]) -> str:
    """Mean and spread in a few characters."""
    if figure["mean"] is None:
        return "not exported"
    return f"{figure['mean']:.4f}" + (f" ± {figure['spread']:.4f}" if figure["spread"] is not None else "")


def _closing(summary: dict[str, Any]) -> list[str]:
    """The seven-task average, or what it lacks."""
    found = summary["average"]
    if found is None:
        return []
    if found["pytorch"] is None:
        lacks = f"without {', '.join(found['missing'])}" if found["missing"] else ""
        lacks = lacks or f"the tasks differ in {' and '.join(found['differ'])}"
        return [f"no average of the seven tasks: {lacks}"]
    sides = [f"{text(found[side])} ({words})" for side, words in SIDES.items() if found[side]]
    return [f"average of the seven tasks: {', '.join(sides)}"]
