"""Answers to GLUE's test sets, in the files that its server takes: index and prediction, a row for each row."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devices.errors import UserError
from devices.files import refuse_unwritable
from toolchain.glue.metrics import decide
from toolchain.glue.tasks import BUILT_IN, Task, parse_task

OPTIONAL = ("test_ax",)  # the diagnostic set is no part of the score


def refuse_unsubmittable(tasks: list[Task], folder: Path) -> None:
    """UserError for a task that the server does not know, a test set that is not there, a folder not writable."""
    for task in tasks:
        if not task.submission:
            raise UserError(f"--submit: {task.name} is no task of GLUE's server; leave it or --submit out")
        for split in task.submission:
            if task.file(split).exists():
                task.rows(split)
            elif split not in OPTIONAL:
                raise UserError(
                    f"--submit: answers the test set of {task.name}, and {task.file(split)} is not there; "
                    "put it there, or leave --submit out"
                )
    refuse_unwritable(folder)


def submit(
    checkpoint: Path, task: Task, folder: Path, force: bool = False, say: Callable[[str], None] = print
) -> list[Path]:
    """Write the task's files below `folder`, answered by the classifier `checkpoint`; the files.

    Labels as the server wants them, which is as they stand in the training files; scores within the task's
    range. Rows are numbered from 0 in the test file's order, as its own index does. UserError for a file that
    is there with other predictions, unless `force`.
    """
    from toolchain.subject import open_subject

    subject, written = open_subject(checkpoint), []
    for split, name in task.submission.items():
        if split in OPTIONAL and not task.file(split).exists():
            say(f"{task.name}: no {name}, as {task.file(split)} is not there")
            continue
        predictions = decide(task.problem, subject.classify(task.rows(split)))
        lines = ["index\tprediction", *(f"{i}\t{answer(task, p)}" for i, p in enumerate(predictions))]
        written.append(_write(folder / name, "\n".join(lines) + "\n", force))
    return written


def tell_lacking(folder: Path, say: Callable[[str], None]) -> None:
    """Say which of the files that the server wants are not in `folder` yet."""
    wanted = {
        name
        for file in sorted(BUILT_IN.glob("*.toml"))
        for name in parse_task(file, Path()).submission.values()
    }
    lacking = sorted(name for name in wanted if not (folder / name).exists())
    if lacking:
        say(f"{folder}: GLUE's server takes a whole set; {', '.join(lacking)} are not there yet")


def answer(task: Task, prediction: Any) -> str:
    """A class index as its label, a score within the range."""
    if task.labels is not None:
        return task.labels[int(prediction)]
    low, high = task.range or (float("-inf"), float("inf"))
    return f"{min(max(float(prediction), low), high):.3f}"


def _write(file: Path, text: str, force: bool) -> Path:
    if file.exists() and not force and file.read_bytes() != text.encode():
        raise UserError(f"{file}: holds other predictions; choose another --submit or pass --force")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return file
