"""What the samples say: medians, spreads, ratios within a round, and which goals hold. No input or output."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from goals import EXPORT_MEMORY_LIMIT, FILE_LIMITS, GOALS, Goal
from measure import Job, Sample
from plan import GPT2, GPT2_12

Rounds = list[dict[str, Sample]]
AGREE = 16  # tokens that are compared with fp32's
MEASURES: dict[str, Callable[[Sample], float]] = {
    "tokens/s": lambda sample: len(sample["token_s"]) / sum(sample["token_s"]),
    "first token": lambda sample: sample["first_token_s"],
    "load": lambda sample: sample["load_s"],
    "peak": lambda sample: sample["memory"]["end"]["peak"] if "memory" in sample else sample["peak"],
    "anonymous": lambda sample: sample["memory"]["end"]["anonymous"],
    "sentences/s": lambda sample: sample["sentences_s"],
    "seconds": lambda sample: sample["seconds"],
    "file": lambda sample: sample["file_bytes"],
}


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of `count` values."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread | None:
    """The spread of `values`, or None where there are none."""
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values), len(values))


def values(rounds: Rounds, key: str, measure: str) -> list[float | None]:
    """One value per round; None where the job failed."""
    samples = [found.get(key, {"failed": ""}) for found in rounds]
    return [None if "failed" in sample else MEASURES[measure](sample) for sample in samples]


def of(rounds: Rounds, key: str, measure: str) -> Spread | None:
    """The spread over all rounds in which the job did not fail."""
    return spread([value for value in values(rounds, key, measure) if value is not None])


def ratio(rounds: Rounds, ours: str, theirs: str, measure: str) -> Spread | None:
    """Ours over theirs, pair by pair within each round, then the median of the pairs."""
    pairs = zip(values(rounds, ours, measure), values(rounds, theirs, measure), strict=True)
    return spread([a / b for a, b in pairs if a is not None and b])


def failure(rounds: Rounds, key: str) -> str | None:
    """Why a job failed in all rounds, or None."""
    samples = [found.get(key, {"failed": "not run"}) for found in rounds]
    return samples[-1].get("failed") if all("failed" in sample for sample in samples) else None


def agreement(rounds: Rounds, key: str, tokens: Sequence[int] | None) -> str:
    """How many of the first tokens are fp32's until the first that is not: "16 of 16"."""
    sample = next((found[key] for found in rounds if "tokens" in found.get(key, {})), None)
    if sample is None or not tokens:
        return ""
    count = min(AGREE, len(tokens))
    pairs = list(zip(sample["tokens"][:count], tokens[:count], strict=True))
    same = next((at for at, (a, b) in enumerate(pairs) if a != b), count)
    return f"{same} of {count}"


@dataclass(frozen=True)
class Outcome:
    """A goal, what it was measured with, and whether it holds (None where it is only shown)."""

    title: str
    threads: int | None
    ours: str
    theirs: str
    ratio: Spread
    limit: float | None
    more: bool

    @property
    def held(self) -> bool | None:
        """Whether the median ratio is on the goal's side of its limit."""
        if self.limit is None:
            return None
        return self.ratio.median >= self.limit if self.more else self.ratio.median <= self.limit


def outcomes(rounds: Rounds, jobs: Sequence[Job], parameters: dict[str, int]) -> list[Outcome]:
    """Every goal that the jobs cover, for each of our recipes and each thread count."""
    found = []
    for goal in GOALS:
        found += _goal(goal, rounds, jobs)
    return found + _sizes(rounds, jobs, parameters)


def _goal(goal: Goal, rounds: Rounds, jobs: Sequence[Job]) -> list[Outcome]:
    mine = [j for j in jobs if j.workload.name == goal.workload and j.model.name == goal.model]
    outcomes = []
    for threads in sorted({j.threads for j in mine}, key=lambda count: count or 0):
        here = [j for j in mine if j.threads == threads]
        theirs = [(of(rounds, j.key, goal.measure), j) for j in here if j.variant.name in goal.against]
        able = [(found.median, j) for found, j in theirs if found is not None]
        if not able:
            continue
        _, best = (max if goal.more else min)(able, key=lambda pair: pair[0])
        for job in here:
            if job.variant.peer != "ours" or job.variant.bits != goal.bits:
                continue
            pairs = ratio(rounds, job.key, best.key, goal.measure)
            if pairs is not None:
                names = (job.variant.weights, best.variant.name)
                outcomes.append(Outcome(goal.title, threads, *names, pairs, goal.limit, goal.more))
    return outcomes


def _sizes(rounds: Rounds, jobs: Sequence[Job], parameters: dict[str, int]) -> list[Outcome]:
    """Files against parameters x bits / 8, and our export's peak memory against the fp32 weights."""
    found: dict[str, Outcome] = {}
    for job in jobs:
        bits, model = job.variant.bits, job.model.name
        if job.variant.peer != "ours" or bits not in FILE_LIMITS or model not in parameters:
            continue
        if job.workload.name == "generate" and model == GPT2.name:
            over = parameters[model] * bits / 8
            title, measure, limit = f"file, int{bits}", "file", FILE_LIMITS[bits]
            against = f"parameters x {bits} / 8"
        elif job.workload.name == "export" and model == GPT2_12.name:
            over, title, measure = parameters[model] * 4, "export to int8, peak memory", "peak"
            limit, against = EXPORT_MEMORY_LIMIT, "the fp32 weights"
        else:
            continue
        size = spread([v / over for v in values(rounds, job.key, measure) if v is not None])
        if size is not None:
            name = job.variant.weights
            found[f"{title} {name}"] = Outcome(title, None, name, against, size, limit, False)
    return list(found.values())
