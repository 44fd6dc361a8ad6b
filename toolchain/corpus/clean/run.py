"""The process that cleans: datatrove's stages for a plan, one after the other; what is done is not done again.

Started by toolchain/corpus/clean/__init__.py with the plan on standard input. A process of its own, because
datatrove logs to standard error wherever it runs.
"""

import json
import os
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import multiprocess
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
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
ERRORS = "errors"  # in the work folder: what tasks found wrong with the text
BUFFER = 1000  # records read at once from each sorted file
Stage = tuple[str, list[PipelineStep], int]  # name, steps, tasks


def stages(work: Path, parts: list[Part], rules: tuple[str, ...]) -> list[Stage]:
    """What runs in turn: single documents first, then every kind of deduplication over what is left.

    Each writes its documents to `work`/NAME; the last one's are the cleaned corpus.
    """

    def counts(name: str) -> str:
        return str(work / "counts" / name)

    errors = str(work / ERRORS)
    first: list[PipelineStep] = [steps.Source(parts, errors), steps.Count("read", counts("read"))]
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
        name, pipeline = f"without-{rule}", [steps.Source(kept, errors), drop]
    pipeline += [steps.Count("kept", counts("kept")), steps.writer(str(work / name))]
    found.append((name, pipeline, tasks))
    for (earlier, _, count), (_, following, _) in pairwise(found):
        following.insert(0, steps.After(str(work / "stages" / earlier), count))
    return found


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
    """Run all stages of `plan` (work, parts, rules, workers, executor, options), or hand them to Slurm.

    Returns the folder of the last one's files, or the number of jobs that were submitted. UserError for a text
    that cannot be read.
    """
    work = Path(plan["work"])
    todo = stages(work, [Part(*part) for part in plan["parts"]], tuple(plan["rules"]))
    for folder in ("line-signatures", "line-duplicates", "near-signatures", "near-pairs", "near-remove"):
        (work / folder).mkdir(exist_ok=True)
    _refuse_errors(work)
    if plan["executor"] == "ray":
        _join_ray()
    last = None
    for name, pipeline, tasks in todo:
        workers = min(plan["workers"] or tasks, tasks)
        common = {"tasks": tasks, "workers": workers, "logging_dir": str(work / "stages" / name)}
        last = EXECUTORS[plan["executor"]](name, pipeline, common, plan, last)
        last.run()
        left = len(last.get_incomplete_ranks(skip_completed=True))
        if left and plan["executor"] != "slurm":
            _refuse_errors(work)
            raise ValueError(f"{name}: {left} of {tasks} tasks failed")
    return {"submitted": True} if left else {"folder": todo[-1][0]}


def _refuse_errors(work: Path) -> None:
    """UserError with what a task found wrong with the text."""
    found = sorted((work / ERRORS).glob("*"))
    if found:
        raise UserError(found[0].read_text(encoding="utf-8"))


def _local(name: str, steps: list[PipelineStep], common: dict, plan: dict, last: Any) -> PipelineExecutor:
    return LocalPipelineExecutor(steps, **common)


class Jobs(SlurmPipelineExecutor):
    """datatrove's, less the job of a stage that sums up statistics nobody reads here."""

    def launch_merge_stats(self) -> None:
        """Submit nothing."""


def _slurm(name: str, steps: list[PipelineStep], common: dict, plan: dict, last: Any) -> PipelineExecutor:
    """Jobs that wait for those of the stage before, and are cancelled where one of these fails."""
    python = shlex.quote(str(Path(sys.executable).parent))
    exported = f'export PATH={python}:"$PATH" PYTHONPATH={shlex.quote(os.environ["PYTHONPATH"])} PYTHONUTF8=1'
    options = {"env_command": exported, **plan["options"]}
    options["sbatch_args"] = {"kill-on-invalid-dep": "yes", **options.get("sbatch_args", {})}
    return Jobs(steps, **common, job_name=f"{plan['jobs']}{name}", depends=last, **options)


def _ray(name: str, steps: list[PipelineStep], common: dict, plan: dict, last: Any) -> PipelineExecutor:
    return RayPipelineExecutor(steps, **common, **plan["options"])


EXECUTORS = {"local": _local, "slurm": _slurm, "ray": _ray}


def _join_ray() -> None:
    """The cluster that RAY_ADDRESS names or that runs here, or one of this machine alone while this process lasts."""
    import ray

    variables = {name: os.environ[name] for name in ("PYTHONPATH", "PYTHONUTF8")}
    ray.init(log_to_driver=False, include_dashboard=None, runtime_env={"env_vars": variables})


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
        answer = {"error": str(error), "text": True}
    except subprocess.CalledProcessError as error:
        answer = {"error": f"{error.cmd[0]} refused a job (exit code {error.returncode})", "log": True}
    except OSError as error:
        answer = {"errno": error.errno, "error": str(error), "file": str(error.filename or "")}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    os._exit(0)  # an interrupted pool would be waited for


if __name__ == "__main__":
    sys.exit(main())
