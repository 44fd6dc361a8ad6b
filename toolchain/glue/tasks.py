"""Finding a labelled task by name or folder: made here, GLUE's, or described by a task.toml beside its data."""

from pathlib import Path

from devices.errors import UserError, unknown
from toolchain.glue import docs_tasks
from toolchain.glue.description import Task, parse_task, read_toml
from toolchain.glue.rows import Row, read_rows, sample

__all__ = ["BUILT_IN", "Row", "Task", "load_task", "names", "parse_task", "read_rows", "sample"]

BUILT_IN = Path(__file__).parent / "tasks"


def names() -> list[str]:
    """Tasks that can be named: those made here and the built-in layouts of GLUE."""
    return [*docs_tasks.TASKS, *sorted(file.stem for file in BUILT_IN.glob("*.toml"))]


def load_task(name_or_folder: str | Path, data: Path | None = None) -> Task:
    """The task of that name below `data`, or the one in a folder that holds a task.toml.

    Without `data`, `docs-kind` and `docs-order` are made on first use, and GLUE's come from the hub or its
    cache. UserError for a name that is unknown, a folder that is not there, data that cannot be had, or a
    task.toml that does not say what it must.
    """
    name = str(name_or_folder)
    if data is not None and not data.is_dir():
        raise UserError(f"{data}: no such folder; --data names the folder that holds the tasks' folders")
    for folder in [Path(name)] if data is None else [data / name, Path(name)]:
        if (folder / "task.toml").is_file():
            return parse_task(folder / "task.toml", folder)
    if name in docs_tasks.TASKS:
        folder = docs_tasks.made() / name
        return parse_task(folder / "task.toml", folder)
    if (BUILT_IN / f"{name}.toml").is_file():
        return _built_in(name, data)
    if Path(name).is_dir():
        raise UserError(f"{name}: holds no task.toml; write one that names columns, labels and metric")
    raise unknown("task", name, names())


def _built_in(name: str, data: Path | None) -> Task:
    """A shipped description with the data below `data` in the official layout, or with the hub's."""
    file = BUILT_IN / f"{name}.toml"
    given = read_toml(file)
    if data is None:
        from toolchain.glue.hub import fetched

        return parse_task(file, fetched(parse_task(file, Path()), given["folder"], given["hub"]))
    folder = data / given["folder"]
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; task {name} expects its TSV files there")
    return parse_task(file, folder)
