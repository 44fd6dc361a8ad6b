"""A benchmark: artifacts in turn over several rounds, a process each; their quality measured apart."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import instructions, result
from bench.process import ask
from bench.rounds import Ask, asking
from bench.workloads import Workload, workload_for
from devices import profiles
from devices.artifact import Artifact, open_artifact
from devices.errors import UserError
from devices.files import refuse_unwritable, sha256, write_json
from devices.progress import Progress

ROUNDS = 5


@dataclass(frozen=True)
class TaskRows:
    """A labelled task's rows (text, second text or None) and how logits [rows, labels] become its metric."""

    name: str
    metric: str
    rows: Sequence[tuple[str, str | None]]
    score: Callable[[list[list[float]]], float]


@dataclass(frozen=True)
class Settings:
    """What to measure, the same for all artifacts. `corpus` is a UTF-8 text file, measured in windows of
    `window` tokens (None: 512, or the model's positions), the first `blocks` of them (None: all)."""

    workload: str | None = None
    device: str = "local"
    threads: int | None = None
    rounds: int = ROUNDS
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
    if chosen.rounds < 1:
        raise UserError(f"rounds is {chosen.rounds}; it must be 1 or more")
    if profile.emulated:
        chosen = instructions.settled(chosen)
    if chosen.threads is not None and profile.kind == "local":
        from devices.session import thread_count  # brings ONNX Runtime, which else only the workers need

        thread_count(chosen.threads)
    opened = _open(artifacts)
    plans = [workload_for(chosen.workload, a.kind, a.model["positions"]) for a in opened]
    _tell_other(opened, plans, chosen, say)
    _tell_scaled(opened, plans, say)
    _check_asked(opened, chosen)
    corpus = _corpus(chosen)
    refuse_unwritable(out)
    rounds: list[list[dict[str, Any]]] = [[] for _ in opened]
    order = _schedule(len(opened), chosen.rounds, chosen.seed)
    judged = sum(_has_quality(artifact, chosen) for artifact in opened)
    texts = {str(chosen.corpus): corpus["sha256"]} if corpus else {}
    with (
        asking(ask, profile, opened, texts, out, _settings(chosen, plans), say) as asked,
        Progress(len(order) + judged, "bench", "run", progress) as bar,
    ):
        # Quality first: a text that does not fit is known before the rounds, and every file is in the page
        # cache when the first of them loads it.
        qualities = []
        for artifact in opened:
            bar.name(f"{artifact.name}: quality")
            qualities.append(_quality(artifact, chosen, corpus, asked))
            bar.update(_has_quality(artifact, chosen))
        counts = [_threads(artifact, chosen, asked) for artifact in opened]
        for at in order:
            bar.name(opened[at].name)
            request = _request(opened[at], plans[at], chosen, counts[at]["threads"])
            request["action"] = "instructions" if profile.emulated else "measure"
            rounds[at].append({**asked(request, str(opened[at].path)), **counts[at]})
            bar.update()
        results = [
            result.build(artifact, path, plan, profile, chosen.seed, found, quality)
            for artifact, path, plan, found, quality in zip(
                opened, artifacts, plans, rounds, qualities, strict=True
            )
        ]
        out.mkdir(parents=True, exist_ok=True)
        for one in results:
            write_json(result.place(out, one), one)
    return results


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
    same = {"threads": chosen.threads, "seed": chosen.seed, "window": chosen.window, "blocks": chosen.blocks}
    return {**same, "workloads": [plan.as_dict() for plan in plans]}


def _threads(artifact: Artifact, chosen: Settings, ask: Ask) -> dict[str, Any]:
    """Threads for all rounds of an artifact: those asked for, or what a process of its own finds best."""
    if chosen.threads is not None:
        return {"threads": chosen.threads, "threads_from": "asked"}
    return ask({"action": "threads", "artifact": str(artifact.path), "threads": None}, str(artifact.path))


def _request(artifact: Artifact, plan: Workload, chosen: Settings, threads: int) -> dict[str, Any]:
    rows = chosen.task.rows if chosen.task and artifact.kind == "classifier" else None
    return {
        "artifact": str(artifact.path),
        "workload": plan.as_dict(),
        "threads": threads,
        "seed": chosen.seed,
        "rows": rows[: plan.rows] if rows else None,
    }


def _has_quality(artifact: Artifact, chosen: Settings) -> bool:
    """Whether something is asked of this artifact besides its speed."""
    return (chosen.corpus if artifact.kind == "decoder" else chosen.task) is not None


def _quality(artifact: Artifact, chosen: Settings, corpus: dict[str, str] | None, ask: Ask) -> dict[str, Any]:
    """Perplexity of a decoder, a task's metric of a classifier, each from a process that is not timed."""
    found: dict[str, Any] = {"perplexity": None, "task": None}
    request = {"artifact": str(artifact.path), "threads": chosen.threads}
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
