import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from devices.errors import UserError
from devices.process import command, environment, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("file", ["devices.py", "devices/__init__.py"])
def test_a_file_in_the_users_folder_is_not_taken_for_ours(tmp_path: Path, file: str) -> None:
    """Our modules run as ours wherever the user happens to stand."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("raise SystemExit(3)")
    done = subprocess.run(command("devices.errors"), env=environment(), cwd=tmp_path, check=False)
    assert done.returncode == 0


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module called `written` that a process of ours finds, to be filled."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "written.py"


def test_a_process_is_told_who_started_it(written: Path) -> None:
    """Its arguments are the starting process's id, then those that were given."""
    written.write_text(f"import sys; sys.exit(sys.argv[1:] != ['{os.getpid()}', 'a', 'b c'])")
    run("written", ["a", "b c"], "x", "y")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            "import sys; print('noise\\nplace: cause; cure', file=sys.stderr); sys.exit(2)",
            "place: cause; cure",
        ),
        ("raise ValueError('odd')", "a: the work failed (ValueError: odd); do this"),
        ("raise SystemExit(7)", "a: the work failed (exit code 7); do this"),
        (
            "import os; os.kill(os.getpid(), 9)",
            "a: the work was ended by SIGKILL; out of memory? run it where there is more",
        ),
    ],
)
def test_a_process_that_fails_is_one_line(written: Path, code: str, says: str) -> None:
    """Its own line where it named a user's error, else its last one, or the signal that ended it."""
    written.write_text(code)
    with pytest.raises(UserError) as caught:
        run("written", [], "a: the work", "do this")
    assert str(caught.value) == says


STARTS = "from devices.process import run; run('written', [], 'x', 'y')"
WAITS = """
import sys, time
from pathlib import Path
from devices.process import end_with
{before}
end_with(int(sys.argv[1]))
{after}
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the signal is Linux's")
@pytest.mark.parametrize("ready", ["before", "after"])
def test_a_process_ends_with_the_one_that_started_it(
    tmp_path: Path, written: Path, ready: str, ends: Callable[[str, float], bool]
) -> None:
    """However that one is ended: before the process has asked for it, and after."""
    sign = tmp_path / "sign"
    steps = {"before": "", "after": "", ready: f"Path({str(sign)!r}).touch(); time.sleep(0.5)"}
    written.write_text(WAITS.format(**steps))
    parent = subprocess.Popen([sys.executable, "-c", STARTS], cwd=ROOT, env=environment())
    while not sign.exists():
        time.sleep(0.02)
    (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.kill()
    parent.wait(timeout=30)
    assert ends(child, 20)
