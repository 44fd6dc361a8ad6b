"""`toolchain glue`: tasks and seeds one after the other, each in a folder of its own, none done twice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from devices.errors import UserError
from devices.files import read_record, refuse_existing, sha256
from toolchain.glue import scores, summary
from toolchain.glue.cached import cache_place
from toolchain.glue.finetune import SCHEDULE, finetune, request
from toolchain.glue.methods.teacher import find
from toolchain.glue.submit import refuse_unsubmittable, submit, tell_lacking
from toolchain.glue.tasks import Task, load_task
from toolchain.shards import AUTO

Say = Callable[[str], None]
DEFAULTS = {name: parameter.default for name, parameter in signature(finetune).parameters.items()}


@dataclass(frozen=True)
class Plan:
    """What one call is to do: `named` are the tasks as they were named, in order."""

    model: Path
    named: dict[str, Task]
    seeds: tuple[int, ...]
    out: Path
    data: Path | None
    recipe: str | None  # to export with
    force: bool
    known: dict[str, Any]  # what earlier calls measured, by task
    settings: dict[str, Any]  # of `finetune`, but for the seed

    def folder(self, task: Task, seed: int) -> Path:
        """Where the classifier goes: OUT/TASK, or OUT/TASK/seed-N where there are several."""
        whole = self.out / task.name
        return whole if len(self.seeds) == 1 else whole / f"seed-{seed}"

    def cache(self, task: Task, seed: int) -> str | None:
        """Where the teacher's answers are kept: a folder for the task, or for task and seed where they differ."""
        place, teacher = self.settings.get("cache_teacher"), self.settings.get("teacher")
        if place in (None, AUTO):
            return place
        guides = {find(Path(teacher), task, one) for one in self.seeds} if teacher is not None else set()
        apart = len(self.seeds) > 1 and (self.settings.get("rows") is not None or len(guides) > 1)
        return cache_place(place, task.name, seed if apart else None)

    def artifact(self, task: Task, seed: int) -> Path:
        """Where its exported file goes: beside it, named after the recipe."""
        from export.recipes import find_recipe

        folder = self.folder(task, seed)
        return folder.with_name(f"{folder.name}-{find_recipe(self.recipe or '').name}")


def glue(
    model: Path,
    tasks: list[str],
    out: Path,
    data: Path | None = None,
    *,
    seeds: Sequence[int] | None = None,
    recipe: str | None = None,
    submission: Path | None = None,
    force: bool = False,
    say: Say = lambda line: None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Fine-tune on each of `tasks`, with each of `seeds` (default: the `seed` of `settings`, or 0).

    A classifier goes into the folder `out`/TASK, or `out`/TASK/seed-N for several seeds; `out`/glue.json has
    the figures of all, and is written anew after each (toolchain/glue/summary.py). With a `recipe` each one is
    exported too, to a folder beside it, and the exported file is measured on the same dev sets; a gate that
    does not hold is written down there and does not stop the others. `submission` is a folder for GLUE's
    server, answered by each task's best seed on dev. Returns the classifiers' own glue.json in order.

    `settings` are those of `finetune`. All tasks are found and read before the first is trained. Each finished
    one stays if a later one fails; the same call again goes on behind it.
    """
    known = summary.read_summary(out)["tasks"]
    if seeds is None:
        seeds = (settings.get("seed", 0),)
    plan = Plan(
        Path(model),
        _named(tasks, data),
        _checked(seeds),
        out,
        data,
        recipe,
        force,
        known,
        {key: value for key, value in settings.items() if key != "seed"},
    )
    if submission is not None:
        refuse_unsubmittable(list(plan.named.values()), submission)
    deviations = _deviations(plan)
    for task in plan.named.values():  # a teacher that fits the first task may not fit the second
        _asked(plan.model, task, {**plan.settings, "seed": plan.seeds[0]})
    done = {} if force else _finished(plan)
    _refuse_in_the_way(plan, done)
    for line in deviations:
        say(line)
    found = {name: _runs(plan, name, done, say) for name in plan.named}
    if submission is not None:
        for name, task in plan.named.items():
            submit(out / summary.best(found[name], task.metric)["folder"], task, submission, force, say)
        tell_lacking(submission, say)
    return [run["record"] for runs in found.values() for run in runs]


def _named(tasks: list[str], data: Path | None) -> dict[str, Task]:
    """The tasks by the names given, none twice."""
    if not tasks:
        raise UserError("--task: names no task; name one or several (toolchain list tasks)")
    found: dict[str, Task] = {}
    for name in tasks:
        task = load_task(name, data)
        if task.name in [other.name for other in found.values()]:
            raise UserError(f"--task: {task.name} is named twice; name each task once")
        found[name] = task
    return found


def _checked(seeds: Sequence[int]) -> tuple[int, ...]:
    if not seeds:
        raise UserError("--seeds: names no seed; name one or several, such as 1,2,3")
    twice = next((seed for at, seed in enumerate(seeds) if seed in seeds[:at]), None)
    if twice is not None:
        raise UserError(f"--seeds: {twice} is named twice; name each seed once")
    return tuple(seeds)


def _deviations(plan: Plan) -> list[str]:
    """Read every set that will be needed; where its rows are not as many as GLUE's, a line that says so."""
    found = [
        (task.name, task.deviation(split, len(task.rows(split))))
        for task in plan.named.values()
        for split in ("train", *task.sets("dev"))
    ]
    return [f"{name}: {deviation}" for name, deviation in found if deviation]


def _finished(plan: Plan) -> dict[tuple[str, int], dict[str, Any]]:
    """The glue.json of what an earlier call did just so, by task and seed."""
    found = {}
    for task in plan.named.values():
        for seed in plan.seeds:
            record = finished(plan.model, task, plan.folder(task, seed), {**plan.settings, "seed": seed})
            if record is not None:
                found[task.name, seed] = record
    return found


def finished(model: Path, task: Task, out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The glue.json in `out` where it is what `finetune` with these settings would make, else None."""
    record = read_record(out / "glue.json")
    if record is None:
        return None
    asked = _asked(model, task, settings)
    return record if {key: record.get(key) for key in asked} == asked else None


def _asked(model: Path, task: Task, settings: dict[str, Any]) -> dict[str, Any]:
    """The request that `finetune` with these settings makes; UserError for what it would refuse."""
    given = DEFAULTS | settings
    schedule = {key: given[key] for key in SCHEDULE}
    further = {key: given[key] for key in ("teacher", "options")}
    asked = model, task, given["method"], schedule, given["max_tokens"], given["rows"]
    return request(*asked, **further, cached=given["cache_teacher"] is not None)


def _refuse_in_the_way(plan: Plan, done: dict[tuple[str, int], dict[str, Any]]) -> None:
    """UserError for anything that stands where a classifier or an artifact is to go and is not what goes there."""
    from export.checkpoint import identity

    for task in plan.named.values():
        whole = plan.out / task.name
        if len(plan.seeds) > 1 and (whole / "config.json").exists():
            raise UserError(
                f"{whole}: holds the classifier of a single seed; choose another --out for several"
            )
        for seed in plan.seeds:
            folder = plan.folder(task, seed)
            kept = (task.name, seed) in done
            if not kept:
                refuse_existing(folder, plan.force)
            if plan.recipe is None:
                continue
            artifact = plan.artifact(task, seed)
            if not (kept and scores.exported_before(artifact, identity(folder), plan.recipe)):
                refuse_existing(artifact, plan.force)


def _runs(
    plan: Plan, name: str, done: dict[tuple[str, int], dict[str, Any]], say: Say
) -> list[dict[str, Any]]:
    """A task's classifiers, seed by seed; the summary says after each how things stand."""
    task, runs = plan.named[name], []
    for seed in plan.seeds:
        tell = say if len(plan.seeds) == 1 else partial(_with_seed, say, seed)
        runs.append(_run(plan, name, seed, done.get((task.name, seed)), tell))
        entry = summary.entry(task, plan.seeds, plan.recipe, runs)
        summary.save(plan.out, entry, plan.settings.get("command"))
        if len(plan.seeds) > 1:
            figure, shown = entry["figures"][0], len(runs)
            text = summary.text(figure["pytorch"])
            say(f"{task.name}: {figure['metric']} {text} after {shown} of {len(plan.seeds)} seeds")
    return runs


def _with_seed(say: Say, seed: int, line: str) -> None:
    say(f"seed {seed}, {line}")


def _run(plan: Plan, name: str, seed: int, record: dict[str, Any] | None, say: Say) -> dict[str, Any]:
    """One classifier: fine-tuned unless `record` says it is there, measured, exported if asked."""
    from export.checkpoint import identity

    task = plan.named[name]
    folder = plan.folder(task, seed)
    if record is not None:
        say(f"{task.name}: finished before with these settings, {folder} is used again")
    else:
        settings = plan.settings | {"seed": seed, "cache_teacher": plan.cache(task, seed)}
        record = finetune(plan.model, task, folder, force=plan.force, say=say, **settings)
    run = {
        "seed": seed,
        "folder": str(folder.relative_to(plan.out)),
        "sha256": identity(folder),
        "teacher": record.get("teacher"),
        "data": {split: sha256(task.file(split)) for split in task.sets("dev")},
    }
    before = _measured_before(plan, task, run)
    dev = scores.known(record, task) or before.get("dev") or scores.measure(folder, task)
    run["dev"] = dev
    run["artifact"] = None if plan.recipe is None else _artifact(plan, name, run, before, say)
    return {**run, "record": record}


def _measured_before(plan: Plan, task: Task, run: dict[str, Any]) -> dict[str, Any]:
    """The same classifier on the same rows, if an earlier call measured that; else empty."""
    runs = (plan.known.get(task.name) or {"runs": []})["runs"]
    same = (old for old in runs if all(old.get(key) == run[key] for key in ("sha256", "data")))
    return next(same, {})


def _artifact(plan: Plan, name: str, run: dict[str, Any], before: dict[str, Any], say: Say) -> dict[str, Any]:
    """The exported file and its figures, or which gate it did not hold."""
    from devices.artifact import open_artifact

    assert plan.recipe is not None
    task, checkpoint = plan.named[name], plan.out / run["folder"]
    out = plan.artifact(task, run["seed"])
    about = {"recipe": plan.recipe, "folder": str(out.relative_to(plan.out))}
    made = None if plan.force else scores.exported_before(out, run["sha256"], plan.recipe)
    old = before.get("artifact") or {}
    if made and old.get("sha256") == made:
        return {**about, "sha256": made, "dev": old["dev"]}
    if made:
        say(f"{task.name}: measuring the exported file ...")
        return {**about, "sha256": made, "dev": scores.measure(out, task)}
    found = scores.exported(
        checkpoint,
        out,
        plan.recipe,
        task,
        run["dev"],
        force=plan.force,
        say=lambda line: say(f"{task.name}: {line} ..."),
    )
    if isinstance(found, str):
        say(f"{task.name}: not exported: {found}")
        return {**about, "failed": found}
    return {**about, "sha256": open_artifact(out).sha256, "dev": found}
