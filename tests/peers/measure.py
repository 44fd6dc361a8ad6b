"""One measurement of one peer, the settings it gets, and the rounds in which all take turns."""

import json
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import plan
from environments import python_of
from models import Store, export_command, file_bytes
from plan import Model, Variant, Workload
from processes import ROOT, Failed, ask, run

TRIALS, TRIAL_ROWS = 3, 96
HOPELESS = 2.0  # times the best; a candidate as slow as this is not tried again
FEW = 8  # new tokens where the harness is only tried out
Sample = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A variant of a peer under a workload, with so many threads (none for an export)."""

    workload: Workload
    model: Model
    variant: Variant
    threads: int | None

    @property
    def block(self) -> str:
        """What is compared with each other, and therefore measured in one go."""
        threads = f" · {self.threads} thread{'s' if self.threads != 1 else ''}" if self.threads else ""
        return f"{self.workload.name} {self.model.name}{threads}"

    @property
    def key(self) -> str:
        """The job's name in records."""
        return f"{self.block} · {self.variant.name}"

    @property
    def tuned(self) -> str:
        """What settings are chosen for: once for all that a variant does with a model and so many threads."""
        return f"{self.model.name} · {self.threads} · {self.variant.name}"


class Bench:
    """Measures jobs; knows the store, the ids that go in and, once chosen, each job's settings."""

    def __init__(self, store: Store, inputs: dict[str, Any], settings: Path) -> None:
        self.store, self.inputs, self.file = store, inputs, settings
        self.chosen: dict[str, Any] = json.loads(settings.read_text()) if settings.is_file() else {}
        self.broken: dict[str, str] = {}

    def convert(self, jobs: list[Job], say: Callable[[str], None]) -> None:
        """Make what the jobs need; a job for which it cannot be made is marked, with the reason."""
        for job in jobs:
            if job.variant.peer in self.store.failed:
                self.broken[job.key] = self.store.failed[job.variant.peer]
                continue
            with self._marking(job, say):
                if job.workload.name == "export":
                    self.store.checkpoint(job.model)
                else:
                    self.store.converted(job.model, job.variant)

    def tune(self, jobs: list[Job], say: Callable[[str], None]) -> None:
        """Choose the settings of every job that has several to choose from."""
        for job in jobs:
            if job.key not in self.broken and len(job.variant.settings) > 1 and job.tuned not in self.chosen:
                with self._marking(job, say):
                    say(f"settings for {job.tuned}: {json.dumps(self.settings(job))}")

    @contextmanager
    def _marking(self, job: Job, say: Callable[[str], None]) -> Iterator[None]:
        try:
            yield
        except Failed as failure:
            self.broken[job.key] = str(failure)
            say(f"{job.key}: failed: {failure}")

    def settings(self, job: Job) -> dict[str, Any]:
        """The fastest of the job's candidates, found by a few runs of each in turn and remembered."""
        candidates = job.variant.settings
        if len(candidates) == 1:
            return candidates[0]
        if job.tuned not in self.chosen:
            self.chosen[job.tuned] = self._try(job, candidates)
            self.file.write_text(json.dumps(self.chosen, indent=1))
        return self.chosen[job.tuned]["settings"]

    def _try(self, job: Job, candidates: tuple[dict[str, Any], ...]) -> dict[str, Any]:
        """Each candidate in turn, TRIALS times; one that fails, or takes twice the best at first, once."""
        seconds: dict[int, list[float]] = {}
        left, reason = list(range(len(candidates))), ""
        for turn in range(TRIALS):
            for at in random.Random(turn).sample(left, len(left)):
                try:
                    seconds.setdefault(at, []).append(cost(self.measure(job, candidates[at], trial=True)))
                except Failed as failure:
                    seconds.pop(at, None)
                    reason = str(failure)
            best = min((statistics.median(found) for found in seconds.values()), default=0.0)
            left = [at for at, found in seconds.items() if statistics.median(found) <= HOPELESS * best]
        if not seconds:
            raise Failed(reason)
        chosen = min(left, key=lambda at: statistics.median(seconds[at]))
        tried = [{"settings": candidates[at], "seconds": found} for at, found in seconds.items()]
        return {"settings": candidates[chosen], "tried": tried}

    def measure(self, job: Job, settings: dict[str, Any], trial: bool = False) -> Sample:
        """One fresh process; Failed with the peer's reason."""
        if job.workload.name == "export":
            return self._export(job)
        made = self.store.converted(job.model, job.variant)
        request: dict[str, Any] = {"model": str(made), "threads": job.threads, "settings": settings}
        if job.workload.name == "classify":
            rows = self.inputs["rows"][:TRIAL_ROWS] if trial else self.inputs["rows"]
            request |= {"action": "classify", "rows": rows, "pad": 0, **job.variant.request}
        else:
            ids = self.inputs["prompts"][job.model.name][: job.workload.prompt]
            request |= {"action": "generate", "ids": ids, "new": job.workload.new}
        ours = job.variant.peer == "ours"
        python = sys.executable if ours else python_of(self.store.folder, job.variant.peer)
        found, ended = ask(python, plan.ADAPTERS[job.variant.peer], request)
        return {**found, "file_bytes": file_bytes(made, settings), "others": ended.others}

    def _export(self, job: Job) -> Sample:
        """Whole processes, from their start to their end, and their peak memory as the kernel counts it."""
        source = self.store.checkpoint(job.model)
        out = self.store.folder / "models" / "exported"
        shutil.rmtree(out, ignore_errors=True)
        found: dict[str, Any] = {}
        if job.variant.peer == "ours":
            ended = run(export_command(source, out, job.variant.key), env={"PYTHONPATH": str(ROOT)})
        else:
            request = {"action": "export", "checkpoint": str(source), "out": str(out)}
            python = python_of(self.store.folder, job.variant.peer)
            found, ended = ask(python, plan.ADAPTERS[job.variant.peer], request)
        shutil.rmtree(out, ignore_errors=True)
        return {**found, "seconds": ended.seconds, "peak": ended.peak, "others": ended.others}


def cost(sample: Sample) -> float:
    """What the choice of settings goes by: the time of the whole workload."""
    if "sentences_s" in sample:
        return 1 / sample["sentences_s"]
    return sample["first_token_s"] + sum(sample["token_s"])


def load_rounds(file: Path, jobs: list[Job], broken: Container[str]) -> dict[int, dict[str, Sample]]:
    """The finished rounds in `file` by number: those with a sample for every job that can be done at all."""
    found: dict[int, dict[str, Sample]] = {}
    for line in file.read_text().splitlines() if file.is_file() else []:
        record = json.loads(line)
        found.setdefault(record["round"], {})[record["job"]] = record["sample"]
    keys = [job.key for job in jobs if job.key not in broken]
    none = {"failed": "not run"}
    return {
        at: samples
        for at, samples in sorted(found.items())
        if all("failed" not in samples.get(key, none) for key in keys)
    }


def run_rounds(
    bench: Bench, jobs: list[Job], count: int, file: Path, say: Callable[[str], None]
) -> list[dict[str, Sample]]:
    """All jobs in turn, `count` times; rounds that `file` holds are not run again, each new one joins it.

    Blocks, and the jobs in each, come in an order shuffled anew for every round: what is compared runs
    within minutes of each other. A job that fails has a sample with the reason, and the rest goes on.
    """
    rounds = load_rounds(file, jobs, bench.broken)
    if rounds:
        say(f"finished rounds found in {file}: {len(rounds)}")
    for at in range(count):
        if at in rounds:
            continue
        rng = random.Random(f"{plan.SEED}-{at}")
        blocks = sorted({job.block for job in jobs})
        samples: dict[str, Sample] = {}
        for block in rng.sample(blocks, len(blocks)):
            turn = [job for job in jobs if job.block == block]
            for job in rng.sample(turn, len(turn)):
                samples[job.key] = _measured(bench, job)
                say(f"round {at + 1} of {count} · {job.key}: {told(samples[job.key])}")
        with file.open("a") as out:
            for key, sample in samples.items():
                out.write(json.dumps({"round": at, "job": key, "sample": sample}) + "\n")
        rounds[at] = samples
    return [rounds[at] for at in range(count)]


def _measured(bench: Bench, job: Job) -> Sample:
    if job.key in bench.broken:
        return {"failed": bench.broken[job.key]}
    try:
        settings = bench.settings(job)
        return {**bench.measure(job, settings), "settings": settings, "at": round(time.time())}
    except Failed as failure:
        return {"failed": str(failure)}


def told(sample: Sample) -> str:
    """A sample in a few words."""
    if "failed" in sample:
        return f"failed: {sample['failed']}"
    if "sentences_s" in sample:
        return f"{sample['sentences_s']:.1f} sentences/s"
    if "seconds" in sample:
        return f"{sample['seconds']:.1f} s, {sample['peak'] / 1e6:.0f} MB"
    rate = len(sample["token_s"]) / sum(sample["token_s"])
    first, peak = sample["first_token_s"] * 1e3, sample["memory"]["end"]["peak"] / 1e6
    return f"{rate:.1f} tokens/s, first token {first:.0f} ms, peak {peak:.0f} MB"


def bound(workload: str, shape: str) -> Workload:
    """The workload called `workload`, with few new tokens where the shape is the one for trying things out."""
    chosen = plan.WORKLOADS[workload]
    if shape != "tiny" or chosen.new <= FEW:
        return chosen
    return replace(chosen, new=FEW, what=f"{chosen.what} (here {FEW})")
