"""GLUE from the Hugging Face hub or its cache, written once as TSV files in the official layout.

What comes after (reading, hashes, evaluation on a device, submissions) then knows one kind of data.
"""

import os
from pathlib import Path
from typing import Any

from devices.errors import UserError
from devices.files import cache_folder, make_cache
from toolchain.glue.description import Task
from toolchain.quiet import quiet_datasets

HUB = "nyu-mll/glue"
USUAL = {"train": "train", "dev": "validation", "test": "test"}


def fetched(task: Task, name: str, hub: dict[str, Any]) -> Path:
    """The folder `name` of the cache with the task's files, fetched where one is missing.

    `hub` says the data set's configuration (`config`), its columns (`text_a`, `text_b`), and for splits that
    are not train, validation and test of it where they are, as "CONFIG SPLIT". UserError where it is out of reach.
    """
    folder = make_cache(cache_folder("glue", name))
    if all((folder / file).is_file() for file in task.files.values()):
        return folder
    places = {split: f"{hub['config']} {USUAL.get(split)}" for split in task.files} | hub.get("splits", {})
    for split, place in places.items():
        if not (folder / task.files[split]).is_file():
            _write(task, split, _load(task, *place.split()), folder / task.files[split], hub)
    return folder


def _load(task: Task, config: str, split: str) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        with quiet_datasets():
            return load_dataset(HUB, config, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        # Each release of datasets wraps network faults otherwise.
        cause = " ".join(str(error).split())[:120]
        raise UserError(
            f"task {task.name}: its data is not shipped, and {HUB} cannot be fetched ({cause}); "
            "pass --data with the folder that holds it"
        ) from None


def _write(task: Task, split: str, data: Any, file: Path, hub: dict[str, Any]) -> None:
    """A split's rows as its TSV file, whole or not at all; other columns than those that are read stay out."""
    layout = task.layout(split)
    columns = {"text_a": hub["text_a"], "text_b": hub.get("text_b"), "label": "label"}
    width = 1 + max((c for c in layout.columns.values() if isinstance(c, int)), default=-1)
    names = [key for key in columns if key in layout.columns]
    lines = ["\t".join(str(layout.columns[key]) for key in names)] if layout.header else []
    for row in data:
        cells = {key: _cell(task, key, row[columns[key]]) for key in names}
        places = {layout.columns[key]: cell for key, cell in cells.items()}
        lines.append(
            "\t".join(cells.values() if layout.header else (places.get(i, "") for i in range(width)))
        )
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _cell(task: Task, key: str, value: Any) -> str:
    """A text without what would end the cell; the label as it stands in the official files."""
    if key != "label":
        return str(value).replace("\t", " ").replace("\n", " ").replace("\r", " ")
    return task.labels[value] if task.labels else f"{value:.6g}"
