"""Rows of labelled TSV files, read literally: a quote is a quote, and only tab and newline mean anything."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from devices.errors import UserError


@dataclass(frozen=True)
class Row:
    """One example: a text or a pair, and a class index, a score, or None where the split has no labels."""

    text_a: str
    text_b: str | None
    label: int | float | None


@dataclass(frozen=True)
class Layout:
    """What a file's lines hold: which columns, and what their labels may be.

    `columns` maps text_a, perhaps text_b, and for labelled rows label, to header names or, where there is no
    header, to positions from 0. Labels are one of `labels`, or a score within `range`. With `joined`, a line
    that is too short is the first part of a row that a newline in its text has cut (QQP has such), and lines
    that make no row all the same are left out; otherwise they are errors.
    """

    columns: dict[str, str | int]
    header: bool
    labels: tuple[str, ...] | None
    range: tuple[float, float] | None
    joined: bool = False


def read_rows(layout: Layout, file: Path) -> list[Row]:
    """All rows of the file, in its order.

    Raises:
        UserError: naming file and line, for a missing file, no rows, another encoding than UTF-8, a missing
            column, a line with another number of columns, or a label outside the layout's.
    """
    lines = list(_lines(file))
    rows: list[Row] = []
    where, width = _positions(layout, file, lines[0][1]) if lines else ({}, 0)
    body = lines[1:] if layout.header else lines
    for number, cells in _joined(body, width) if layout.joined else body:
        if len(cells) != width:
            raise UserError(
                f"{file} line {number}: {len(cells)} columns where {width} are expected; mend that line"
            )
        try:
            label = (
                _label(layout, f"{file} line {number}", cells[where["label"]]) if "label" in where else None
            )
        except UserError:
            if layout.joined:
                continue
            raise
        rows.append(Row(cells[where["text_a"]], cells[where["text_b"]] if "text_b" in where else None, label))
    if not rows:
        raise UserError(f"{file}: holds no rows; a task needs at least one")
    return rows


def sample(rows: list[Row], count: int | None, seed: int) -> list[Row]:
    """`count` of the rows, drawn by `seed`, in the file's order; all where there are no more."""
    if count is None or count >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), count))]


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, cells) of each line; UserError for a missing file or another encoding."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; the task's data is incomplete") from None
    except IsADirectoryError:
        raise UserError(f"{file}: is a folder where a TSV file is expected; mend the task's data") from None
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


def _joined(lines: list[tuple[int, list[str]]], width: int) -> Iterator[tuple[int, list[str]]]:
    """Lines of `width` cells; neighbouring shorter ones that make one together come as it, others not at all."""
    parts: list[str] = []
    for number, cells in lines:
        if len(cells) == width:
            parts = []
            yield number, cells
            continue
        # The newline between the parts stood inside a cell: that cell is one again.
        parts = [*parts[:-1], f"{parts[-1]} {cells[0]}", *cells[1:]] if parts else cells
        if len(parts) == width:
            yield number, parts
        if len(parts) >= width:
            parts = []


def _positions(layout: Layout, file: Path, cells: list[str]) -> tuple[dict[str, int], int]:
    """Where each needed column stands, and how many columns a line has, both from the first line's cells."""
    where = {}
    for key, column in layout.columns.items():
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


def _label(layout: Layout, place: str, cell: str) -> int | float:
    """A cell as class index, or as a score within the layout's range."""
    if layout.labels is not None:
        if cell not in layout.labels:
            raise UserError(
                f"{place}: label {cell[:40]!r} is none of {', '.join(layout.labels)}; mend that line"
            )
        return layout.labels.index(cell)
    low, high = layout.range or (float("-inf"), float("inf"))
    try:
        value = float(cell)
    except ValueError:
        raise UserError(f"{place}: score {cell[:40]!r} is not a number; mend that line") from None
    if not low <= value <= high:
        raise UserError(f"{place}: score {value:g} is outside {low:g} to {high:g}; mend that line")
    return value
