"""What a task is, read from a task.toml: its files and columns, labels, metrics, and official row counts."""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devices.errors import UserError, unknown
from toolchain.glue.metrics import METRICS, PROBLEM_OF
from toolchain.glue.rows import Layout, Row, read_rows

KEYS = (
    *("name", "description", "folder", "problem", "metric", "also", "labels", "range", "header", "columns"),
    *("files", "test", "joined", "rows", "submission", "hub"),
)
COLUMNS = ("text_a", "text_b", "label")
NAMES: dict[type, str] = {
    str: "a text that is not empty",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
SPLITS = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}
# MNLI has two dev and two test sets; further ones are named after the kind they are of.
SPLIT = re.compile(r"train|(dev|test)(_\w+)?")


@dataclass(frozen=True)
class Task:
    """A task's description; `columns` are header names or, where there is no header, positions from 0."""

    name: str
    description: str
    problem: str  # "classification" or "regression"
    metric: str  # what the best epoch is chosen by, and what stands for the task in an average
    labels: tuple[str, ...] | None  # as they stand in the files, in the order of class indices
    range: tuple[float, float] | None  # of a regression's scores
    header: bool
    columns: dict[str, str | int]
    files: dict[str, str]  # by split
    path: Path
    also: tuple[str, ...] = ()  # other metrics, reported beside
    test: dict[str, Any] = field(default_factory=dict)  # where test files differ: columns, header
    joined: bool = False  # see Layout
    counts: dict[str, tuple[int, ...]] = field(default_factory=dict)  # official rows by split
    submission: dict[str, str] = field(default_factory=dict)  # file names of GLUE's server by test split

    def rows(self, split: str) -> list[Row]:
        """All rows of "train", "dev", "test" or a further split; a test split need not have labels.

        Raises:
            UserError: naming file and line, for a missing file, no rows, another encoding than UTF-8, a
                missing column, a line with another number of columns, or a label outside the task's.
        """
        if split not in self.files:
            raise unknown("split", split, self.files)
        return read_rows(self.layout(split), self.file(split))

    def file(self, split: str) -> Path:
        """Where the split is: in the task's folder, or a folder of its own beside it, as GLUE's diagnostic set."""
        file = self.path / self.files[split]
        beside = self.path.parent / file.stem / file.name
        return beside if beside.is_file() and not file.exists() else file

    def layout(self, split: str) -> Layout:
        """How the split's file is laid out; test sets without label."""
        columns, header = self.columns, self.header
        if split.startswith("test"):
            texts = ("text_a", "text_b")
            columns = {key: self.test.get(key, columns[key]) for key in texts if key in columns}
            header = self.test.get("header", header)
        return Layout(columns, header, self.labels, self.range, self.joined)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics, the one that stands for the task first."""
        return self.metric, *self.also

    def sets(self, kind: str) -> list[str]:
        """The splits of `kind` "dev" or "test", the principal one first."""
        return [split for split in self.files if split.split("_")[0] == kind]

    def deviation(self, split: str, rows: int) -> str | None:
        """One line where the split has another number of rows than GLUE's, else None."""
        official = self.counts.get(split, (rows,))
        if rows in official:
            return None
        return f"{self.file(split)}: {rows:,} rows, the official file has {official[0]:,}; figures compare less well"

    def summary(self) -> dict[str, Any]:
        """What an artifact's manifest and a result say about the task."""
        return {
            "name": self.name,
            "columns": dict(self.columns),
            "labels": list(self.labels) if self.labels else None,
            "metric": self.metric,
            "problem": self.problem,
        }


def parse_task(file: Path, folder: Path) -> Task:
    """The validated description in `file`, for TSV files in `folder`; UserError naming file and key."""
    given = read_toml(file)
    _known_keys(file, "key", given, KEYS)
    header = _typed(file, given, "header", bool, True)
    problem = _typed(file, given, "problem", str, "classification")
    if problem not in ("classification", "regression"):
        raise UserError(f"{file}: {unknown('problem', problem, ('classification', 'regression'))}")
    metric = _metric(file, given, problem, _typed(file, given, "metric", str))
    also = tuple(_metric(file, given, problem, name) for name in _typed(file, given, "also", list, []))
    files = _files(file, given)
    return Task(
        name=_name(file, given),
        description=_typed(file, given, "description", str, ""),
        problem=problem,
        metric=metric,
        labels=_labels(file, given) if problem == "classification" else None,
        range=_range(file, given) if problem == "regression" else None,
        header=header,
        columns=_columns(file, given, header),
        files=files,
        path=folder,
        also=also,
        test=_test(file, given),
        joined=_typed(file, given, "joined", bool, False),
        counts=_counts(file, given, files),
        submission=_submission(file, given, files),
    )


def read_toml(file: Path) -> dict[str, Any]:
    """A task.toml's tables, unchecked; UserError where it is missing or no TOML."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; a task needs its description there") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid TOML ({error}); mend that line") from None


def _known_keys(file: Path, kind: str, given: dict, known: Iterable[str]) -> None:
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


def _name(file: Path, given: dict) -> str:
    name = _typed(file, given, "name", str)
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise UserError(
            f"{file}: name {name!r} would not do as a folder's; use letters, digits, '-', '_' and '.'"
        )
    return name


def _metric(file: Path, given: dict, problem: str, metric: Any) -> str:
    if metric not in METRICS:
        raise UserError(f"{file}: {unknown('metric', str(metric), METRICS)}")
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
        _check_column(file, key, column, header)
    return columns


def _check_column(file: Path, key: str, column: Any, header: bool) -> None:
    good = isinstance(column, str) and column if header else type(column) is int and column >= 0
    if not good:
        need = "a name from the header" if header else "a position from 0, as there is no header"
        raise UserError(f"{file}: column '{key}' is {column!r}; it must be {need}")


def _test(file: Path, given: dict) -> dict[str, Any]:
    """How test files differ from the others: `header`, `text_a`, `text_b`."""
    test = _typed(file, given, "test", dict, {})
    _known_keys(file, "key of [test]", test, ("header", "text_a", "text_b"))
    header = _typed(file, test, "header", bool, given.get("header", True))
    for key in ("text_a", "text_b"):
        if key in given["columns"]:
            _check_column(file, key, test.get(key, given["columns"][key]), header)
    return test


def _files(file: Path, given: dict) -> dict[str, str]:
    """File names by split: the usual three and what [files] names in their place or beside them."""
    files = _typed(file, given, "files", dict, {})
    for split in files:
        if not SPLIT.fullmatch(split):
            raise UserError(f"{file}: {unknown('split', split, (*SPLITS, 'dev_NAME', 'test_NAME'))}")
    for name in files.values():
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise UserError(f"{file}: file {name!r} must be a plain name in the task's folder")
    return SPLITS | files


def _counts(file: Path, given: dict, files: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Rows by split: a number, or a list of those that are in circulation."""
    rows = _typed(file, given, "rows", dict, {})
    _known_keys(file, "split", rows, files)
    found = {split: tuple(n) if isinstance(n, list) else (n,) for split, n in rows.items()}
    for split, numbers in found.items():
        if not numbers or any(type(n) is not int or n < 1 for n in numbers):
            raise UserError(f"{file}: rows of {split} is {rows[split]!r}; it must be a count")
    return found


def _submission(file: Path, given: dict, files: dict[str, str]) -> dict[str, str]:
    names = _typed(file, given, "submission", dict, {})
    _known_keys(file, "split", names, files)
    for name in names.values():
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise UserError(f"{file}: submission file {name!r} must be a plain name")
    return names
