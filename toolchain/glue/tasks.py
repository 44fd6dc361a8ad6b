"""Labelled tasks as data: a task.toml says what a TSV file's columns mean; rows are read literally."""

import random
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.errors import UserError, unknown
from toolchain.glue import docs_tasks
from toolchain.glue.metrics import METRICS, PROBLEM_OF

BUILT_IN = Path(__file__).parent / "tasks"

KEYS = ("name", "description", "folder", "problem", "metric", "labels", "range", "header", "columns", "files")
COLUMNS = ("text_a", "text_b", "label")
NAMES: dict[type, str] = {
    str: "a text that is not empty",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
SPLITS = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}


@dataclass(frozen=True)
class Row:
    """One example: a text or a pair, and a class index, a score, or None where the split has no labels."""

    text_a: str
    text_b: str | None
    label: int | float | None


@dataclass(frozen=True)
class Task:
    """A task's description; `columns` are header names or, where there is no header, positions from 0."""

    name: str
    description: str
    problem: str  # "classification" or "regression"
    metric: str
    labels: tuple[str, ...] | None  # as they stand in the files, in the order of class indices
    range: tuple[float, float] | None  # of a regression's scores
    header: bool
    columns: dict[str, str | int]
    files: dict[str, str]
    path: Path

    def rows(self, split: str) -> list[Row]:
        """All rows of "train", "dev" or "test"; a test split need not have labels.

        Raises:
            UserError: naming file and line, for a missing file, no rows, another encoding than UTF-8, a
                missing column, a line with another number of columns, or a label outside the task's.
        """
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        return read_rows(self, self.path / self.files[split], labelled=split != "test")

    def summary(self) -> dict[str, Any]:
        """What an artifact's manifest and a result say about the task."""
        return {
            "name": self.name,
            "columns": dict(self.columns),
            "labels": list(self.labels) if self.labels else None,
            "metric": self.metric,
            "problem": self.problem,
        }


def names() -> list[str]:
    """Tasks that can be named: those made here and the built-in layouts of GLUE."""
    return [*docs_tasks.TASKS, *sorted(file.stem for file in BUILT_IN.glob("*.toml"))]


def load_task(name_or_folder: str | Path, data: Path | None = None) -> Task:
    """The task of that name below `data`, or the one in a folder that holds a task.toml.

    `docs-kind` and `docs-order` are made on first use where `data` is not given. UserError for a name
    that is unknown, a folder that is not there, or a task.toml that does not say what it must.
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
    """A shipped description with the data below `data`, in the official layout."""
    if data is None:
        raise UserError(f"task {name}: its data is not shipped; pass --data with the folder that holds it")
    file = BUILT_IN / f"{name}.toml"
    folder = data / tomllib.loads(file.read_text(encoding="utf-8"))["folder"]
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; task {name} expects its TSV files there")
    return parse_task(file, folder)


def parse_task(file: Path, folder: Path) -> Task:
    """The validated description in `file`, for TSV files in `folder`; UserError naming file and key."""
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; a task needs its description there") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid TOML ({error}); mend that line") from None
    _known_keys(file, "key", given, KEYS)
    header = _typed(file, given, "header", bool, True)
    problem = _typed(file, given, "problem", str, "classification")
    if problem not in ("classification", "regression"):
        raise UserError(f"{file}: {unknown('problem', problem, ('classification', 'regression'))}")
    files = _typed(file, given, "files", dict, {})
    _known_keys(file, "split", files, SPLITS)
    name = _typed(file, given, "name", str)
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise UserError(
            f"{file}: name {name!r} would not do as a folder's; use letters, digits, '-', '_' and '.'"
        )
    return Task(
        name=name,
        description=_typed(file, given, "description", str, ""),
        problem=problem,
        metric=_metric(file, given, problem),
        labels=_labels(file, given) if problem == "classification" else None,
        range=_range(file, given) if problem == "regression" else None,
        header=header,
        columns=_columns(file, given, header),
        files={split: _file_name(file, files.get(split, usual)) for split, usual in SPLITS.items()},
        path=folder,
    )


def _known_keys(file: Path, kind: str, given: dict, known: Any) -> None:
    for key in given:
        if key not in known:
            raise UserError(f"{file}: {unknown(kind, key, known)}")


def _typed(file: Path, given: dict, key: str, kind: type, default: Any = None) -> Any:
    """given[key], checked to be of `kind`; a key without a default must be there."""
    value = given.get(key, default)
    if value is None:
        raise UserError(f"{file}: no '{key}'; add one")
    if not isinstance(value, kind) or (value == "" and default is None):
        raise UserError(f"{file}: '{key}' is {value!r}; it must be {NAMES[kind]}")
    return value


def _metric(file: Path, given: dict, problem: str) -> str:
    metric = _typed(file, given, "metric", str)
    if metric not in METRICS:
        raise UserError(f"{file}: {unknown('metric', metric, METRICS)}")
    if PROBLEM_OF[metric] != problem:
        raise UserError(
            f"{file}: metric '{metric}' is for {PROBLEM_OF[metric]}; the task's problem is {problem}"
        )
    if metric == "f1" and len(given.get("labels", ())) != 2:
        raise UserError(f"{file}: metric 'f1' needs two labels, the second one the positive")
    return metric


def _labels(file: Path, given: dict) -> tuple[str, ...]:
    """Class labels as they stand in the TSV files, at least two, each once."""
    labels = _typed(file, given, "labels", list)
    wrong = [label for label in labels if not isinstance(label, str) or label != label.strip() or not label]
    if wrong or len(set(labels)) != len(labels) or len(labels) < 2:
        raise UserError(f"{file}: 'labels' is {labels!r}; it must be two or more different strings")
    return tuple(labels)


def _range(file: Path, given: dict) -> tuple[float, float]:
    """Lowest and highest score of a regression."""
    bounds = _typed(file, given, "range", list)
    numbers = [float(b) for b in bounds if isinstance(b, int | float) and not isinstance(b, bool)]
    if len(bounds) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise UserError(f"{file}: 'range' is {bounds!r}; it must be the lowest and the highest score")
    return numbers[0], numbers[1]


def _columns(file: Path, given: dict, header: bool) -> dict[str, str | int]:
    """Which column holds what: names with a header, positions from 0 without."""
    columns = _typed(file, given, "columns", dict)
    _known_keys(file, "column", columns, COLUMNS)
    for key in ("text_a", "label"):
        if key not in columns:
            raise UserError(f"{file}: [columns] has no '{key}'; say which column it is")
    for key, column in columns.items():
        good = isinstance(column, str) and column if header else type(column) is int and column >= 0
        if not good:
            need = "a name from the header" if header else "a position from 0, as there is no header"
            raise UserError(f"{file}: column '{key}' is {column!r}; it must be {need}")
    return columns


def _file_name(file: Path, name: Any) -> str:
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise UserError(f"{file}: file {name!r} must be a plain name in the task's folder")
    return name


def sample(rows: list[Row], count: int | None, seed: int) -> list[Row]:
    """`count` of the rows, drawn by `seed`, in the file's order; all where there are no more."""
    if count is None or count >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), count))]


def read_rows(task: Task, file: Path, labelled: bool = True) -> list[Row]:
    """Rows of a TSV file, read literally: a quote is a quote, and only tab and newline mean anything."""
    lines = list(_lines(file))
    rows: list[Row] = []
    where, width = _positions(task, file, lines[0][1], labelled) if lines else ({}, 0)
    for number, cells in lines[1:] if task.header else lines:
        if len(cells) != width:
            raise UserError(
                f"{file} line {number}: {len(cells)} columns where {width} are expected; mend that line"
            )
        label = _label(task, f"{file} line {number}", cells[where["label"]]) if labelled else None
        rows.append(Row(cells[where["text_a"]], cells[where["text_b"]] if "text_b" in where else None, label))
    if not rows:
        raise UserError(f"{file}: holds no rows; a task needs at least one")
    return rows


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, cells) of each line; UserError for a missing file or another encoding."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; the task's data is incomplete") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file} line {number}: not UTF-8; convert the file to UTF-8") from None
    # str.splitlines would also cut at U+2028, form feeds and the like, which are text here.
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, 1):
        yield number, line.removesuffix("\r").split("\t")


def _positions(task: Task, file: Path, cells: list[str], labelled: bool) -> tuple[dict[str, int], int]:
    """Where each needed column stands, and how many columns a line has, both from the first line's cells."""
    wanted = {key: column for key, column in task.columns.items() if labelled or key != "label"}
    where = {}
    for key, column in wanted.items():
        if isinstance(column, int):
            if column >= len(cells):
                raise UserError(f"{file} line 1: no column {column}; it has {len(cells)}, counted from 0")
            where[key] = column
        elif cells.count(column) == 1:
            where[key] = cells.index(column)
        else:
            times = "twice a" if column in cells else "no"
            raise UserError(f"{file} line 1: {times} column '{column}'; the header has {', '.join(cells)}")
    return where, len(cells)


def _label(task: Task, place: str, cell: str) -> int | float:
    """A cell as class index, or as a score within the task's range."""
    if task.labels is not None:
        if cell not in task.labels:
            raise UserError(
                f"{place}: label {cell[:40]!r} is none of {', '.join(task.labels)}; mend that line"
            )
        return task.labels.index(cell)
    low, high = task.range or (float("-inf"), float("inf"))
    try:
        value = float(cell)
    except ValueError:
        raise UserError(f"{place}: score {cell[:40]!r} is not a number; mend that line") from None
    if not low <= value <= high:
        raise UserError(f"{place}: score {value:g} is outside {low:g} to {high:g}; mend that line")
    return value
