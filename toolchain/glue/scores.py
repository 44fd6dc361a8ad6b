"""All figures of a classifier on a task's dev sets, checkpoint and exported file by the same few lines."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from devices.errors import CheckFailed
from devices.files import read_record
from toolchain import __version__
from toolchain.glue.description import Task
from toolchain.glue.metrics import decide, score


def measure(folder: Path, task: Task) -> dict[str, dict[str, Any]]:
    """{dev set: {"rows": count, metric: value}} of a checkpoint, or of an artifact through ONNX Runtime.

    The code that ships on devices computes an artifact's logits; the metrics are computed here.
    """
    from toolchain.subject import open_subject

    subject, found = open_subject(folder), {}
    for split in task.sets("dev"):
        rows = task.rows(split)
        predictions, labels = decide(task.problem, subject.classify(rows)), [row.label for row in rows]
        found[split] = {
            "rows": len(rows),
            **{name: score(name, predictions, labels) for name in task.metrics},
        }
    return found


def known(record: dict[str, Any], task: Task) -> dict[str, dict[str, Any]] | None:
    """The same from a classifier's glue.json, where one metric on one dev set is all there is to know."""
    if len(task.metrics) > 1 or len(task.sets("dev")) > 1:
        return None
    return {"dev": {"rows": record["dev_rows"], task.metric: record["value"]}}


def exported_before(folder: Path, checkpoint: str, recipe: str) -> str | None:
    """SHA-256 of the artifact in `folder`, if this release made it of that checkpoint (its identity), else None."""
    from devices.artifact import open_artifact
    from export.recipes import recipe_for

    manifest = read_record(folder / "manifest.json")
    if manifest is None:
        return None
    source = ((manifest.get("lineage") or {}).get("checkpoint") or {}).get("sha256")
    made = {"toolchain": manifest.get("toolchain"), "recipe": manifest.get("recipe"), "source": source}
    asked = {
        "toolchain": __version__,
        "recipe": asdict(recipe_for(recipe, "classifier")),
        "source": checkpoint,
    }
    return open_artifact(folder).sha256 if made == json.loads(json.dumps(asked)) else None


def exported(
    checkpoint: Path,
    out: Path,
    recipe: str,
    judge: Callable[..., dict[str, Any]],
    *,
    force: bool,
    say: Callable[[str], None],
) -> str | None:
    """Export as `toolchain export` does, held to the task by `judge`; None, or the gate that did not hold."""
    from export.build import export

    try:
        export(checkpoint, out, recipe, force=force, judge=judge, progress=say)
    except CheckFailed as error:
        return str(error)
    return None
