"""Where the tasks of cleaning run: on this machine, as jobs of Slurm, or on a Ray cluster (datatrove's executors).

What is known before the process that cleans is started: which options an executor takes, whether it is here,
and whether jobs that were submitted earlier are still in Slurm's queue.
"""

import hashlib
import shutil
import subprocess
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from devices.errors import UserError, install, unknown

SUBMITTED = "submitted"  # in the work folder: what the names of its Slurm jobs begin with
NUMBER = (int, float)
# What a file of options may set: arguments of datatrove's executors, by their names there.
OPTIONS: dict[str, dict[str, Any]] = {
    "local": {},
    "slurm": {
        **{"time": str, "partition": str, "qos": str, "env_command": str, "venv_path": str, "condaenv": str},
        **{"cpus_per_task": int, "mem_per_cpu_gb": NUMBER, "max_array_size": int, "tasks_per_job": int},
        **{"sbatch_args": dict, "srun_args": dict, "with_srun": bool, "mail_user": str, "mail_type": str},
    },
    "ray": {
        **{"cpus_per_task": NUMBER, "mem_per_cpu_gb": NUMBER, "tasks_per_job": int, "time": int},
        "ray_remote_kwargs": dict,
    },
}
NEEDED = {"local": (), "slurm": ("time", "partition"), "ray": ()}


class Underway(Exception):  # noqa: N818 - jobs that run are no error
    """Slurm has the jobs: one line that says how far they are and what to do. Exit code 0."""


def options(executor: str, file: Path | None) -> dict[str, Any]:
    """What `file` sets for `executor`; UserError for what it does not take, or where the executor is not here."""
    given = _read(file) if file else {}
    for name, value in given.items():
        if name not in OPTIONS[executor]:
            if not OPTIONS[executor]:
                raise UserError(f"{file}: --executor {executor} takes no options; leave the file out")
            raise unknown(f"option of --executor {executor}", name, OPTIONS[executor])
        kind = OPTIONS[executor][name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = "a number" if kind is NUMBER else f"of type {kind.__name__}"
            raise UserError(f"{file}: {name} must be {wanted}, found {value!r}")
    missing = [name for name in NEEDED[executor] if name not in given]
    if missing:
        where = f"{file}: lacks" if file else "--executor-options: name a TOML file that sets"
        raise UserError(f"{where} {' and '.join(missing)}, which --executor {executor} needs")
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise UserError("--executor slurm: no sbatch on the PATH; run it where Slurm's commands are")
    if executor == "ray" and find_spec("ray") is None:
        raise UserError(f"--executor ray: needs ray, which is not installed; {install('ray')}")
    return given


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; --executor-options names a TOML file") from None
    except ValueError as error:
        raise UserError(f"{file}: not valid TOML ({error})") from None


def refuse_running(work: Path, what: str) -> None:
    """Underway (UserError where Slurm cannot be asked) while jobs that were submitted for `work` are in the queue."""
    note = work / SUBMITTED
    if not note.is_file():
        return
    prefix = note.read_text(encoding="utf-8")
    try:
        asked = subprocess.run(
            ["squeue", "--me", "--noheader", "--format=%j"], capture_output=True, text=True, check=False
        )
        said = asked.stderr.strip().splitlines()[-1:] if asked.returncode else []
        answered = asked.returncode == 0
    except FileNotFoundError:
        answered, said = False, ["no squeue on the PATH"]
    if not answered:
        why = said[0] if said else "it said nothing"
        raise UserError(
            f"{what}: Slurm jobs {prefix}* were submitted for it, and the queue cannot be asked ({why}); "
            f"give the command where Slurm is, or remove {note} if they have ended"
        )
    jobs = [name for name in asked.stdout.split() if name.startswith(prefix)]
    if jobs:
        raise Underway(
            f"{what}: {len(jobs)} job{'s' * (len(jobs) > 1)} of it ({jobs[0]}, ...) in Slurm's queue; "
            "give the same command again when they have ended, or scancel them"
        )


def job_prefix(work: Path) -> str:
    """What the names of the jobs for `work` begin with: the same for the same folder, and no other's."""
    return f"clean-{hashlib.sha256(str(work).encode()).hexdigest()[:8]}-"
