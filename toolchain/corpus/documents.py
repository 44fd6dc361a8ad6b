"""A corpus's files in parts that one task reads each, and the documents of a part, one at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from devices.errors import UserError

BUILDERS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
}
PART = 16 << 20  # bytes a part, so that one part's keys fit in memory
PARTS = 500  # at most about so many: a merge has one file of each open
LINES = 10_000  # lines a document at most: a text without a blank line is cut


class Part(NamedTuple):
    """Bytes `start` to `end` of a text or jsonl file, or those row groups of a parquet file."""

    form: str  # text, json or parquet
    file: str
    start: int
    end: int


def parts(files: list[Path]) -> list[Part]:
    """`files` cut into parts of about PART bytes, larger ones where there would be more than PARTS."""
    size = max(PART, sum(file.stat().st_size for file in files) // PARTS)
    return [part for file in files for part in _parts(file, size)]


def _parts(file: Path, size: int) -> Iterator[Part]:
    form = BUILDERS[file.suffix]
    if form != "parquet":
        total = file.stat().st_size
        yield from (Part(form, str(file), at, min(at + size, total)) for at in range(0, total, size))
        return
    import pyarrow.parquet as pq

    try:
        groups = pq.ParquetFile(file).metadata.num_row_groups
    except (ValueError, OSError) as error:
        raise UserError(f"corpus '{file}': cannot be read as parquet ({error}); convert it") from None
    yield from (Part(form, str(file), group, group + 1) for group in range(groups))


def documents(part: Part) -> Iterator[str]:
    """The texts of a part, in order: a text file's paragraphs, a jsonl or parquet file's column `text`.

    A line belongs to the part in which it begins; a paragraph that two parts share is read as two. UserError for
    what is not UTF-8, no JSON object, or has no strings in a column `text`.
    """
    if part.form == "parquet":
        return _rows(part)
    return _paragraphs(part) if part.form == "text" else _records(part)


def texts(file: str, stamp: tuple[int, int]) -> Iterator[dict[str, str]]:
    """The paragraphs of a whole text file, as rows; `stamp` (its size and time) tells a changed one to a cache.

    A file of blanks has an empty one: datasets makes nothing of no rows.
    """
    found = documents(Part("text", file, 0, stamp[0]))
    yield {"text": next(found, "")}
    yield from ({"text": text} for text in found)


def _lines(part: Part) -> Iterator[tuple[int, str]]:
    """The lines that begin in a part, each with the byte it begins at."""
    with Path(part.file).open("rb") as stream:
        at = part.start
        if at:
            stream.seek(at - 1)
            at += len(stream.readline()) - 1
        while at < part.end and (line := stream.readline()):
            try:
                yield at, line.decode("utf-8-sig" if at == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"corpus '{part.file}': not UTF-8 at byte {at + error.start}; convert it to UTF-8"
                ) from None
            at += len(line)


def _paragraphs(part: Part) -> Iterator[str]:
    found: list[str] = []
    for _, line in _lines(part):
        if line.strip():
            found.append(line)
        if found and (not line.strip() or len(found) == LINES):
            yield "".join(found).rstrip()
            found = []
    if found:
        yield "".join(found).rstrip()


def _records(part: Part) -> Iterator[str]:
    for at, line in _lines(part):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(
                f"corpus '{part.file}': no JSON object in the line at byte {at}; write one object a line"
            )
        yield _text(row, part.file)


def _rows(part: Part) -> Iterator[str]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(part.file) as opened:
        if "text" not in opened.schema_arrow.names:
            raise UserError(
                f"corpus '{part.file}': has no column 'text' (has {', '.join(opened.schema_arrow.names)}); "
                "rename one"
            )
        for batch in opened.iter_batches(1024, row_groups=range(part.start, part.end), columns=["text"]):
            for row in batch.to_pylist():
                yield _text(row, part.file)


def _text(row: dict[str, Any], file: str) -> str:
    text = row.get("text", "")
    if "text" not in row or not isinstance(text, str | None):
        what = f"holds {type(text).__name__}" if "text" in row else f"has {', '.join(row) or 'nothing'}"
        raise UserError(f"corpus '{file}': a row has no string 'text' ({what}); rename or convert it")
    return text or ""
