"""`toolchain clean`: a corpus less what rules drop, with a report of how much each one dropped.

On datatrove, whose steps stream documents and whose stages remember which tasks are done.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from devices.errors import UserError
from devices.files import read_json, refuse_existing, sha256, staged, staging_path, write_json
from devices.process import command, environment
from devices.progress import Progress
from toolchain import __version__
from toolchain.compress.unfinished import differences
from toolchain.corpus.clean.executors import SUBMITTED, Underway, job_prefix, options, refuse_running
from toolchain.corpus.clean.rules import DUPLICATES, NEAR_DUPLICATES, RULES, parse
from toolchain.corpus.documents import PART, Part, parts
from toolchain.corpus.load import REPORT, calibration_file, export_hub, text_files

WORK = "unfinished"  # in the staging folder: the request, and what the stages that are done have written
REQUEST = "request.json"
EXAMPLES = 3  # of what a rule dropped, in the report
LOOK = 0.5  # seconds between two looks at how far the tasks are


def clean(
    corpus: str,
    out: Path,
    *,
    rules: str = "paper",
    workers: int | None = None,
    executor: str = "local",
    executor_options: Path | None = None,
    force: bool = False,
    command: str = "",
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Write what `rules` leave of `corpus` to the folder `out`, and return what its clean.json holds.

    `corpus` is a file, a folder, hub:NAME or stdlib (its train part), read as training reads it; `rules` are
    names of rules.RULES or SETS between commas. `out` holds jsonl files of {"text": ...}, which --corpus takes,
    and clean.json: what was read, kept and dropped by each rule, in documents, lines and characters, with
    examples. `workers` tasks of about 16 MB run at a time: one by default, on a cluster as many as it takes. An
    interrupted call goes on when it is made again. `executor` is local, slurm or ray, with its options in a
    TOML file; on a cluster `out` and the corpus lie where all its machines see them under the same path.

    Raises:
        Underway: Slurm has the jobs; the same call, when they have ended, writes `out`.
        UserError: an unknown rule, a corpus that cannot be read, one that nothing is left of, `out` exists,
            an unfinished run for `out` at another request (unless `force`).
    """
    chosen = parse(rules)
    for needed in ("datatrove", "orjson"):  # known before anything is read: another process imports them
        if find_spec(needed) is None:
            raise ModuleNotFoundError(name=needed)
    where = {"executor": executor, "options": options(executor, executor_options), "workers": workers}
    if executor == "local":
        where["workers"] = workers or 1
    _refuse_overlap(corpus, out)
    refuse_existing(out, force)
    refuse_running(staging_path(out.absolute()) / WORK, str(out))
    files = [file.absolute() if executor != "local" else file for file in _files(corpus, out)]
    request = {
        "rules": list(chosen),
        "files": [[str(file.absolute()), sha256(file)] for file in files],
        "part": PART,
    }
    with staged(out, force=force, resume=True) as staging:
        work = staging / WORK
        done = _prepare(staging, request, out, force, say)
        resumed = _tasks_done(work) > 0
        started = time.monotonic()
        if not done:
            cut = parts(files)
            limit = f", {where['workers']} at a time" if where["workers"] else ""
            say(f"{out}: {', '.join(chosen)} on {len(cut)} part{'s' * (len(cut) > 1)} of {corpus}{limit}")
            folder = work / _run(work, cut, chosen, where, str(out))
            seconds = None if resumed else round(time.monotonic() - started, 1)
            report = _report(work, request, corpus, files, command, seconds)
            if not report["kept"]["documents"]:
                shutil.rmtree(staging)
                raise UserError(f"corpus '{corpus}': nothing is left of it; choose fewer --rules")
            for file in sorted(folder.glob("*.jsonl")):
                file.rename(staging / f"part-{file.name}")
            write_json(staging / REPORT, report)  # from here on it is whole, and only has to be published
        shutil.rmtree(work, ignore_errors=True)
        return read_json(staging / REPORT, "what was cleaned")


def _refuse_overlap(corpus: str, out: Path) -> None:
    """UserError where `out` lies in the corpus or holds it: the next run would read what this one wrote."""
    if corpus == "stdlib" or corpus.startswith("hub:"):
        return
    one, other = out.resolve(), Path(corpus).resolve()
    if one == other or other in one.parents or one in other.parents:
        raise UserError(f"{out}: overlaps the corpus {corpus}; choose an --out beside it")


def _files(corpus: str, out: Path) -> list[Path]:
    """The files to read; UserError where there are none, or no text in them."""
    if corpus == "stdlib":
        return [calibration_file("stdlib")]
    files = [export_hub(corpus)] if corpus.startswith("hub:") else text_files(Path(corpus))
    for file in files:
        with file.open("rb") as stream:
            start = stream.read(64).lstrip()
        if file.suffix == ".json" and start.startswith(b"["):
            raise UserError(
                f"corpus '{file}': is one JSON array; write it as .jsonl, an object a line, to be read in parts"
            )
    if not any(file.stat().st_size for file in files):
        raise UserError(f"corpus '{corpus}': is empty; name a file with text in it")
    return [file for file in files if file.stat().st_size]


def _prepare(
    staging: Path, request: dict[str, Any], out: Path, force: bool, say: Callable[[str], object]
) -> bool:
    """Make the staging folder ready to go on, or empty; whether all is done but for publishing."""
    report, noted = staging / REPORT, staging / WORK / REQUEST
    if report.is_file() and read_json(report, "what was cleaned")["request"] == request:
        return True
    if noted.is_file():
        earlier = read_json(noted, "an earlier request")
        if earlier == request:
            say("going on with the unfinished run found here")
            return False
        if not force and _tasks_done(staging / WORK):
            other = ", ".join(dict.fromkeys(differences(earlier, request)))
            raise UserError(
                f"{out}: an unfinished run is kept for it, of another request ({other}); give that one again "
                "to go on with it, choose another --out, or drop it with --force"
            )
    for path in staging.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    noted.parent.mkdir()
    write_json(noted, request)
    return False


def _run(work: Path, cut: list[Part], rules: tuple[str, ...], where: dict[str, Any], out: str) -> str:
    """Run the stages in a process of their own, showing how far they are; the name of the last one's folder.

    Underway where they are Slurm's from here on.
    """
    plan = {"work": str(work), "parts": cut, "rules": rules, "jobs": job_prefix(work), **where}
    if where["executor"] == "slurm":
        (work / SUBMITTED).write_text(plan["jobs"], encoding="utf-8")
    (work / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    with (work / "plan.json").open() as asked, (work / "log").open("ab") as log:
        process = subprocess.Popen(
            command("toolchain.corpus.clean.run", str(os.getpid())),
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**environment(), "TOKENIZERS_PARALLELISM": "false"},
        )
        try:
            _watch(process, work, len(cut), rules)
            assert process.stdout is not None
            said = process.stdout.read().decode().strip().splitlines()
        except BaseException:
            process.kill()
            process.wait()
            raise
    answer: dict[str, Any] = (
        json.loads(said[-1]) if said else {"error": _last_words(work, process.returncode)}
    )
    if answer.get("errno"):
        raise OSError(answer["errno"], os.strerror(answer["errno"]), answer["file"] or None)
    if answer.get("text"):
        shutil.rmtree(work.parent)  # the text has to be mended, and then nothing of this holds
    if answer.get("log"):
        answer["error"] += f": {_log(work)}; see {work / 'log'}"
    if "error" in answer:
        raise UserError(answer["error"])
    if "submitted" in answer:
        raise Underway(
            f"{out}: submitted to Slurm as {plan['jobs']}*; give the same command again when the jobs have ended: "
            "it writes the corpus, or submits what failed anew"
        )
    return answer["folder"]


def _watch(process: subprocess.Popen, work: Path, tasks: int, rules: tuple[str, ...]) -> None:
    """A bar of tasks done, until the process ends."""
    total = tasks * (1 + (DUPLICATES in rules) + (NEAR_DUPLICATES in rules))
    seen = 0
    with Progress(total, "clean", "part") as bar:
        while process.poll() is None:
            time.sleep(LOOK)
            done = _tasks_done(work)
            bar.update(done - seen)
            seen = done


def _tasks_done(work: Path) -> int:
    """How many tasks are done of the stages that read all documents."""
    stages = ("filtered", f"without-{DUPLICATES}", f"without-{NEAR_DUPLICATES}")
    return sum(len(list((work / "stages" / stage / "completions").glob("*"))) for stage in stages)


def _last_words(work: Path, code: int) -> str:
    last = _log(work)
    if code < 0:
        return f"clean: the process that cleans was killed by signal {-code}; out of memory? lower --workers"
    return f"clean: failed ({last}); see {work / 'log'}, and give the same command again to go on"


def _log(work: Path) -> str:
    """The last line of what the process that cleans said."""
    lines = (work / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"


def _report(
    work: Path, request: dict[str, Any], corpus: str, files: list[Path], command: str, seconds: float | None
) -> dict[str, Any]:
    """clean.json: what was read, what is left, and what each rule dropped."""
    found = _counts(work / "counts")
    none = {"documents": 0, "lines": 0, "characters": 0}
    return {
        "schema": 1,
        "toolchain": __version__,
        "command": command,
        "corpus": corpus,
        "bytes": sum(file.stat().st_size for file in files),
        "read": {key: found.get("read", none)[key] for key in none},
        "kept": {key: found.get("kept", none)[key] for key in none},
        "dropped": {
            rule: found.get(rule, none | {"reasons": {}, "examples": []}) | {"what": RULES[rule]}
            for rule in request["rules"]
        },
        "seconds": seconds,  # null where it went on with an earlier try
        "request": request,
        "versions": {"datatrove": version("datatrove")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _counts(folder: Path) -> dict[str, dict[str, Any]]:
    """The sums of what all tasks counted, by rule, with the first tasks' examples."""
    total: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*/*.json")):
        for rule, found in read_json(file, "what a task counted").items():
            mine = total.setdefault(
                rule, {"documents": 0, "lines": 0, "characters": 0, "reasons": {}, "examples": []}
            )
            for key in ("documents", "lines", "characters"):
                mine[key] += found[key]
            for reason, count in found["reasons"].items():
                mine["reasons"][reason] = mine["reasons"].get(reason, 0) + count
            mine["examples"] = [*mine["examples"], *found["examples"]][:EXAMPLES]
    return total
