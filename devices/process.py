"""Our modules as processes of their own, from a checkout as well as from an installation."""

import ctypes
import os
import signal
import sys
from pathlib import Path

from devices.errors import UserError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
HOME = Path(__file__).resolve().parent.parent


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs our `module`; `environment` belongs to it.

    -P: a folder called bench, or an export.py, where the user happens to stand must not be taken for ours.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This process's variables, with the rooms importable where the checkout is not installed."""
    paths = [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"}


def run(module: str, arguments: list[str], what: str, hint: str) -> None:
    """Run our `module` to its end, in a process that ends with this one; what it writes to stderr is kept back.

    Its first argument is this process's id, for `end_with`; `arguments` follow. UserError where it fails: its
    own last line if it exits with 2, as of a user's error; otherwise one that names `what` and gives a `hint`.
    """
    import subprocess  # by none of the processes whose memory is measured

    line = command(module, str(os.getpid()), *arguments)
    done = subprocess.run(line, env=environment(), capture_output=True, encoding="utf-8", check=False)
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if done.returncode == 2:
        raise UserError(last)
    if done.returncode < 0:
        killed = signal.Signals(-done.returncode).name
        raise UserError(f"{what} was ended by {killed}; out of memory? run it where there is more")
    if done.returncode:
        raise UserError(f"{what} failed ({last[:300]}); {hint}")


def end_with(parent: int) -> None:
    """Let this process, started by process `parent`, be killed when that one ends, however it does.

    Linux only (prctl(2), PR_SET_PDEATHSIG); elsewhere it lives on until its work is done. Where the parent has
    ended already, this process exits at once.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
