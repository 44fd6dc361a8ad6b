"""What a benchmark is asked, and what of it cannot be, told before anything is measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.workloads import Workload
from devices import cores
from devices.artifact import Artifact, open_artifact
from devices.errors import UserError
from devices.files import sha256
from devices.profiles import Profile

MINUTES = 24 * 60


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


def counts(chosen: Settings) -> list[int]:
    """The numbers of threads that were named, once each; none for None and "all"."""
    named = chosen.threads
    if named is None or isinstance(named, str):
        return []
    return [named] if isinstance(named, int) else list(dict.fromkeys(named))


def check_counts(chosen: Settings, profile: Profile) -> None:
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

    for threads in counts(chosen):
        thread_count(threads)
    if chosen.affinity is not None:
        cores.choose(chosen.affinity, 1)


def open_all(artifacts: Sequence[Path]) -> list[Artifact]:
    """The artifacts, each verified once, none twice."""
    if not artifacts:
        raise UserError("no artifact to measure; name at least one")
    opened = [open_artifact(Path(path)) for path in artifacts]
    for at, artifact in enumerate(opened):
        if artifact.path.resolve() in {other.path.resolve() for other in opened[:at]}:
            raise UserError(f"{artifact.path}: named twice; name each artifact once")
    return opened


def check_asked(opened: list[Artifact], chosen: Settings) -> None:
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


def check_styles(plans: list[Workload], profile: Profile) -> None:
    """UserError where a workload is about time itself, and the device has none."""
    for plan in plans:
        if profile.emulated and plan.style in ("cold", "sustained"):
            raise UserError(
                f"workload {plan.name} measures time, and {profile.name} is emulated; choose another, such as short"
            )


def tell_other(
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


def tell_scaled(opened: list[Artifact], plans: list[Workload], say: Callable[[str], None]) -> None:
    """Say which workloads had to shrink to a model's positions."""
    for artifact, plan in zip(opened, plans, strict=True):
        if plan.scaled_from:
            asked, positions = plan.scaled_from, artifact.model["positions"]
            say(
                f"{artifact.name} has {positions} positions: {plan.name} is scaled from "
                f"{asked['prompt']}+{asked['generate']} to {plan.prompt}+{plan.generate} tokens"
            )


def corpus_of(chosen: Settings) -> dict[str, str] | None:
    """Name and hash of the text, read before anything is measured."""
    if chosen.corpus is None:
        return None
    if not chosen.corpus.is_file():
        raise UserError(f"{chosen.corpus}: no such file; --corpus names a UTF-8 text file")
    return {"name": chosen.corpus_name or chosen.corpus.name, "sha256": sha256(chosen.corpus)}


def identity(chosen: Settings, plans: list[Workload]) -> dict[str, Any]:
    """What, besides bytes and device, makes a command another one: its answers are not for this one."""
    names = ("threads", "affinity", "seed", "window", "blocks")
    same = {name: getattr(chosen, name) for name in names}
    return {**same, "workloads": [plan.as_dict() for plan in plans]}
