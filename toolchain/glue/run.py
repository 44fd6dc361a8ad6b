"""`toolchain glue`: several tasks one after the other, each in a folder of its own, none done twice."""

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

from devices.errors import UserError
from devices.files import read_record, refuse_existing
from toolchain.glue.finetune import finetune, request
from toolchain.glue.tasks import Task, load_task


def glue(
    model: Path,
    tasks: list[str],
    out: Path,
    data: Path | None = None,
    *,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Fine-tune on each of `tasks`, each into the folder `out`/NAME; returns their glue.json in order.

    `settings` are those of `finetune`. All tasks are found before the first is trained. Each finished one
    stays if a later one fails; the same call again goes on behind it.
    """
    if not tasks:
        raise UserError("--task: names no task; name one or several (toolchain list tasks)")
    found = [load_task(name, data) for name in tasks]
    twice = [task.name for at, task in enumerate(found) if task.name in [other.name for other in found[:at]]]
    if twice:
        raise UserError(f"--task: {twice[0]} is named twice; name each task once")
    done = {} if force else {task.name: finished(model, task, out / task.name, settings) for task in found}
    for task in found:
        if done.get(task.name) is None:
            refuse_existing(out / task.name, force)
    records = []
    for task in found:
        record = done.get(task.name)
        if record is not None:
            say(f"{task.name}: finished before with these settings, {out / task.name} is used again")
        records.append(record or finetune(model, task, out / task.name, force=force, say=say, **settings))
    return records


def finished(model: Path, task: Task, out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The glue.json in `out` where it is what `finetune` with these settings would make, else None."""
    record = read_record(out / "glue.json")
    if record is None:
        return None
    given = {name: parameter.default for name, parameter in signature(finetune).parameters.items()} | settings
    schedule = {key: given[key] for key in ("epochs", "batch", "lr", "seed")}
    asked = request(model, task, given["method"], schedule, given["max_tokens"], given["rows"])
    return record if {key: record.get(key) for key in asked} == asked else None
