"""What a study found: one row a figure, and the paper's tables with its numbers beside ours.

A table of the study file says which stages stand in a cell: those that meet its column's and its row's conditions.
A condition is a section (`evaluate = "zero-shot"`) or a stage's subject or option (`of = "cut-*"`, `method = "kd"`; a
list is any of them). Several runs in a cell are seeds of one: mean and spread. Anything else there is refused.
"""

import csv
import io
import itertools
import statistics
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

from devices.errors import UserError
from devices.files import read_json
from toolchain.study.spec import TAKES, Stage, Study
from toolchain.study.stages import finished

FIELDS = ("stage", "kind", "section", "of", "options", "seed", "metric", "value", "file")


@dataclass(frozen=True)
class Figure:
    """One number of one run: what was measured (`metric`), in which stage, with which seed, from which file."""

    stage: Stage
    metric: str
    value: float
    seed: int | None
    file: Path


@dataclass(frozen=True)
class Cell:
    """The runs of a cell, ours in the paper's unit, and the paper's number where it has one."""

    values: tuple[float, ...]
    paper: float | None

    @property
    def mean(self) -> float:
        """Arithmetic mean over runs."""
        return statistics.mean(self.values)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over runs (n - 1); None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


Table = dict[str, dict[str, Cell]]  # row -> column -> cell


def figures(study: Study, places: dict[str, Path]) -> list[Figure]:
    """Every figure in the folders of the study's finished stages."""
    found = []
    for name, stage in study.stages.items():
        if finished(stage, places[name]):
            found += READERS.get(stage.kind, _nothing)(stage, places[name])
    return found


def _evaluated(stage: Stage, folder: Path) -> list[Figure]:
    found = []
    for file in sorted(folder.glob("*.json")):
        quality = read_json(file, "a result")["quality"]
        metric, part = ("perplexity", quality["perplexity"]) if quality["perplexity"] else (
            quality["task"]["metric"], quality["task"])  # fmt: skip
        if part["value"] is not None:
            found.append(Figure(stage, metric, part["value"], stage.options.get("seed"), file))
    return found


def _classified(stage: Stage, folder: Path) -> list[Figure]:
    found = []
    for file in sorted(folder.glob("*/**/glue.json")):
        record = read_json(file, "how a classifier was made")
        found.append(Figure(stage, record["metric"], record["value"], record["seed"], file))
    return found


def _trained(stage: Stage, folder: Path) -> list[Figure]:
    file = folder / "compression.json"
    training = read_json(file, "how a student was made").get("training")
    if not training:
        return []
    return [
        Figure(stage, metric, training[metric], training["seed"], file)
        for metric in ("hours", "tokens", "tokens_per_second")
    ]


def _nothing(stage: Stage, folder: Path) -> list[Figure]:
    return []


READERS = {"evaluate": _evaluated, "glue": _classified, "compress": _trained}


def to_csv(found: list[Figure], root: Path) -> str:
    """One row a figure; files are named from `root`."""
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
    writer.writeheader()
    for figure in found:
        stage = figure.stage
        row = {
            "stage": stage.name,
            "kind": stage.kind,
            "section": stage.section,
            "of": stage.of,
            "options": " ".join(f"{key}={value}" for key, value in stage.options.items()),
            "seed": figure.seed,
            "metric": figure.metric,
            "value": figure.value,
            "file": figure.file.relative_to(root) if figure.file.is_relative_to(root) else figure.file,
        }
        writer.writerow(row)
    return out.getvalue()


def paper() -> dict[str, Any]:
    """The paper's tables by number (toolchain/study/paper.toml)."""
    return tomllib.loads(resources.files("toolchain.study").joinpath("paper.toml").read_text("utf-8"))[
        "tables"
    ]


def check_tables(study: Study) -> None:
    """UserError for a cell of a table in which different models would be averaged as if they were seeds of one."""
    for name in study.tables:
        for row, column, stages in _cells(study, name):
            made = {_but_for_seeds(study, stage.name): stage.name for stage in stages}
            if len(made) > 1:
                raise UserError(
                    f"{study.file}: [tables.{name}] {row}, {column}: {' and '.join(list(made.values())[:2])} "
                    "would stand in one cell and are not seeds of one; narrow the row's or the column's conditions"
                )


def fill(study: Study, name: str, found: list[Figure]) -> Table:
    """The study's table `name` with what is there; rows and cells without a run are left out."""
    theirs = paper().get(name, {"rows": {}, "scale": 1})
    filled: Table = {}
    for row, column, stages in _cells(study, name):
        names = [stage.name for stage in stages]
        values = [figure.value * theirs["scale"] for figure in found if figure.stage.name in names]
        if values:
            printed = theirs["rows"].get(row, {}).get(column)
            filled.setdefault(row, {})[column] = Cell(tuple(values), printed)
    return filled


def _cells(study: Study, name: str) -> Iterator[tuple[str, str, list[Stage]]]:
    """Row, column and the measuring stages of each cell of table `name`."""
    table = study.tables[name]
    measuring = [stage for stage in study.stages.values() if stage.kind in ("evaluate", "glue")]
    for row, mine in table["rows"].items():
        for column, general in table["columns"].items():
            yield row, column, [s for s in measuring if _meets(s, general) and _meets(s, mine)]


def _meets(stage: Stage, conditions: dict[str, Any]) -> bool:
    """Whether a stage is of the section, subject and options that `conditions` name."""
    facts = {"kind": stage.kind, "of": stage.of, **stage.options}
    for key, value in conditions.items():
        if key in TAKES:
            if (stage.kind, stage.section) != (key, value):
                return False
            continue
        patterns = value if isinstance(value, list) else [value]
        if not any(fnmatchcase(str(facts.get(key)), str(pattern)) for pattern in patterns):
            return False
    return True


def _but_for_seeds(study: Study, name: str) -> str:
    """What a stage does, and what was done to its subject before, without the seeds."""
    stage = study.stages.get(name)
    if stage is None:
        return name
    options = {key: value for key, value in stage.options.items() if key not in ("seed", "seeds")}
    return f"{stage.kind} {sorted(options.items())} of ({_but_for_seeds(study, stage.of)})"


def difference(one: Cell, other: Cell) -> float:
    """How much `one` is above `other`; 0 where that is less than the larger of the two spreads.

    Cells of single runs have no spread, so that any difference counts: say so where it is printed.
    """
    gap = one.mean - other.mean
    spreads = [cell.spread for cell in (one, other) if cell.spread is not None]
    return 0.0 if spreads and abs(gap) < max(spreads) else gap


@dataclass(frozen=True)
class Order:
    """Pairs of rows in a column: where the paper's order is ours, where it is not, and where ours says nothing."""

    agree: list[tuple[str, str]]
    differ: list[tuple[str, str]]
    none: list[tuple[str, str]]


def order(table: Table, column: str, better: str) -> Order:
    """The paper's order of rows against ours, pair by pair (better one first, as the paper has it)."""
    rows = {
        row: cells[column]
        for row, cells in table.items()
        if column in cells and cells[column].paper is not None
    }
    sign = 1 if better == "higher" else -1
    found = Order([], [], [])
    for one, other in itertools.combinations(rows, 2):
        theirs = sign * ((rows[one].paper or 0) - (rows[other].paper or 0))
        if theirs == 0:
            continue
        pair = (one, other) if theirs > 0 else (other, one)
        ours = sign * difference(rows[pair[0]], rows[pair[1]])
        (found.none if ours == 0 else found.agree if ours > 0 else found.differ).append(pair)
    return found


def to_markdown(study: Study, found: list[Figure]) -> str:
    """All of the study's tables, each with the paper's numbers beside ours and a word about the order."""
    parts = [f"# {study.title}\n", *([SCALE] if study.tables.keys() & paper().keys() else []), NOTATION]
    for name in study.tables:
        if table := fill(study, name, found):
            parts.append(_section(study, name, table))
    return "\n".join(parts)


SCALE = """\
Ours are small models, little text and few rows: what can be compared with the paper is the order of methods, not
the numbers.
"""
NOTATION = """\
`a ± b` is the mean over seeds and their sample standard deviation; a figure without is one run. Two figures that
differ by less than the larger of their spreads are not told apart.
"""


def _section(study: Study, name: str, table: Table) -> str:
    theirs = paper().get(name, {})
    title = theirs.get("title", study.tables[name].get("title", name))
    columns = [c for c in study.tables[name]["columns"] if any(c in cells for cells in table.values())]
    known = [c for c in columns if any(c in cells and cells[c].paper is not None for cells in table.values())]
    head = ["", *(part for c in columns for part in ([c, f"{c}, paper"] if c in known else [c]))]
    lines = [f"## {f'Table {name}: ' if theirs else ''}{title}\n"]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row, cells in table.items():
        words = [row]
        for column in columns:
            cell = cells.get(column)
            words.append(_figure(cell) if cell else "–")
            if column in known:
                words.append(f"{cell.paper:g}" if cell and cell.paper is not None else "–")
        lines.append("| " + " | ".join(words) + " |")
    lines.append("")
    for column in known:
        lines.append(_said(column, order(table, column, theirs["better"])))
    return "\n".join(lines) + "\n"


def _figure(cell: Cell) -> str:
    digits = max(0, 3 - len(str(int(abs(cell.mean)))))
    text = f"{cell.mean:.{digits}f}"
    return text if cell.spread is None else f"{text} ± {cell.spread:.{digits}f}"


def _said(column: str, found: Order) -> str:
    """Where the order agrees with the paper's, in a sentence or two."""
    total = len(found.agree) + len(found.differ) + len(found.none)
    if not total:
        return f"{column}: one row alone has a number in the paper; there is no order to compare."
    said = f"{column}: of {total} pairs, {len(found.agree)} stand as in the paper, {len(found.differ)} the other way"
    said += f", {len(found.none)} are no different here." if found.none else "."
    if found.differ:
        pairs = "; ".join(f"{other} before {one}" for one, other in found.differ)
        said += f" Other than in the paper: {pairs}."
    return said + "\n"
