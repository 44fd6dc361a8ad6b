"""A labelled task as a gate on a classifier's artifact: its metric beside the checkpoint's, on the same dev rows."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from devices.artifact import Artifact


def judge(checkpoint: Path, name: str | None, data: Path | None) -> "Callable[[Artifact], dict[str, Any]]":
    """What `export.build.export` takes as `judge`: scores an artifact on the dev rows of a task below `data`.

    The task is the one the checkpoint was made for if no `name` is given. PyTorch's predictions are computed
    once, when first needed. UserError, now, for rows that are not there or a task that is not the model's.
    """
    from devices.runtime import Classifier
    from toolchain.evaluate import find_task
    from toolchain.glue.metrics import decide, score
    from toolchain.subject import open_subject

    found = open_subject(checkpoint)
    task = find_task(found, name, data)
    rows = task.rows("dev")
    labels = [row.label for row in rows]

    @cache
    def theirs() -> "np.ndarray":
        return decide(task.problem, found.classify(rows))

    def scored(artifact: "Artifact") -> dict[str, Any]:
        logits = Classifier(artifact).predict([(row.text_a, row.text_b) for row in rows])
        ours = decide(task.problem, logits)
        return {
            "name": task.name,
            "metric": task.metric,
            "rows": len(rows),
            "pytorch": score(task.metric, theirs(), labels),
            "artifact": score(task.metric, ours, labels),
            "agreement": None if task.problem == "regression" else float((ours == theirs()).mean()),
        }

    return scored
