"""What stands between ssh and a worker."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from devices.process import environment
from devices.supervisor import MARK

STARTS = "import sys; from devices import supervisor; supervisor.PATIENCE = {}; sys.exit(supervisor.main({!r}, 'work'))"


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`supervised(code, patience)`: a supervisor whose worker is `code`, with pipes."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started = []

    def start(code: str, patience: float = 30.0) -> subprocess.Popen[str]:
        (tmp_path / "work.py").write_text(code)
        line = [sys.executable, "-c", STARTS.format(patience, sys.executable)]
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment())
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


ECHO = "import sys; print('one'); print(sys.stdin.read().strip()); print('no end', end='')"
SLEEPS = """
import os, sys, time
sys.stdin.read()
open('{}', 'w').write(str(os.getpid()))
time.sleep(60)
"""


def test_every_line_is_marked(supervised) -> None:
    """The worker's lines come behind the mark, each on a line of its own; the request reaches it, signs of life not."""
    process = supervised(ECHO)
    process.stdin.write('\n{"a": 1}\n')
    process.stdin.flush()
    out = process.stdout.read()
    assert process.wait() == 0
    assert [line for line in out.splitlines() if line] == [MARK + t for t in ("one", '{"a": 1}', "no end")]


def test_a_large_request_and_answer(supervised) -> None:
    """Megabytes either way neither block nor are cut."""
    process = supervised("import sys; text = sys.stdin.read(); sys.stderr.write(text); print(text.strip())")
    out, _ = communicate(process, "x" * 3_000_000 + "\n")
    assert len(out.strip()) == len(MARK) + 3_000_000


def communicate(process: subprocess.Popen[str], request: str) -> tuple[str, str]:
    """Write a request, keep standard input open until all is read."""
    process.stdin.write(request)
    process.stdin.flush()
    return process.stdout.read(), ""


@pytest.mark.parametrize(
    ("code", "ended", "said"),
    [
        ("import sys; sys.stderr.write('a: b; c\\n'); sys.exit(2)", 2, "a: b; c\n"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("print('half'); raise SystemExit(7)", 7, ""),
    ],
)
def test_a_bad_end_is_said(supervised, code: str, ended: int, said: str) -> None:
    """A last line tells exit code or signal, and what was on standard error."""
    out, _ = communicate(supervised(code), "{}\n")
    last = out.strip().splitlines()[-1].removeprefix(MARK)
    assert json.loads(last) == {"ended": ended, "said": said}


@pytest.mark.parametrize("how", ["closed", "silent", "killed"])
def test_the_worker_ends_with_the_connection(
    supervised, tmp_path: Path, how: str, ends: Callable[[str, float], bool]
) -> None:
    """Standard input that ends, silence on it, or the supervisor's own death: the worker is killed."""
    sign = tmp_path / "pid"
    process = supervised(
        "from devices.process import end_with; import sys; end_with(int(sys.argv[1]))" + SLEEPS.format(sign),
        1.0 if how == "silent" else 30.0,
    )
    process.stdin.write("{}\n")
    process.stdin.flush()
    deadline = time.monotonic() + 30
    while not (sign.exists() and sign.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    if how == "closed":
        process.stdin.close()
        process.stdin = None
    if how == "killed":
        process.kill()
    assert ends(sign.read_text(), 20)


def test_signs_of_life_keep_it(supervised) -> None:
    """As long as lines come, a worker that takes longer than the patience goes on."""
    process = supervised("import time; time.sleep(3); print('done')", 1.5)
    process.stdin.write("{}\n")
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("\n")
            process.stdin.flush()
        time.sleep(0.3)
    assert f"{MARK}done" in process.stdout.read()


def test_no_request_no_worker(supervised, tmp_path: Path) -> None:
    """A connection that ends before the request came whole starts nothing."""
    process = supervised(f"open({str(tmp_path / 'ran')!r}, 'w')")
    process.stdin.write('{"half": ')
    process.stdin.close()
    process.stdin = None
    assert process.wait(30) == 1 and not (tmp_path / "ran").exists()
