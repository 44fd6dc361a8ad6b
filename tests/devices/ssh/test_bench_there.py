"""A benchmark on a board: `toolchain bench --device`, and what becomes of it when something ends in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devices.process import environment

WORKER = "bench.worker"


def heed():
    """A group of its own, as a terminal gives it; a child of a shell's background job ignores SIGINT."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def bench(ready, decoder_folder, tmp_path):
    """`bench(rounds, ...)` starts the command on the board, its results going to tmp_path/out."""
    running = []

    def start(rounds, *options):
        line = [sys.executable, "-m", "toolchain", "bench", str(decoder_folder), "--threads", "1"]
        line += ["--device", str(ready.profile_path), "--rounds", str(rounds), "--out", str(tmp_path / "out")]
        pipe = subprocess.PIPE
        running.append(
            subprocess.Popen(
                [*line, *options],
                stdout=pipe,
                stderr=pipe,
                text=True,
                env=environment(),
                cwd=tmp_path,
                preexec_fn=heed,
            )
        )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def workers(board, module=WORKER):
    """Processes that run our `module` behind the board's sshd, the supervisor not counted."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
            there = f"PYTHONPATH={board.folder}/code" in path.with_name("environ").read_text()
        except (OSError, UnicodeDecodeError):
            continue
        if (
            there
            and "-m" in words
            and words[words.index("-m") + 1] == module
            and state(path.parent) not in "ZX"
        ):
            found.append(int(path.parent.name))
    return found


def state(process):
    """A process's state, a letter."""
    return (process / "stat").read_text().rpartition(")")[2].split()[0]


def words(pid):
    """The words of the command lines of a process's children that hold its connection."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = [Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0") for child in children]
    return next(line for line in lines if "ControlMaster=yes" in line)


def until(true, seconds=60):
    """What `true()` comes to, in time."""
    deadline = time.monotonic() + seconds
    while not (held := true()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held


def kept(tmp_path):
    """The answers that were kept."""
    return [line for file in tmp_path.glob(".out.rounds-*.jsonl") for line in file.read_text().splitlines()]


def one_line(process):
    """The last line on stderr of a command that ended with 2."""
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in err, err
    return err.strip().splitlines()[-1]


def test_a_result_from_a_board(bench, ready, tmp_path, corpus_file):
    """The result is the board's, quality included, and no worker, no answer kept and nothing else stays behind."""
    running = bench(2, "--corpus", str(corpus_file), "--window", "16", "--blocks", "2")
    _, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    (path,) = (tmp_path / "out").iterdir()
    result = json.loads(path.read_text())
    assert path.name == "tiny-decoder--board--chat.json" and result["device"]["name"] == "board"
    assert result["rounds"] == 2 and result["quality"]["perplexity"]["blocks"] == 2
    assert not list(tmp_path.glob(".out*")) and until(lambda: not workers(ready), 10)


def test_a_cut_connection_keeps_what_is_done(bench, ready, tmp_path):
    """In the middle every connection's server is killed: one line, exit 2, the worker there ends, and the same
    command goes on with the rounds that were finished."""
    running = bench(200)
    assert until(lambda: len(kept(tmp_path)) >= 2 and workers(ready))
    ready.cut()
    said = one_line(running)
    done = len(kept(tmp_path))
    assert said.startswith("toolchain: board: the connection was lost")
    assert "kept, the same command goes on" in said and f"{done} answer" in said
    assert until(lambda: not workers(ready) and not workers(ready, "devices.supervisor"), 20)
    assert not (tmp_path / "out").exists()
    again = bench(done)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0 and f"{done} answers of a run that was cut off are used" in err
    assert kept(tmp_path) == [] and len(list((tmp_path / "out").glob("*.json"))) == 1


def test_a_board_that_goes_away_between_rounds(bench, ready, tmp_path):
    """A board that reboots and does not answer any more: one line as well."""
    running = bench(200)
    assert until(lambda: len(kept(tmp_path)) >= 1 and workers(ready))
    ready.stop()
    assert "board: " in one_line(running) and kept(tmp_path)


@pytest.mark.parametrize("module", [WORKER, "devices.supervisor"])
def test_a_killed_worker(bench, ready, tmp_path, module):
    """A worker that the board's kernel kills for its memory is told as such; its supervisor, as a lost connection."""
    running = bench(200)
    assert until(lambda: len(kept(tmp_path)) >= 1 and (found := workers(ready, module)) and kill(found[0]))
    said = one_line(running)
    expected = "was ended by SIGKILL; out of memory?" if module == WORKER else "the connection was lost"
    assert "tiny on board: the worker " + expected in said or (module != WORKER and expected in said)
    assert "kept, the same command goes on" in said and until(lambda: not workers(ready), 20)


def kill(pid):
    """Kill a process that may have ended; whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, "Ctrl-C"])
def test_nothing_lives_on_there(bench, ready, tmp_path, sign):
    """However the command here ends, the worker there ends too, and so does the connection, here as well."""
    running = bench(200)
    assert until(lambda: len(kept(tmp_path)) >= 1 and workers(ready))
    (folder,) = (Path(line[12:]).parent for line in words(running.pid) if line.startswith("ControlPath="))
    if sign == "Ctrl-C":
        os.killpg(running.pid, signal.SIGINT)
    else:
        running.send_signal(sign)
    _, err = running.communicate(timeout=60)
    assert until(lambda: not workers(ready) and not workers(ready, "devices.supervisor"), 20)
    assert until(lambda: not ready.sessions(), 20)
    assert until(lambda: not folder.exists(), 20)
    if sign != signal.SIGKILL:
        assert running.returncode == 130 and "kept, the same command goes on" in err


def test_an_error_of_the_worker_is_its_line(bench, ready):
    """What the worker refuses on the board comes back as one line that names the board."""
    assert one_line(bench(1, "--threads", "9999")).startswith("toolchain: board: threads is 9999")
