import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolchain.cli import MENDABLE, toolchain


@pytest.mark.parametrize("number", MENDABLE)
def test_a_place_that_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch, main: Callable[..., Any], number: int
) -> None:
    """What a file system refuses names the file and what to do, and exits 2."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "some/place")

    monkeypatch.setattr(toolchain, "main", refuse)
    done = main("list")
    assert done.code == 2 and done.err.startswith("toolchain: some/place: ") and done.err.count("\n") == 1
    assert errno.EEXIST in MENDABLE


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ModuleNotFoundError(name="torch"), 2, "pip install '.[host]'"),
    ],
)
def test_other_endings(
    monkeypatch: pytest.MonkeyPatch, main: Callable[..., Any], error: BaseException, code: int, says: str
) -> None:
    """Ctrl-C promises nothing that not every command keeps; a missing package is named with its extra."""

    def end(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(toolchain, "main", end)
    done = main("list")
    assert done.code == code and says in done.err and done.err.count("\n") == 1


def test_the_command_alone_prints_its_help(main: Callable[..., Any]) -> None:
    """`toolchain` without a word is `toolchain --help`, line by line."""
    done, asked = main(), main("--help")
    assert done == asked and done.code == 0 and done.out.count("\n") > 15


def heed_interrupts() -> None:
    """A child of a shell's background job ignores SIGINT; a terminal's does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("wait", [0.05, 0.1, 0.2, 0.4, 0.8, 2.0])
def test_ctrl_c_is_answered_from_the_first_moment(tmp_path: Path, wait: float) -> None:
    """Interrupted while it imports, a command ends with 130 and the one line."""
    ready = tmp_path / "ready"
    # Runs before our first module, as the interpreter's own start does: what comes after is ours to answer.
    start = f"import runpy, sys; open({str(ready)!r}, 'w').close(); sys.argv = ['toolchain', *sys.argv[1:]]; "
    start += "import toolchain.__main__ as us; us.main()"
    running = subprocess.Popen(
        [sys.executable, "-c", start, "demo", "short"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
        cwd=tmp_path,
        env={
            **os.environ,
            "XDG_CACHE_HOME": str(tmp_path),
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        },
    )
    while not ready.exists():
        time.sleep(0.002)
    time.sleep(wait)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("toolchain: interrupted")


def test_an_interrupt_that_comes_out_as_another_error_is_one(
    monkeypatch: pytest.MonkeyPatch, main: Callable[..., Any]
) -> None:
    """Inside an extension's import Ctrl-C becomes an ImportError: the user still reads what they did."""

    def end(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr(toolchain, "main", end)
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)
    before = signal.getsignal(signal.SIGINT)
    done = main("list")
    assert (done.code, done.err) == (130, "toolchain: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("snapshot", [True, False])
def test_a_stopped_training_says_how_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, main: Callable[..., Any], tmp_path: Path, snapshot: bool
) -> None:
    """After Ctrl-C the last line tells of the snapshot that the same command goes on from, where there is one."""
    from devices.files import staging_path
    from toolchain.compress import run
    from toolchain.compress.unfinished import WORK

    def stop(_: str, out: Path, **__: object) -> None:
        if snapshot:
            (staging_path(out) / WORK / "snapshots" / "checkpoint-5").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "compress", stop)
    done = main("compress", "x", "--layers", 2, "--train", "distill", "--out", tmp_path / "out")
    hint = "; the same command goes on from its last snapshot" if snapshot else ""
    assert done.code == 130 and done.err.strip() == f"toolchain: interrupted{hint}"


def test_a_stopped_demo_and_stopped_tasks_say_how_they_go_on(
    monkeypatch: pytest.MonkeyPatch, main: Callable[..., Any], tmp_path: Path
) -> None:
    """What is finished when Ctrl-C comes is not lost, and the last line says so."""
    from toolchain import demo
    from toolchain.glue import run

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "demo", stop)
    monkeypatch.setattr(run, "glue", stop)
    assert "interrupted; the same command goes on" in main("demo").err
    command = ("glue", "x", "--task", "a,b", "--out", tmp_path)
    assert main(*command).err.strip() == "toolchain: interrupted"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "glue.json").touch()
    assert "interrupted; the same command goes on" in main(*command).err


@pytest.mark.parametrize(("tokenizer", "says"), [(True, "generate"), (False, "bench")])
def test_what_export_says_comes_next_works(
    gpt2_checkpoint: Path,
    main: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: bool,
    says: str,
) -> None:
    """The line after "next:" is a command that works as printed, wherever the artifact lies."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(gpt2_checkpoint, "model")
    if not tokenizer:
        Path("model/tokenizer.json").unlink()
    done = main("export", "model", "--no-parity", "--out", "it's an artifact")
    assert done.code == 0, done.err
    name, command, *words = shlex.split(done.out.splitlines()[-1].removeprefix("next: "))
    assert (name, command) == ("toolchain", says)
    short = ["--max-new-tokens", 2] if tokenizer else ["--rounds", 1, "--threads", 1]
    assert main(command, *words, *short).code == 0


def test_what_comes_next_for_a_classifier_repeats_what_it_was_held_to() -> None:
    """A classifier's next command names the task's place only where the export was told it."""
    from toolchain.cli.export import _next

    manifest = {"kind": "classifier", "files": {"tokenizer.json": {}}}
    assert _next(manifest, Path("a b"), None, None) == "toolchain evaluate 'a b'"
    assert _next(manifest, Path("a"), None, Path("x y")) == "toolchain evaluate a --data 'x y'"


def test_a_gguf_file_is_compressed_before_it_is_exported(main: Callable[..., Any], tmp_path: Path) -> None:
    """A file that `compress` takes is not called missing by `export`, which says what to do with it."""
    (tmp_path / "x.gguf").touch()
    done = main("export", tmp_path / "x.gguf", "--out", tmp_path / "out")
    assert done.code == 2 and "is a file" in done.err and "compress it first" in done.err


def test_a_full_disk_is_named_and_not_what_was_read(
    monkeypatch: pytest.MonkeyPatch, main: Callable[..., Any], tmp_path: Path
) -> None:
    """A copy that finds no room names the file it could not write; the demo's teacher is whole or not there."""
    copy = shutil.copyfile

    def full(source: Path, target: Path) -> None:
        if target.suffix != ".safetensors":
            copy(source, target)
            return
        try:
            copy(source, "/dev/full")
        except OSError as error:
            error.filename, error.filename2 = str(source), str(target)  # as for a file on a disk
            raise

    monkeypatch.setattr(shutil, "copyfile", full)
    done = main("demo", "short", "--out", tmp_path / "out")
    assert done.code == 2 and "Traceback" not in done.err
    last = done.err.strip().splitlines()[-1]
    assert last.startswith(f"toolchain: {tmp_path / 'out'}") and "no space left on device" in last
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["steps.json"]
