"""Our modules as processes of their own, from a checkout as well as from an installation."""

import ctypes
import os
import signal
import sys
from pathlib import Path

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
