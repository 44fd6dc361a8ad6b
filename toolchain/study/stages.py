"""From a stage to what runs: its key, its place on the disk, and its command line."""

import hashlib
import importlib
import json
from collections.abc import Iterable
from pathlib import Path

import click

from devices.errors import UserError, unknown
from devices.files import sha256
from toolchain import __version__
from toolchain.demo import shipped
from toolchain.study.spec import TEXT_OPTIONS, Stage, Study

# What stands in a folder once its command is through.
MARKS = {
    "clean": "clean.json",
    "compress": "compression.json",
    "glue": "glue.json",
    "export": "manifest.json",
    "evaluate": "*.json",
    "bench": "*.json",
}
# Options whose value is a name that `toolchain list` knows, or (the last two) a file.
REGISTERED = {
    "select": "selectors",
    "objective": "objectives",
    "method": "methods",
    "workload": "workloads",
    "recipe": "recipes",
    "device": "devices",
}


def check_options(study: Study) -> None:
    """Parse every stage's command line as the command would, and look its names up; UserError otherwise."""
    from toolchain.catalog import entries

    for stage in study.stages.values():
        place = f"{study.file}: [{stage.kind}.{stage.section}]"
        module = importlib.import_module(f"toolchain.cli.{stage.kind}")
        try:
            module.command.make_context(stage.kind, arguments(stage, "subject", {}, Path("out")))
        except click.UsageError as error:
            raise UserError(f"{place}: {error.format_message()}") from None
        for option, kind in REGISTERED.items():
            value = stage.options.get(option)
            if value is not None and value not in entries(kind) and not Path(str(value)).suffix:
                raise UserError(
                    f"{place} {option}: {unknown(kind.removesuffix('s'), str(value), entries(kind))}"
                )
        if stage.kind == "glue":
            _check_fine_tuning(stage, place, entries("tasks"))


def _check_fine_tuning(stage: Stage, place: str, known: Iterable[str]) -> None:
    """UserError for a task that nobody knows, and for a method whose teacher is missing or not wanted."""
    from toolchain.glue.methods import METHODS

    folder = Path(str(stage.options.get("data", "")))
    for task in str(stage.options.get("task")).split(","):
        if task not in known and not (folder / task).is_dir():
            raise UserError(f"{place} task: {unknown('task', task, known)}")
    name = str(stage.options.get("method", "finetune"))
    wants, given = METHODS[name].teacher, "teacher" in stage.options
    if wants == "needed" and not given:
        raise UserError(f"{place} method {name}: learns from a teacher; name a glue section with teacher")
    if wants == "none" and given:
        raise UserError(f"{place} method {name}: takes no teacher; leave it out")


def arguments(stage: Stage, subject: str, paths: dict[str, Path], out: Path) -> list[str]:
    """The stage's command line after the command's name; names of other stages become their paths."""
    words = [subject]
    for option, value in stage.options.items():
        if value is False:
            continue
        if isinstance(value, dict):
            words += [word for key, inner in value.items() for word in (f"--{option}", f"{key}={inner}")]
            continue
        named = option in (*TEXT_OPTIONS, "teacher") and value in paths
        words += [f"--{option}"] if value is True else [f"--{option}", str(paths[value] if named else value)]
    return [*words, "--out", str(out)]


def subject_path(study: Study, stage: Stage, paths: dict[str, Path]) -> str:
    """What the stage's command works on: a teacher, a text, or another stage's folder."""
    for given in (study.teachers, study.texts):
        if stage.of in given and stage.of not in study.stages:
            return shipped(given[stage.of])
    return str(paths[stage.of])


def product(study: Study, name: str, folder: Path) -> Path:
    """The checkpoint, artifact or text in a finished stage's folder: of a glue stage, one task's (first) seed."""
    stage = study.stages[name]
    if stage.kind != "glue":
        return folder
    task = folder / str(stage.options["task"])
    seeds = sorted(task.glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
    return seeds[0] if seeds else task


def keys(study: Study) -> dict[str, str]:
    """A hash for every stage: of this version, the command, its options, and the keys of what it reads."""
    found: dict[str, str] = {}
    contents: dict[str, str] = {}

    def content(value: str) -> str:
        if value not in contents:
            contents[value] = _content(value)
        return contents[value]

    for stage in study.stages.values():
        known = {**study.teachers, **study.texts}
        options = {
            option: found[value] if isinstance(value, str) and value in found
            else [value, content(value)] if option in (*TEXT_OPTIONS, "data") else value
            for option, value in stage.options.items()
        }  # fmt: skip
        of = found[stage.of] if stage.of in found else content(shipped(known[stage.of]))
        text = json.dumps([__version__, stage.kind, of, options], sort_keys=True, default=str)
        found[stage.name] = hashlib.sha256(text.encode()).hexdigest()
    return found


def _content(value: str) -> str:
    """What stands behind a path, as a hash over its files; a name of something that is not here, as it is."""
    if value == "stdlib":
        from toolchain.corpus import calibration_file, heldout_file

        return sha256(calibration_file("stdlib")) + sha256(heldout_file("stdlib"))
    path = Path(value)
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        return value
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listing = [[str(file.relative_to(path)), sha256(file)] for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def places(study: Study, store: Path) -> dict[str, Path]:
    """Where each stage's folder is, or will be: below its key, so that another study finds it whatever its name."""
    found: dict[str, Path] = {}
    by_key: dict[str, Path] = {}
    for name, key in keys(study).items():
        stage = study.stages[name]
        home = store / stage.kind / key[:16]
        ready = [path for path in sorted(home.glob("[!.]*")) if finished(stage, path)]
        found[name] = by_key.setdefault(key, ready[0] if ready else home / name)
    return found


def finished(stage: Stage, folder: Path) -> bool:
    """Whether the command went through: its last file stands there, and glue's has every seed of every task."""
    if stage.kind != "glue" or not (folder / MARKS["glue"]).is_file():
        return any(True for _ in folder.glob(MARKS[stage.kind]))
    from toolchain.glue.summary import read_summary

    tasks = read_summary(folder)["tasks"].values()
    whole = [task for task in tasks if len(task["runs"]) == len(task["seeds"])]
    return len(whole) == len(tasks) >= len(str(stage.options["task"]).split(","))


def describe(stage: Stage) -> str:
    """The stage in a line: command, subject, and the options that make it what it is."""
    shown = " ".join(
        f"--{option}" if value is True else f"--{option} {value}"
        for option, value in stage.options.items()
        if value is not False
    )
    return f"{stage.kind} {stage.of} {shown}".strip()
