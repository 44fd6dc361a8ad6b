"""A benchmark: artifacts in turn over several rounds, a process each; their quality measured apart."""

import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench import instructions, result
from bench.process import ask
from bench.rounds import Ask, asking
from bench.settings import (
    Settings,
    check_asked,
    check_counts,
    check_styles,
    corpus_of,
    counts,
    identity,
    open_all,
    tell_other,
    tell_scaled,
)
from bench.workloads import Workload, workload_for
from devices import profiles
from devices.artifact import Artifact
from devices.files import refuse_unwritable, write_json
from devices.profiles import Profile
from devices.progress import Progress

ROUNDS = 5
BUSY = 0.1  # of all processors' time, used by others: a line says so


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
    check_counts(chosen, profile)
    if profile.emulated:
        chosen = instructions.settled(chosen)
    opened = open_all(artifacts)
    plans = [workload_for(chosen.workload, a.kind, a.model["positions"], chosen.minutes) for a in opened]
    tell_other(opened, plans, chosen, say)
    tell_scaled(opened, plans, say)
    check_asked(opened, chosen)
    check_styles(plans, profile)
    corpus = corpus_of(chosen)
    refuse_unwritable(out)
    texts = {str(chosen.corpus): corpus["sha256"]} if corpus else {}
    lasting = any(plan.minutes for plan in plans)
    asks = partial(ask, tell=say) if lasting else ask
    with asking(asks, profile, opened, texts, out, identity(chosen, plans), say) as asked:
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
        action = "instructions" if profile.emulated else "measure"
        _measure(jobs, _schedule(len(jobs), count, chosen.seed), action, chosen, asked, progress)
        sittings = {found.get("sitting") for job in jobs for found in job.rounds}
        run = {"id": uuid.uuid4().hex, "sittings": len(sittings)}
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


def _measure(
    jobs: list[Job], order: list[int], action: str, chosen: Settings, ask: Ask, progress: bool
) -> None:
    """The rounds, in that order, each in a process of its own that does `action`."""
    with Progress(len(order), "bench", "run", progress) as bar:
        for at in order:
            job = jobs[at]
            bar.name(job.artifact.name)
            request = {"action": action, **_request(job.artifact, job.plan, chosen, job.threads)}
            answer = ask(request, str(job.artifact.path))
            job.rounds.append({**answer, **job.count})
            bar.update()


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


def _schedule(artifacts: int, rounds: int, seed: int) -> list[int]:
    """Which artifact is measured when: each once per round, in an order shuffled anew for each round."""
    rng = random.Random(seed)
    return [at for _ in range(rounds) for at in rng.sample(range(artifacts), artifacts)]


def _threads(artifact: Artifact, chosen: Settings, ask: Ask) -> list[dict[str, Any]]:
    """Threads for the rounds of an artifact: those asked for, or what a process of its own finds best."""
    if named := counts(chosen):
        return [{"threads": threads, "threads_from": "asked"} for threads in named]
    answer = ask({"action": "threads", "artifact": str(artifact.path), "threads": None}, str(artifact.path))
    if chosen.threads == "all":
        return [{"threads": threads, "threads_from": "asked"} for threads in answer["candidates"]]
    return [{"threads": answer["threads"], "threads_from": answer["threads_from"]}]


def _request(artifact: Artifact, plan: Workload, chosen: Settings, threads: int) -> dict[str, Any]:
    rows = chosen.task.rows if chosen.task and artifact.kind == "classifier" else None
    return {
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
    request = {"artifact": str(artifact.path), "threads": max(counts(chosen), default=None)}
    if artifact.kind == "decoder" and corpus is not None:
        text = {"corpus": str(chosen.corpus), "window": chosen.window, "blocks": chosen.blocks}
        answer = ask({"action": "perplexity", **request, **text}, str(artifact.path))
        found["perplexity"] = {**answer, "corpus": corpus}
    elif artifact.kind == "classifier" and chosen.task is not None:
        task = chosen.task
        answer = ask({"action": "predict", **request, "rows": task.rows}, str(artifact.path))
        values = task.score(answer["logits"])
        headline = {"metric": task.metric, "value": values[task.metric]}
        found["task"] = {"name": task.name, **headline, "metrics": values, "rows": len(task.rows)}
    return found
