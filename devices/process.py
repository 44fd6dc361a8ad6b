"""Our modules as processes of their own, from a checkout as well as from an installation."""

import os
import sys
from pathlib import Path

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
