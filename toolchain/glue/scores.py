"""All figures of a classifier on a task's dev sets, checkpoint and exported file by the same few lines."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import CheckFailed
from devices.files import read_record
from toolchain import __version__
from toolchain.glue.description import Task
from toolchain.glue.metrics import decide, scores
from toolchain.glue.rows import Row

if TYPE_CHECKING:
    import numpy as np

    from devices.artifact import Artifact


Figures = dict[str, dict[str, Any]]  # {dev set: {"rows": count, metric: value}}


def measure(folder: Path, task: Task) -> Figures:
    """The figures of a checkpoint, or of an artifact through ONNX Runtime."""
    from toolchain.subject import open_subject

    return figures(open_subject(folder).classify, task)


def figures(classify: "Callable[[list[Row]], np.ndarray]", task: Task) -> Figures:
    """The figures of whatever turns rows into logits [rows, labels]."""
    found = {}
    for split in task.sets("dev"):
        rows = task.rows(split)
        predictions, labels = decide(task.problem, classify(rows)), [row.label for row in rows]
        found[split] = {"rows": len(rows), **scores(task.metrics, predictions, labels)}
    return found


def known(record: dict[str, Any], task: Task) -> Figures | None:
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
    task: Task,
    theirs: Figures,
    *,
    force: bool,
    say: Callable[[str], None],
) -> Figures | str:
    """Export as `toolchain export` does, held to its gates on the task; the file's figures, or what did not hold.

    `theirs` are the checkpoint's figures. The logits are those of the code that ships on devices; the metrics
    are computed here.
    """
    from devices.classifier import Classifier
    from devices.machine import physical_cores
    from export.build import export

    ours: Figures = {}

    def judge(artifact: "Artifact") -> dict[str, Any]:
        classifier = Classifier(artifact, physical_cores())
        ours.update(figures(lambda rows: classifier.predict([(r.text_a, r.text_b) for r in rows]), task))
        values = {"pytorch": theirs["dev"][task.metric], "artifact": ours["dev"][task.metric]}
        return {"name": task.name, "metric": task.metric, "rows": ours["dev"]["rows"], **values}

    try:
        export(checkpoint, out, recipe, force=force, judge=judge, progress=say)
    except CheckFailed as error:
        return str(error)
    return ours
