"""The teacher of a fine-tuning: which checkpoint is meant, and whether it can teach this student this task."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError
from devices.files import read_record
from devices.text import load_tokenizer
from toolchain.glue.classifier import separator
from toolchain.glue.tasks import Task

if TYPE_CHECKING:
    from export.checkpoint import Checkpoint


def find(teacher: Path, task: Task, seed: int) -> Path:
    """The classifier for `task` at `teacher`: itself, or of an --out of `toolchain glue` the task's (and seed's).

    UserError where that has classifiers of the task and none of this seed.
    """
    places = [teacher, teacher / task.name, teacher / task.name / f"seed-{seed}"]
    found = next((place for place in places if (place / "config.json").is_file()), None)
    others = sorted((teacher / task.name).glob("seed-*/config.json"))
    if found is None and others:
        seeds = ", ".join(file.parent.name.removeprefix("seed-") for file in others)
        raise UserError(
            f"{teacher}: has {task.name} by seeds {seeds}, not {seed}; ask for those with --seeds, "
            f"or name one, {others[0].parent}"
        )
    return found or teacher


def open_teacher(method: str, teacher: Path, student: Path, task: Task, max_tokens: int) -> "Checkpoint":
    """The opened teacher; UserError, one line, where it is no classifier of this task or reads other tokens."""
    from export.architecture import check
    from export.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(teacher)
    arch = check(checkpoint)
    if arch.kind != "classifier":
        raise UserError(
            f"{teacher}: has no classification head, which a teacher for method {method} needs; "
            f"fine-tune it first: toolchain glue {teacher} --task {task.name} --out DIR"
        )
    if arch.positions < max_tokens:
        raise UserError(
            f"{teacher}: has {arch.positions} positions, {max_tokens} tokens do not fit; lower --max-tokens"
        )
    _same_task(teacher, checkpoint.config, arch.labels, task)
    _same_tokens(teacher, checkpoint.config, student)
    return checkpoint


def _same_task(teacher: Path, config: dict[str, Any], columns: int | None, task: Task) -> None:
    from export.architecture import label_names

    made_for = (read_record(teacher / "glue.json") or {}).get("task", task.name)
    if made_for != task.name:
        raise UserError(f"{teacher}: was fine-tuned on {made_for}; take a teacher for {task.name}")
    if task.labels is None:
        if columns != 1:
            raise UserError(
                f"{teacher}: tells {columns} labels apart, {task.name} has a score; take another teacher"
            )
        return
    labels = label_names(config) or [f"LABEL_{i}" for i in range(columns or 0)]
    if tuple(labels) != task.labels:
        raise UserError(
            f"{teacher}: its labels are {', '.join(labels)}, those of {task.name} {', '.join(task.labels)}; "
            "take a teacher for this task, or name its labels so in its config.json (id2label)"
        )


def _same_tokens(teacher: Path, config: dict[str, Any], student: Path) -> None:
    """Both must read the same ids: one batch goes through both."""
    if _vocabulary(teacher) != _vocabulary(student):
        raise UserError(
            f"{teacher}: its tokenizer differs from that of {student}, so the same ids would be other words "
            "to the two; take a teacher with the student's tokenizer"
        )
    end = separator(student)
    if separator(teacher) != end or config.get("pad_token_id") != end:
        raise UserError(
            f"{teacher}: ends texts with id {separator(teacher)} and pads with {config.get('pad_token_id')}, "
            f"{student} with {end}; take a teacher that `toolchain glue` made with the same tokenizer"
        )


def _vocabulary(folder: Path) -> dict[str, Any]:
    """What of a tokenizer decides which ids a text becomes."""
    whole = json.loads(load_tokenizer(folder).to_str())
    return {key: value for key, value in whole.items() if key not in ("version", "decoder")}
