"""A benchmark: artifacts in turn over several rounds, a process each; their quality measured apart."""

import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench import result
from bench.process import ask
from bench.rounds import Ask, asking
from bench.workloads import Workload, workload_for
from devices import cores, profiles
from devices.artifact import Artifact, open_artifact
from devices.errors import UserError
from devices.files import refuse_unwritable, sha256, write_json
from devices.profiles import Profile
from devices.progress import Progress

ROUNDS = 5
MINUTES = 24 * 60
BUSY = 0.1  # of all processors' time, used by others: a line says so


@dataclass(frozen=True)
class TaskRows:
    """A labelled task's rows (text, second text or None) and how logits [rows, labels] become its metric."""

    name: str
    metric: str
    rows: Sequence[tuple[str, str | None]]
    score: Callable[[list[list[float]]], float]


@dataclass(frozen=True)
class Settings:
    """What to measure, the same for all artifacts.

    `threads` is a number, several (a result for each), "all" (1, 2, 4 ... and the cores), or None: the best for
    each artifact. `affinity` names processors as devices.cores.choose takes them. `minutes` is for a sustained
    workload; `rounds` None are ROUNDS, and one for that. `corpus` is a UTF-8 text file, measured in windows of
    `window` tokens (None: 512, or the model's positions), the first `blocks` of them (None: all)."""

    workload: str | None = None
    device: str = "local"
    threads: int | Sequence[int] | str | None = None
    affinity: str | None = None
    minutes: float | None = None
    rounds: int | None = None
    corpus: Path | None = None
    corpus_name: str | None = None
    window: int | None = None
    blocks: int | None = None
    task: TaskRows | None = None
    seed: int = 0


def bench(
    artifacts: Sequence[Path],
    out: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
    progress: bool = True,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Measure `artifacts` and write one result JSON each into the folder `out`; the results, in that order.

    `settings` are those of Settings. Rounds are interleaved and shuffled by the seed, so that a machine
    that slows down slows all of them. Nothing is written before all is measured. UserError for anything
    that does not verify, does not fit or fails, before the first measurement where it can be known then.
    """
    chosen = Settings(**settings)
    profile = profiles.load(chosen.device)
    _check_counts(chosen, profile)
    opened = _open(artifacts)
    plans = [workload_for(chosen.workload, a.kind, a.model["positions"], chosen.minutes) for a in opened]
    _tell_other(opened, plans, chosen, say)
    _tell_scaled(opened, plans, say)
    _check_asked(opened, chosen)
    corpus = _corpus(chosen)
    refuse_unwritable(out)
    texts = {str(chosen.corpus): corpus["sha256"]} if corpus else {}
    lasting = any(plan.minutes for plan in plans)
    asks = partial(ask, tell=say) if lasting else ask
    with asking(asks, profile, opened, texts, out, _settings(chosen, plans), say) as asked:
        # Quality first: a text that does not fit is known before the rounds, and every file is in the page
        # cache when the first of them loads it.
        qualities = _qualities(opened, chosen, corpus, asked, progress)
        jobs = [
            Job(artifact, path, plan, quality, count)
            for artifact, path, plan, quality in zip(opened, artifacts, plans, qualities, strict=True)
            for count in _threads(artifact, chosen, asked)
        ]
        timed = () if profile.emulated else sorted({job.threads for job in jobs})
        roofs = {threads: _bandwidth(threads, chosen, asked) for threads in timed}
        count = chosen.rounds or (1 if lasting else ROUNDS)
        _measure(jobs, _schedule(len(jobs), count, chosen.seed), chosen, asked, progress)
        run = {"id": uuid.uuid4().hex}
        results = [job.result(profile, chosen.seed, run, roofs.get(job.threads)) for job in jobs]
        out.mkdir(parents=True, exist_ok=True)
        for one in results:
            write_json(result.place(out, one), one)
    _tell_busy(results, say)
    return results


@dataclass
class Job:
    """An artifact at a number of threads, and the rounds measured of it so far."""

    artifact: Artifact
    path: Path
    plan: Workload
    quality: dict[str, Any]
    count: dict[str, Any]  # threads, threads_from
    rounds: list[dict[str, Any]] = field(default_factory=list)

    @property
    def threads(self) -> int:
        """How many."""
        return self.count["threads"]

    def result(
        self, profile: Profile, seed: int, run: dict[str, Any], roof: dict[str, Any] | None
    ) -> dict[str, Any]:
        """What was measured, as JSON."""
        return result.build(
            self.artifact, self.path, self.plan, profile, seed, self.rounds, self.quality, run, roof
        )


def _measure(jobs: list[Job], order: list[int], chosen: Settings, ask: Ask, progress: bool) -> None:
    """The rounds, in that order, each in a process of its own."""
    with Progress(len(order), "bench", "run", progress) as bar:
        for at in order:
            job = jobs[at]
            bar.name(job.artifact.name)
            answer = ask(_request(job.artifact, job.plan, chosen, job.threads), str(job.artifact.path))
            job.rounds.append({**answer, **job.count})
            bar.update()


def _check_counts(chosen: Settings, profile: Profile) -> None:
    """UserError for rounds, threads and processors that cannot be, where that is known without the device."""
    if chosen.rounds is not None and chosen.rounds < 1:
        raise UserError(f"rounds is {chosen.rounds}; it must be 1 or more")
    if chosen.minutes is not None and not 0 < chosen.minutes <= MINUTES:
        raise UserError(f"minutes is {chosen.minutes:g}; it must be more than 0 and at most {MINUTES}")
    if chosen.affinity not in (None, "none"):
        cores.parse(chosen.affinity)
    if profile.kind != "local" or chosen.threads in (None, "all"):
        return
    from devices.session import thread_count  # brings ONNX Runtime, which else only the workers need

    for threads in _counts(chosen):
        thread_count(threads)
    if chosen.affinity is not None:
        cores.choose(chosen.affinity, 1)


def _counts(chosen: Settings) -> list[int]:
    """The numbers of threads that were named, once each; none for None and "all"."""
    named = chosen.threads
    if named is None or isinstance(named, str):
        return []
    return [named] if isinstance(named, int) else list(dict.fromkeys(named))


def _bandwidth(threads: int, chosen: Settings, ask: Ask) -> dict[str, Any] | None:
    """How fast the device reads memory with so many threads, measured now."""
    return ask({"action": "bandwidth", "threads": threads, "affinity": chosen.affinity}, "memory bandwidth")


def _tell_busy(results: list[dict[str, Any]], say: Callable[[str], None]) -> None:
    """One line where something else used the machine during the rounds."""
    machines = [one["machine"] for one in results if one.get("machine")]
    others = [m["others"] for m in machines if m["others"] is not None]
    worst = max((m["others_worst"] for m in machines if m["others_worst"] is not None), default=0.0)
    if others and max(others) > BUSY:
        say(
            f"the machine was busy: others used {max(others):.0%} of its processors in the median round, "
            f"{worst:.0%} in the worst; times are longer than on a quiet one, and ratios within this run less certain"
        )


def _open(artifacts: Sequence[Path]) -> list[Artifact]:
    """The artifacts, each verified once, none twice."""
    if not artifacts:
        raise UserError("no artifact to measure; name at least one")
    opened = [open_artifact(Path(path)) for path in artifacts]
    for at, artifact in enumerate(opened):
        if artifact.path.resolve() in {other.path.resolve() for other in opened[:at]}:
            raise UserError(f"{artifact.path}: named twice; name each artifact once")
    return opened


def _check_asked(opened: list[Artifact], chosen: Settings) -> None:
    """UserError where no artifact can use the corpus or task given, or a classifier is for another one."""
    kinds = {artifact.kind for artifact in opened}
    if chosen.corpus is not None and "decoder" not in kinds:
        raise UserError("--corpus is for decoders, and no artifact given is one; leave it out")
    if chosen.task is None:
        return
    if "classifier" not in kinds:
        raise UserError("--task is for classifiers, and no artifact given is one; leave it out")
    for artifact in opened:
        made_for = (artifact.manifest.get("task") or {}).get("name")
        if artifact.kind == "classifier" and made_for not in (None, chosen.task.name):
            raise UserError(f"{artifact.path}: was made for task {made_for}; name that with --task")


def _tell_other(
    opened: list[Artifact], plans: list[Workload], chosen: Settings, say: Callable[[str], None]
) -> None:
    """Say which classifiers run another workload than was named, one for decoders; UserError where all would."""
    others = [
        (artifact.name, plan.name)
        for artifact, plan in zip(opened, plans, strict=True)
        if chosen.workload is not None and plan.name != chosen.workload
    ]
    if len(others) == len(opened):
        raise UserError(
            f"--workload {chosen.workload}: is for decoders, and no artifact given is one; "
            f"try {others[0][1]}, or leave it out"
        )
    for name, instead in others:
        say(f"{name} is a classifier: {instead} in place of {chosen.workload}")


def _tell_scaled(opened: list[Artifact], plans: list[Workload], say: Callable[[str], None]) -> None:
    for artifact, plan in zip(opened, plans, strict=True):
        if plan.scaled_from:
            asked, positions = plan.scaled_from, artifact.model["positions"]
            say(
                f"{artifact.name} has {positions} positions: {plan.name} is scaled from "
                f"{asked['prompt']}+{asked['generate']} to {plan.prompt}+{plan.generate} tokens"
            )


def _corpus(chosen: Settings) -> dict[str, str] | None:
    """Name and hash of the text, read before anything is measured."""
    if chosen.corpus is None:
        return None
    if not chosen.corpus.is_file():
        raise UserError(f"{chosen.corpus}: no such file; --corpus names a UTF-8 text file")
    return {"name": chosen.corpus_name or chosen.corpus.name, "sha256": sha256(chosen.corpus)}


def _schedule(artifacts: int, rounds: int, seed: int) -> list[int]:
    """Which artifact is measured when: each once per round, in an order shuffled anew for each round."""
    rng = random.Random(seed)
    return [at for _ in range(rounds) for at in rng.sample(range(artifacts), artifacts)]


def _settings(chosen: Settings, plans: list[Workload]) -> dict[str, Any]:
    """What, besides bytes and device, makes a command another one: its answers are not for this one."""
    names = ("threads", "affinity", "seed", "window", "blocks")
    same = {name: getattr(chosen, name) for name in names}
    return {**same, "workloads": [plan.as_dict() for plan in plans]}


def _threads(artifact: Artifact, chosen: Settings, ask: Ask) -> list[dict[str, Any]]:
    """Threads for the rounds of an artifact: those asked for, or what a process of its own finds best."""
    if named := _counts(chosen):
        return [{"threads": threads, "threads_from": "asked"} for threads in named]
    answer = ask({"action": "threads", "artifact": str(artifact.path), "threads": None}, str(artifact.path))
    if chosen.threads == "all":
        return [{"threads": threads, "threads_from": "asked"} for threads in answer["candidates"]]
    return [{"threads": answer["threads"], "threads_from": answer["threads_from"]}]


def _request(artifact: Artifact, plan: Workload, chosen: Settings, threads: int) -> dict[str, Any]:
    rows = chosen.task.rows if chosen.task and artifact.kind == "classifier" else None
    return {
        "action": "measure",
        "artifact": str(artifact.path),
        "workload": plan.as_dict(),
        "threads": threads,
        "affinity": chosen.affinity,
        "seed": chosen.seed,
        "rows": rows[: plan.rows] if rows else None,
    }


def _has_quality(artifact: Artifact, chosen: Settings) -> bool:
    """Whether something is asked of this artifact besides its speed."""
    return (chosen.corpus if artifact.kind == "decoder" else chosen.task) is not None


def _qualities(
    opened: list[Artifact], chosen: Settings, corpus: dict[str, str] | None, ask: Ask, progress: bool
) -> list[dict[str, Any]]:
    """What is asked of each artifact besides its speed."""
    judged = sum(_has_quality(artifact, chosen) for artifact in opened)
    found = []
    with Progress(judged, "quality", "artifact", progress and judged > 0) as bar:
        for artifact in opened:
            bar.name(f"{artifact.name}: quality")
            found.append(_quality(artifact, chosen, corpus, ask))
            bar.update(_has_quality(artifact, chosen))
    return found


def _quality(artifact: Artifact, chosen: Settings, corpus: dict[str, str] | None, ask: Ask) -> dict[str, Any]:
    """Perplexity of a decoder, a task's metric of a classifier, each from a process that is not timed."""
    found: dict[str, Any] = {"perplexity": None, "task": None}
    request = {"artifact": str(artifact.path), "threads": max(_counts(chosen), default=None)}
    if artifact.kind == "decoder" and corpus is not None:
        text = {"corpus": str(chosen.corpus), "window": chosen.window, "blocks": chosen.blocks}
        answer = ask({"action": "perplexity", **request, **text}, str(artifact.path))
        found["perplexity"] = {**answer, "corpus": corpus}
    elif artifact.kind == "classifier" and chosen.task is not None:
        task = chosen.task
        answer = ask({"action": "predict", **request, "rows": task.rows}, str(artifact.path))
        value = task.score(answer["logits"])
        found["task"] = {"name": task.name, "metric": task.metric, "value": value, "rows": len(task.rows)}
    return found
