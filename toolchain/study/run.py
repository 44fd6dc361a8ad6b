"""`toolchain run`: check, estimate, walk, and write down what was found."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from devices.errors import CheckFailed, UserError
from devices.files import read_json, refuse_unwritable, write_json
from toolchain.compress.teacher import HUB_ID
from toolchain.demo import shipped
from toolchain.study.engine import FAILED, SKIPPED, Walk, begin, walk_stages
from toolchain.study.estimate import Cost, costs, rate
from toolchain.study.show import clock, shown
from toolchain.study.spec import Study, read_study
from toolchain.study.stages import check_options, describe, finished, places
from toolchain.study.tables import check_tables, figures, to_csv, to_markdown

Say = Callable[[str], object]


def checked(file: Path, data: Path | None, texts: dict[str, str]) -> tuple[Study, dict[str, Cost]]:
    """The study in `file`, every stage's options parsed, its tables' cells looked at, and what each stage will take."""
    study = read_study(file, data, texts)
    check_options(study)
    check_tables(study)
    return study, costs(study)


def run(
    file: Path, out: Path, jobs: int, say: Say, data: Path | None = None, texts: dict[str, str] | None = None
) -> Path:
    """Walk the study in `file` and return the path of its tables; `data` and `texts` as for `read_study`.

    Stages lie in `out`/stages below their keys; tables.md, figures.csv, study.json and each stage's log lie
    in `out`/NAME.

    Raises:
        UserError: the study asks what cannot be done, names files that are not here, or the disk has no room.
        CheckFailed: stages failed; the tables hold what the others found.
    """
    study, cost = checked(file, data, texts or {})
    refuse_unwritable(out)
    _refuse_absent(study)
    stages = places(study, out / "stages")
    walk = begin(study, stages)
    _refuse_full(study, out, cost, stages)
    home = out / study.name
    home.mkdir(parents=True, exist_ok=True)
    cached = sum(state == "cached" for state in walk.states.values())
    say(f"{study.title}: {len(study.stages)} stages, {cached} of them made before")
    speed = rate()
    expected = {name: cost[name].seconds(speed, jobs) for name in study.stages}
    threads = max(1, (os.cpu_count() or 1) // jobs)
    try:
        with shown(walk, expected, jobs) as changed:
            walk_stages(walk, home / "logs", jobs, threads, changed)
    finally:
        _write(study, walk, out, home)
    lost = {name: state for name, state in walk.states.items() if state in (FAILED, SKIPPED)}
    if lost:
        first = next(name for name, state in lost.items() if state == FAILED)
        raise CheckFailed(
            f"{study.file}: {len(lost)} of {len(walk.states)} stages are not there; {first} failed with "
            f"'{walk.lines.get(first, 'no word')}' (all of it: {home / 'logs' / first}.log); "
            f"the others are in {home / 'tables.md'}"
        )
    return home / "tables.md"


def _write(study: Study, walk: Walk, out: Path, home: Path) -> None:
    """What was found so far: the figures, the tables, which stage lies where and how many seconds it took.

    A stage's seconds are those of the run of this study that finished it; null where another study did.
    """
    found = figures(study, walk.places)
    file = home / "study.json"
    before = read_json(file, "a study's stages").get("stages", {}) if file.is_file() else {}
    seconds = {name: before.get(name, {}).get("seconds") for name in study.stages}
    seconds |= {name: round(took, 1) for name, took in walk.seconds.items()}
    (home / "figures.csv").write_text(to_csv(found, out), encoding="utf-8")
    (home / "tables.md").write_text(to_markdown(study, found), encoding="utf-8")
    listing = {
        name: {
            "state": walk.states[name],
            "seconds": seconds[name],
            "folder": str(walk.places[name].relative_to(out)),
            "does": describe(stage),
        }
        for name, stage in study.stages.items()
    }
    write_json(file, {"schema": 1, "title": study.title, "stages": listing})


def _refuse_full(study: Study, out: Path, cost: dict[str, Cost], stages: dict[str, Path]) -> None:
    """UserError where the disk has less than what is still to be written."""
    need = sum(cost[n].bytes for n, s in study.stages.items() if not finished(s, stages[n]))
    there = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if need > free:
        raise UserError(
            f"{out}: the study writes {need / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free; "
            "free some or choose an --out on another one"
        )


def dry(
    file: Path, out: Path, jobs: int, say: Say, data: Path | None = None, texts: dict[str, str] | None = None
) -> None:
    """Check the study and say its stages, which of them are there, and hours and disk of the rest.

    UserError at the end for files that are not here, or a disk without room: a run would end so at once.
    """
    study, cost = checked(file, data, texts or {})
    stages = places(study, out / "stages")
    speed = rate()
    hours, size = 0.0, 0
    for name, stage in study.stages.items():
        there = finished(stage, stages[name])
        found = cost[name]
        seconds = 0.0 if there else found.seconds(speed, jobs)
        hours, size = hours + seconds / 3600, size + (0 if there else found.bytes)
        counted = f", {found.tokens:,} tokens" if found.tokens else ""
        counted += f" in {found.steps:,} steps" if found.steps else ""
        say(f"{name}: {'cached' if there else 'about ' + clock(seconds)}{counted}\n    {describe(stage)}")
    for name, path in _fetched(study).items():
        lacks = (
            "" if name in (*study.shapes, *study.sizes) else "; its shape is not known, so it is not counted"
        )
        say(f"{name}: {path} is not on this machine and would come from the hub{lacks}")
    say(
        f"{len(study.stages)} stages, about {hours / jobs:,.1f} hours on this machine with --jobs {jobs} "
        f"({speed / 1e9:.0f} GFLOP/s in a large product), {size / 1e9:.2f} GB of disk"
    )
    _refuse_absent(study)
    _refuse_full(study, out, cost, stages)


def _fetched(study: Study) -> dict[str, str]:
    """Teachers and texts that are not on this machine and may be on the hub, by name."""
    teachers = {
        n: p for n, p in study.teachers.items() if not Path(shipped(p)).exists() and HUB_ID.fullmatch(p)
    }
    return teachers | {n: p for n, p in study.texts.items() if p.startswith("hub:")}


def _refuse_absent(study: Study) -> None:
    """UserError naming teachers, texts and tasks' folders that are neither here nor the hub's."""
    named = {**study.teachers, **study.texts}
    paths = {n: shipped(p) for n, p in named.items() if n not in _fetched(study) and p != "stdlib"}
    tasks = [stage for stage in study.stages.values() if "data" in stage.options]
    paths |= {f"data of {stage.section}": stage.options["data"] for stage in tasks}
    absent = [f"{name} ({path})" for name, path in paths.items() if not Path(path).exists()]
    if absent:
        raise UserError(
            f"{study.file}: not on this machine: {', '.join(absent)}; mend the study, or name others with --data "
            "DIR and --text NAME=PATH"
        )
