"""The process that cleans: datatrove's stages for a plan, one after the other; what is done is not done again.

Started by toolchain/corpus/clean/__init__.py with the plan on standard input. A process of its own, because
datatrove logs to standard error wherever it runs.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import multiprocess
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
    SentenceFindDedups,
)
from multiprocess.managers import SyncManager

from devices.errors import UserError
from devices.process import end_with
from toolchain.corpus.clean import steps
from toolchain.corpus.clean.rules import DUPLICATES, LINE_RULES, NEAR_DUPLICATES
from toolchain.corpus.documents import Part

FINDERS = 8  # pieces of the range of hashes that are searched for duplicates apart
BUFFER = 1000  # records read at once from each sorted file
Stage = tuple[str, list[PipelineStep], int]  # name, steps, tasks


def stages(work: Path, parts: list[Part], rules: tuple[str, ...]) -> list[Stage]:
    """What runs in turn: single documents first, then every kind of deduplication over what is left.

    Each writes its documents to `work`/NAME; the last one's are the cleaned corpus.
    """

    def counts(name: str) -> str:
        return str(work / "counts" / name)

    first: list[PipelineStep] = [steps.Source(parts), steps.Count("read", counts("read"))]
    lines = tuple(rule for rule in LINE_RULES if rule in rules)
    if lines:
        first.append(steps.Lines(lines, counts("lines")))
    first += [steps.Whole(rule, counts(rule)) for rule in steps.WHOLE if rule in rules]
    found: list[Stage] = []
    name, pipeline, tasks = "filtered", first, len(parts)
    for rule, search in ((DUPLICATES, _line_search), (NEAR_DUPLICATES, _near_search)):
        if rule not in rules:
            continue
        pipeline.append(steps.writer(str(work / name)))
        signature, searching, drop = search(work, counts(rule), tasks)
        found += [(name, [*pipeline, signature], tasks), *searching]
        kept = [Part("json", str(work / name / f"{rank:05d}.jsonl"), 0, 1 << 62) for rank in range(tasks)]
        name, pipeline = f"without-{rule}", [steps.Source(kept), drop]
    pipeline += [steps.Count("kept", counts("kept")), steps.writer(str(work / name))]
    return [*found, (name, pipeline, tasks)]


def _line_search(work: Path, counts: str, tasks: int) -> tuple[PipelineStep, list[Stage], PipelineStep]:
    signatures, dups = str(work / "line-signatures"), str(work / "line-duplicates")
    finders = min(FINDERS, tasks)
    find = SentenceFindDedups(signatures, dups, config=steps.LINES, lines_to_buffer=BUFFER)
    return (
        steps.LineSignatures(signatures, finders),
        [("find-duplicates", [find], finders)],
        steps.LineFilter(dups, counts),
    )


def _near_search(work: Path, counts: str, tasks: int) -> tuple[PipelineStep, list[Stage], PipelineStep]:
    signatures, pairs, remove = (str(work / f"near-{name}") for name in ("signatures", "pairs", "remove"))
    config = MinhashConfig(hash_config=steps.HASH)
    buckets = MinhashDedupBuckets(signatures, pairs, config=config, lines_to_buffer=BUFFER)
    cluster = MinhashDedupCluster(pairs, remove, config=config, lines_to_buffer=BUFFER)
    return (
        MinhashDedupSignature(signatures, config, language=steps.WORDS),
        [("near-pairs", [buckets], config.num_buckets), ("near-clusters", [cluster], 1)],
        steps.NearFilter(remove, counts),
    )


def clean(plan: dict[str, Any]) -> dict[str, Any]:
    """Run all stages of `plan` (work, parts, rules, workers); returns the folder of the last one's files."""
    work = Path(plan["work"])
    todo = stages(work, [Part(*part) for part in plan["parts"]], tuple(plan["rules"]))
    for name, pipeline, tasks in todo:
        for folder in ("line-signatures", "line-duplicates", "near-signatures", "near-pairs", "near-remove"):
            (work / folder).mkdir(exist_ok=True)
        LocalPipelineExecutor(
            pipeline,
            tasks=tasks,
            workers=min(plan["workers"], tasks),
            logging_dir=str(work / "stages" / name),
        ).run()
    return {"folder": todo[-1][0]}


def _manager() -> SyncManager:
    """What datatrove asks multiprocess for, ended with this process: by itself it outlives a parent that is killed."""
    manager = SyncManager(ctx=multiprocess.get_context())
    manager.start(_end_with_parent)
    return manager


def _end_with_parent() -> None:
    end_with(os.getppid())


def main() -> int:
    """Answer the plan on standard input with one line of JSON: a folder, an error, or an error's number."""
    end_with(int(sys.argv[1]))
    multiprocess.Manager = _manager
    try:
        answer = clean(json.load(sys.stdin))
    except UserError as error:
        answer = {"error": str(error)}
    except OSError as error:
        answer = {"errno": error.errno, "error": str(error), "file": str(error.filename or "")}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # an interrupted pool would be waited for


if __name__ == "__main__":
    sys.exit(main())
