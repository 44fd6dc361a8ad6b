"""Asking a worker: a fresh process per question, whose failure is one line and which never outlives us."""

import json
import os
import signal
import subprocess
from typing import Any

from devices.errors import UserError
from devices.process import command, environment


def ask(request: dict[str, Any], name: str) -> dict[str, Any]:
    """The worker's answer to `request`; UserError naming the artifact (`name`) where it has none.

    Whatever ends this call, Ctrl-C included, ends the worker too; so does whatever ends this process.
    """
    process = subprocess.Popen(
        command("bench.worker", str(os.getpid())),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment(),
    )
    try:
        out, err = process.communicate(json.dumps(request))
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode == 0:
        try:
            return json.loads(out.splitlines()[-1])
        except (ValueError, IndexError):
            raise UserError(f"{name}: the worker answered no JSON ({out[-80:]!r}); run it again") from None
    raise _failure(process.returncode, err, name)


def _failure(code: int, err: str, name: str) -> UserError:
    """One line for a worker that ended with `code` after writing `err`."""
    last = (err.strip().splitlines() or ["it said nothing"])[-1]
    if code == 2:
        return UserError(last)
    if code < 0:
        killed = signal.Signals(-code).name
        hint = "; out of memory? use a smaller model or workload" if killed == "SIGKILL" else ""
        return UserError(f"{name}: the worker was ended by {killed}{hint or '; run it again'}")
    return UserError(
        f"{name}: the worker failed ({last[:200]}); check the installation with `toolchain doctor`"
    )
