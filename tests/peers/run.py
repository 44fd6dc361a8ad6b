"""`make peers`: others' runtimes and ours on the same weights, in turn; writes docs/peers.md and its picture."""

import argparse
import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))  # the rooms of this checkout

import page
import plan
from environments import HERE, install, versions
from measure import Bench, Job, Sample, bound, run_rounds
from models import Store, hashed, our_sources, parameters
from processes import ROOT, Failed, ask

from devices.machine import environment, version

TEXT = ROOT / "LICENSE"  # what real weights continue: some English that every checkout has


def options() -> argparse.Namespace:
    """What the Makefile passes on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="environments, weights and rounds go here")
    parser.add_argument("--docs", type=Path, required=True, help="peers.md, peers.png and results/peers.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default=",".join(plan.PEERS))
    parser.add_argument("--recipes", default="fp32,int8,int4", help="ours, in the order of the tables")
    parser.add_argument("--workloads", default=",".join(plan.WORKLOADS))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--shape", default="gpt2", choices=sorted(plan.SHAPES))
    parser.add_argument("--gguf", type=Path, help="SmolLM2-135M; without it that part is left out")
    parser.add_argument("--tokenizer", type=Path, help="GPT-2's vocab.json and merges.txt, for SST-2")
    parser.add_argument("--sst2", type=Path, help="folder with SST-2's dev.tsv")
    parser.add_argument("--torch-index", default="", help="an index that has the CPU build of torch")
    parser.add_argument("--anew", action="store_true", help="forget finished rounds and chosen settings")
    parser.add_argument(
        "--prepare", action="store_true", help="install and convert, and stop before measuring"
    )
    given = parser.parse_args()
    for option, known in (("peers", plan.PEERS), ("workloads", tuple(plan.WORKLOADS))):
        for name in listed(getattr(given, option)):
            if name not in known:
                parser.error(f"--{option}: unknown name '{name}'; known: {', '.join(known)}")
    return given


def say(line: str) -> None:
    """One line of progress, with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def listed(text: str) -> list[str]:
    """The items of a list given with commas."""
    return [item.strip() for item in text.split(",") if item.strip()]


@dataclass(frozen=True)
class Asked:
    """The jobs to do, and what is left out and why."""

    jobs: list[Job]
    left_out: list[str]


def jobs_for(given: argparse.Namespace) -> Asked:
    """Every job of the workloads, peers, recipes and thread counts that were asked for."""
    recipes, peers = listed(given.recipes), [*listed(given.peers), "ours"]
    counts = [int(count) for count in listed(given.threads)]
    left_out: list[str] = []
    jobs: list[Job] = []
    for name in listed(given.workloads):
        if name == "classify" and not (given.sst2 and (given.sst2 / "dev.tsv").is_file()):
            left_out.append(f"classification: no dev.tsv in {given.sst2}; set SST2 to the folder that has it")
            continue
        if name == "classify" and not (given.tokenizer and (given.tokenizer / "vocab.json").is_file()):
            left_out.append(f"classification: no vocab.json in {given.tokenizer}; set TOKENIZER to GPT-2's")
            continue
        for model, variants, threads in _parts(name, recipes, counts, left_out, given):
            for count in threads:
                jobs += [Job(bound(name, given.shape), model, v, count) for v in variants if v.peer in peers]
    return Asked(jobs, left_out)


def _parts(
    name: str, recipes: list[str], counts: list[int], left_out: list[str], given: argparse.Namespace
) -> list[tuple[plan.Model, list[plan.Variant], list[int | None]]]:
    """The models of a workload, each with its variants and thread counts."""
    threads: list[int | None] = [*counts]
    if name == "classify":
        return [(plan.CLASSIFIER, plan.classifiers(recipes), threads)]
    if name == "export":
        return [(plan.GPT2_12, plan.exporters(recipes), [None])]
    every = plan.generators(plan.GPT2, recipes)
    if name == "full":
        return [(plan.GPT2, [v for v in every if v.bits in (8, 4) and v.equal], threads[:1])]
    found = [(plan.GPT2, every, threads)]
    if given.gguf and given.gguf.is_file():
        smaller = [recipe for recipe in recipes if plan.bits_of(recipe) != 32]
        found.append((plan.SMOLLM2, plan.generators(plan.SMOLLM2, smaller), threads))
    else:
        left_out.append(f"SmolLM2: no GGUF file at {given.gguf}; make fetches it")
    return found


# What comes after measuring may change without making earlier rounds another thing.
AFTERWARDS = ("goals.py", "summary.py", "page.py", "chart.py", "run.py")


def identity(given: argparse.Namespace) -> tuple[str, str]:
    """Names under which settings and rounds are kept: found again while what decides them is the same.

    For the peers' settings that is the harness and the weights; for rounds also our own code and what was
    asked for.
    """
    files = [file for ending in ("py", "txt") for file in sorted(HERE.rglob(f"*.{ending}"))]
    harness = [file for file in files if file.name not in AFTERWARDS]
    weights = (given.shape, str(given.gguf))
    asked = (given.peers, given.recipes, given.workloads, given.threads, *weights)
    return (
        hashed(harness, json.dumps(weights))[:12],
        hashed([*harness, *our_sources()], json.dumps(asked))[:12],
    )


def inputs_for(store: Store, asked: Asked, given: argparse.Namespace) -> dict[str, Any]:
    """Each model's parameter count and prompt (ids for the longest workload), and the sentences as ids."""
    inputs: dict[str, Any] = {"prompts": {}, "rows": [], "parameters": {}}
    for model in {job.model.name: job.model for job in asked.jobs}.values():
        try:
            checkpoint = store.checkpoint(model)
            vocab = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
            inputs["prompts"][model.name] = _prompt(checkpoint, vocab, model)
            inputs["parameters"][model.name] = parameters(checkpoint)
        except Failed as failure:
            say(f"{model.name}: failed: {failure}")
    if any(job.workload.name == "classify" for job in asked.jobs):
        file = str(given.sst2 / "dev.tsv")
        request = {"action": "sentences", "tokenizer": str(given.tokenizer), "file": file}
        found, _ = ask(sys.executable, "reference", request)
        size = plan.SHAPES[given.shape]["vocab_size"]
        inputs["rows"] = [[token % size for token in row] for row in found["rows"]]
    return inputs


def _prompt(checkpoint: Path, vocab: int, model: plan.Model) -> list[int]:
    """Ids that everyone is given: drawn from the whole vocabulary for random weights.

    For real weights a passage and its beginning again, which has one likely continuation: on random ids and
    in open text such a model sees near ties, and first tokens agree by chance.
    """
    if model.layers:
        rng = random.Random(plan.SEED)
        return [rng.randrange(vocab) for _ in range(max(w.prompt for w in plan.WORKLOADS.values()))]
    count = plan.PROMPT * 3 // 4
    request = {"action": "prompt", "checkpoint": str(checkpoint), "file": str(TEXT), "count": count}
    passage = ask(sys.executable, "reference", request)[0]["ids"]
    return [*passage, *passage[: plan.PROMPT - count]]


def truths(bench: Bench, jobs: list[Job]) -> dict[str, Any]:
    """PyTorch's greedy tokens after `generate`'s prompt, for each model that generates."""
    found: dict[str, Any] = {}
    for job in jobs:
        if job.workload.name != "generate" or job.model.name in found:
            continue
        try:
            checkpoint = str(bench.store.checkpoint(job.model))
            ids = bench.inputs["prompts"][job.model.name][: job.workload.prompt]
            request = {"action": "greedy", "checkpoint": checkpoint, "ids": ids, "new": job.workload.new}
            answer, _ = ask(sys.executable, "reference", request)
            found[job.model.name] = answer["tokens"]
        except Failed as failure:
            say(f"PyTorch on {job.model.name}: failed: {failure}")
    return found


def main() -> int:
    """Install, convert, choose settings, measure, write; 2 where there is nothing to measure."""
    given = options()
    given.folder = given.folder.resolve()
    given.folder.mkdir(parents=True, exist_ok=True)
    asked = jobs_for(given)
    for line in asked.left_out:
        say(f"left out: {line}")
    if not asked.jobs:
        say("nothing to measure is left")
        return 2
    store = Store(given.folder, given.shape, given.gguf, say)
    for peer in listed(given.peers):
        reason = install(given.folder, peer, given.torch_index, say)
        if reason:
            store.failed[peer] = reason
            say(f"{peer}: {reason}")
    tuned, measured = identity(given)
    settings, rounds_file = given.folder / f"settings-{tuned}.json", given.folder / f"rounds-{measured}.jsonl"
    if given.anew:
        rounds_file.unlink(missing_ok=True)
        settings.unlink(missing_ok=True)
    bench = Bench(store, inputs_for(store, asked, given), settings)
    reference = truths(bench, asked.jobs)
    bench.convert(asked.jobs, say)
    if given.prepare:
        return 0
    bench.tune(asked.jobs, say)
    machine = environment()
    rounds = run_rounds(bench, asked.jobs, given.rounds, rounds_file, say)
    record = _record(given, asked, bench, reference, machine, rounds)
    for file in page.write(given.docs, record, asked.jobs):
        say(f"wrote {file}")
    print((given.docs / "peers.md").read_text())
    return 0


def _record(
    given: argparse.Namespace,
    asked: Asked,
    bench: Bench,
    reference: dict[str, Any],
    machine: dict[str, Any],
    rounds: list[dict[str, Sample]],
) -> dict[str, Any]:
    """Everything that the page says and more: docs/results/peers.json."""
    installed = {peer: versions(given.folder, peer) for peer in listed(given.peers)}
    ours = {name: version(name) for name in ("toolchain", "onnxruntime", "numpy", "torch", "transformers")}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine,
        "asked": {"recipes": listed(given.recipes), "rounds": len(rounds), "shape": given.shape},
        "left_out": asked.left_out,
        "versions": {**installed, "ours": ours},
        "workloads": {job.workload.name: asdict(job.workload) for job in asked.jobs},
        "parameters": bench.inputs["parameters"],
        "torch_tokens": reference,
        "settings": bench.chosen,
        "rounds": rounds,
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("interrupted; finished rounds are kept, the same command goes on")
        sys.exit(130)
