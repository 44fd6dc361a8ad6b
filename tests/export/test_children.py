"""The processes that import PyTorch for `export` do not outlive it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = '{"name": "fp32", "description": ""}'


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the signal is Linux's")
@pytest.mark.parametrize(
    ("module", "arguments", "pipe"),
    [
        ("answers", ["decoder", "questions", "answers"], "questions"),
        ("fallback", ["out", "answer", "decoder", "us", RECIPE], "checkpoint/config.json"),
    ],
)
def test_a_child_ends_with_its_export(
    tmp_path: Path, module: str, arguments: list[str], pipe: str, ends: Callable[[str, float], bool]
) -> None:
    """An export that is killed leaves no process behind: here one whose input never comes."""
    (tmp_path / "checkpoint").mkdir()
    os.mkfifo(tmp_path / pipe)
    code = f"from export import {module}; {module}._run_child({['checkpoint', *arguments]})"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    export = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env)
    children = Path(f"/proc/{export.pid}/task/{export.pid}/children")
    while not (child := children.read_text().strip()):
        time.sleep(0.05)
    export.kill()
    export.wait(timeout=30)
    try:
        assert ends(child, 60)  # it may first have to import PyTorch
    finally:
        if not ends(child, 0):
            os.kill(int(child), signal.SIGKILL)
