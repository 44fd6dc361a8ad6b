"""A study file, read and checked whole: teachers, texts, and sections that are commands with their options.

A section `[compress.cut]` is the command `toolchain compress` on what `of` names, with its options spelt as on
the command line. A list is an axis of the grid, `of` takes patterns; each point of the grid is a stage.
"""

import itertools
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from devices.errors import UserError, unknown

# The commands that a study may name, in the order in which a model passes them, and what each takes: teachers,
# texts, or the stages of other commands.
TAKES: dict[str, tuple[str, ...]] = {
    "clean": ("texts",),
    "compress": ("teachers", "compress"),
    "glue": ("teachers", "compress"),
    "export": ("teachers", "compress", "glue"),
    "evaluate": ("teachers", "compress", "glue", "export"),
    "bench": ("export",),
}
# Options whose value may be the name of a text, or of a cleaned one.
TEXT_OPTIONS = ("corpus", "heldout", "select-corpus", "calibrate", "quality-text")
KEYS = ("title", "data", "teachers", "texts", "tables", *TAKES)


@dataclass(frozen=True)
class Stage:
    """One command of the study: what it works on (`of`), its options, and the stages it waits for."""

    name: str
    kind: str
    section: str
    of: str
    options: dict[str, Any]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A study, its grid spelt out; `texts` and `teachers` map names to a path, hub id or `stdlib`.

    `shapes` are configurations (as in config.json) of teachers that may not be on this machine, and `sizes`
    the tokens of texts that may not be: a dry run counts with them.
    """

    title: str
    file: Path
    teachers: dict[str, str]
    shapes: dict[str, dict[str, Any]]
    texts: dict[str, str]
    sizes: dict[str, int]
    stages: dict[str, Stage]
    tables: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.file.stem


def read_study(file: Path, data: Path | None = None, texts: Mapping[str, str] | None = None) -> Study:
    """The study in `file`, with the tasks' folder `data` and the paths `texts` by name in place of its own.

    Raises:
        UserError: naming file and section, for a file that is none, an unknown key, option or name, a value
            that the command would refuse, two stages of one name, a section that matches nothing.
    """
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{file}: no such file; name a study (studies/paper-small.toml is one)") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid TOML ({error}); mend that line") from None
    for key in given:
        if key not in KEYS:
            raise UserError(f"{file}: {unknown('key', key, KEYS)}")
    teachers, shapes = _named(file, given, "teachers", "config", dict)
    named, sizes = _named(file, given, "texts", "tokens", int)
    for name in texts or {}:
        if name not in named:
            raise unknown("text of the study", name, named)
    texts = {**named, **(texts or {})}
    if not teachers:
        raise UserError(f"{file}: names no teacher; add [teachers] with one")
    folder = str(data) if data else _data(file, given.get("data"))
    stages: dict[str, Stage] = {}
    for kind in TAKES:
        for section, table in _sections(file, given, kind):
            for stage in _expanded(file, kind, section, table, teachers, texts, stages, folder):
                if stage.name in stages or stage.name in {**teachers, **texts}:
                    raise UserError(
                        f"{file}: [{kind}.{section}]: a second '{stage.name}'; rename the section"
                    )
                stages[stage.name] = stage
    if not stages:
        raise UserError(f"{file}: names nothing to do; add a section such as [compress.NAME]")
    tables = given.get("tables", {})
    _check_tables(file, tables, stages)
    return Study(str(given.get("title", file.stem)), file, teachers, shapes, texts, sizes, stages, tables)


def _named(
    file: Path, given: dict, key: str, extra: str, kind: type
) -> tuple[dict[str, str], dict[str, Any]]:
    """[key] as name -> path and, where an entry is a table, name -> its `extra`."""
    paths, extras = {}, {}
    for name, value in _table(file, given, key).items():
        table = value if isinstance(value, dict) else {"path": value}
        for inner in table:
            if inner not in ("path", extra):
                raise UserError(f"{file}: [{key}.{name}]: {unknown('key', inner, ('path', extra))}")
        if not isinstance(table.get("path"), str) or not table["path"]:
            raise UserError(f"{file}: [{key}] {name}: must be a path, or a table with one")
        if not isinstance(table.get(extra, kind()), kind):
            raise UserError(f"{file}: [{key}.{name}] {extra} is {table[extra]!r}; see docs/studies.md")
        paths[name] = _placed(file, table["path"])
        if extra in table:
            extras[name] = table[extra]
    return paths, extras


def _placed(file: Path, path: str) -> str:
    """A path that starts with a dot is seen from the study's folder; anything else stays as it is."""
    return str((file.parent / path).resolve()) if path.startswith(("./", "../")) else path


def _data(file: Path, path: Any) -> str | None:
    if path is None:
        return None
    if not isinstance(path, str):
        raise UserError(f"{file}: data is {path!r}; it must be the folder that holds the tasks' folders")
    return _placed(file, path)


def _table(file: Path, given: dict, key: str) -> dict[str, Any]:
    table = given.get(key, {})
    if not isinstance(table, dict):
        raise UserError(f"{file}: '{key}' is {table!r}; it must be a table, [{key}]")
    return table


def _sections(file: Path, given: dict, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for section, table in _table(file, given, kind).items():
        if not isinstance(table, dict):
            raise UserError(f"{file}: {kind}.{section} is {table!r}; it must be a table, [{kind}.{section}]")
        if "of" not in table:
            raise UserError(f"{file}: [{kind}.{section}] has no 'of'; say what it works on")
        yield section, table


def _expanded(
    file: Path,
    kind: str,
    section: str,
    table: dict[str, Any],
    teachers: Mapping[str, str],
    texts: Mapping[str, str],
    stages: Mapping[str, Stage],
    data: str | None,
) -> Iterator[Stage]:
    """The stages of one section: every subject times every point of its axes."""
    place = f"{file}: [{kind}.{section}]"
    options = {key.replace("_", "-"): value for key, value in table.items() if key != "of"}
    pools = {"teachers": teachers, "texts": texts}
    known = [
        name
        for source in TAKES[kind]
        for name in (
            pools[source] if source in pools else [s.name for s in stages.values() if s.kind == source]
        )
    ]
    patterns = table["of"] if isinstance(table["of"], list) else [table["of"]]
    subjects = [name for pattern in patterns for name in _matches(place, pattern, known)]
    several = len(patterns) > 1 or any(set("*?[") & set(pattern) for pattern in patterns)
    axes = [key for key, value in options.items() if isinstance(value, list)]
    for name, values in itertools.product(
        dict.fromkeys(subjects), itertools.product(*(options[key] for key in axes))
    ):
        point = {**options, **dict(zip(axes, values, strict=True))}
        words = [section, *([name] if several else []), *map(str, values)]
        if kind == "glue" and data and "data" not in point and not str(point.get("task")).startswith("docs-"):
            point["data"] = data
        needs = [name] if name in stages else []
        for key in TEXT_OPTIONS:
            if point.get(key) in stages:
                needs.append(point[key])
            elif key in point:
                point[key] = texts.get(point[key], _placed(file, str(point[key])))
        if kind == "glue" and "teacher" in point:
            point["teacher"] = _classifier(place, str(point["teacher"]), str(point.get("task")), stages)
            needs.append(point["teacher"])
        yield Stage("-".join(words).replace("/", "-"), kind, section, name, point, tuple(needs))


def _matches(place: str, pattern: Any, known: Iterable[str]) -> list[str]:
    names = list(known)
    found = [name for name in names if fnmatchcase(name, str(pattern))]
    if not found:
        raise UserError(f"{place} of: {unknown('name', str(pattern), names)}")
    return found


def _classifier(place: str, section: str, task: str, stages: Mapping[str, Stage]) -> str:
    """The stage of glue section `section` (or of that name) which fine-tunes on `task`: a method's teacher."""
    glue = [stage for stage in stages.values() if stage.kind == "glue"]
    found = [s.name for s in glue if section in (s.name, s.section) and s.options.get("task") == task]
    if len(found) != 1:
        names = dict.fromkeys(s.section for s in glue)
        if section not in names:
            raise UserError(f"{place} teacher: {unknown('glue section', section, names)}")
        raise UserError(
            f"{place} teacher: '{section}' has {len(found)} classifiers of task {task}; one is needed"
        )
    return found[0]


def _check_tables(file: Path, tables: Any, stages: Mapping[str, Stage]) -> None:
    """UserError where a table's columns name no section, or no rows are named."""
    sections = {
        kind: list(dict.fromkeys(s.section for s in stages.values() if s.kind == kind)) for kind in TAKES
    }
    for name, table in tables.items():
        if not (isinstance(table, dict) and table.get("columns") and table.get("rows")):
            raise UserError(f"{file}: [tables.{name}] needs columns and rows; see docs/studies.md")
        for title, cell in [*table["columns"].items(), *table["rows"].items()]:
            for kind in sections.keys() & cell.keys():
                if cell[kind] not in sections[kind]:
                    raise UserError(
                        f"{file}: [tables.{name}] {title}: {unknown(f'{kind} section', cell[kind], sections[kind])}"
                    )
