"""A stand-in for Slurm on one machine: sbatch and squeue as programs, and `work_off`, which is the cluster."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

PROGRAMS = {
    "sbatch": f'exec {sys.executable} {__file__} sbatch "$@"',
    "squeue": f"exec {sys.executable} {__file__} squeue",
    "scontrol": 'echo "${3}"',  # show hostnames NODES
    "srun": 'while [ "${1#-}" != "$1" ]; do [ "$1" = -n ] && shift; shift; done; exec "$@"',
}


def install(folder: Path) -> dict[str, str]:
    """Write the programs to `folder`; the variables under which a command finds them and they their queue."""
    folder.mkdir()
    (folder / "jobs").mkdir()
    for name, line in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "STANDIN": str(folder / "jobs")}


def jobs(folder: Path) -> list[dict]:
    """All jobs, in the order in which they were submitted."""
    return [json.loads(file.read_text()) for file in sorted((folder / "jobs").glob("*.json"))]


def sbatch(arguments: list[str]) -> None:
    """Put a job into the queue; refuse what Slurm would refuse."""
    queue = Path(os.environ["STANDIN"])
    script = Path(arguments[-1]).read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.M))
    asked |= dict(a.removeprefix("--").split("=", 1) for a in arguments[:-1])
    if asked["partition"] == "closed":
        sys.exit("sbatch: error: invalid partition specified: closed")
    number = len(list(queue.glob("*.json"))) + 100
    job = {"id": number, "script": script, "state": "pending", "asked": asked, "cwd": str(Path.cwd())}
    (queue / f"{number}.json").write_text(json.dumps(job))
    print(f"Submitted batch job {number}")


def squeue() -> None:
    """The names of the jobs that have not ended."""
    for job in jobs(Path(os.environ["STANDIN"]).parent):
        if job["state"] == "pending":
            print(job["asked"]["job-name"])


def work_off(folder: Path) -> list[str]:
    """Run the jobs that are pending, array by array, those that depend on a failed one not; how each ended."""
    ended = {job["id"]: job["state"] for job in jobs(folder)}
    for job in jobs(folder):
        if job["state"] != "pending":
            continue
        needs = re.findall(r"(afterok|afterany):(\d+)", job["asked"].get("dependency", ""))
        if any(kind == "afterok" and ended[int(other)] != "done" for kind, other in needs):
            assert job["asked"]["kill-on-invalid-dep"] == "yes"
            job["state"] = "cancelled"
        else:
            last = int(re.match(r"0-(\d+)", job["asked"]["array"])[1])
            codes = [_run(job, index, folder) for index in range(last + 1)]
            job["state"] = "failed" if any(codes) else "done"
        ended[job["id"]] = job["state"]
        (folder / "jobs" / f"{job['id']}.json").write_text(json.dumps(job))
    return list(ended.values())


def _run(job: dict, index: int, folder: Path) -> int:
    """One job of an array, in its environment; its exit code."""
    script = folder / "jobs" / "script"
    script.write_text(job["script"])
    exported = dict(pair.split("=") for pair in job["asked"]["export"].split(",")[1:])
    inside = {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_NODELIST": "here", "SLURM_JOB_ID": str(job["id"])}
    return subprocess.run(
        ["bash", script],
        env={**os.environ, **inside, **exported, "PATH": f"{folder}:/usr/bin:/bin"},
        cwd=job["cwd"],
        capture_output=True,
        check=False,
    ).returncode


if __name__ == "__main__":
    sbatch(sys.argv[2:]) if sys.argv[1] == "sbatch" else squeue()
