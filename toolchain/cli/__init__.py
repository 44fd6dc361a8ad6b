"""The `toolchain` command: names, exit codes and nothing heavy; each subcommand is a module of this folder."""

import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import click

from devices.errors import CheckFailed, UserError, install, unknown
from toolchain import __version__

# In the order in which a model passes through them. Each module holds one click command named `command`.
COMMANDS = (
    "demo",
    "clean",
    "pretrain",
    "compress",
    "glue",
    "export",
    "generate",
    "evaluate",
    "bench",
    "report",
    "run",
    "devices",
    "list",
    "doctor",
)
ROOMS = ("toolchain", "export", "bench", "devices")
MODULES = {"list": "list_", **{name: name for name in COMMANDS if name != "list"}}


class Rooms(click.Group):
    """A group whose commands are imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Command names, in the order of the pipeline."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command's module's `command`; an unknown name is answered with the near ones."""
        if name not in MODULES:
            raise unknown("command", name, COMMANDS)
        module = importlib.import_module(f"toolchain.cli.{MODULES[name]}")
        return module.command


@click.command(cls=Rooms, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="toolchain")
def toolchain() -> None:
    """Make a decoder language model small, and prove what it costs and what it is still worth.

    \b
    teacher --compress--> student --export--> artifact --bench, evaluate--> result --report--> page
    """


def main(argv: list[str] | None = None) -> Any:
    """Run the command line; exits 0, 1 (a check did not hold), 2 (the user can mend it) or 130 (Ctrl-C)."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    asked = (sys.argv[1:] if argv is None else argv) or ["--help"]
    with _interrupts() as pressed:
        try:
            sys.exit(toolchain.main(asked, prog_name="toolchain", standalone_mode=False) or 0)
        except (click.Abort, KeyboardInterrupt) as error:
            _interrupted(error)
        except Exception as error:
            if pressed:  # inside an extension module's import, an interrupt comes out as another error
                _interrupted(error)
            _end(error)
            raise


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that is not empty once Ctrl-C was pressed, which raises KeyboardInterrupt as it always does.

    From then on nothing prints a traceback: an extension module that is stopped in its import would.
    """
    pressed: list[int] = []
    hooks = sys.excepthook, sys.unraisablehook

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        sys.excepthook, sys.unraisablehook = _silent, _silent
        signal.default_int_handler(number, frame)

    heeded = signal.getsignal(signal.SIGINT)
    if heeded in (signal.SIG_IGN, None) or threading.current_thread() is not threading.main_thread():
        yield pressed  # a shell's background job is not interrupted, and another thread is not asked
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, heeded)
        sys.excepthook, sys.unraisablehook = hooks


def _silent(*_: object) -> None:
    """A hook that prints nothing."""


def _interrupted(error: BaseException) -> NoReturn:
    """Say so, with what the command that was stopped (toolchain/cli/options.py: `told`) had to say to it."""
    cause = error.__cause__ if isinstance(error, click.Abort) else error
    hint = f"; {cause}" if isinstance(cause, KeyboardInterrupt) and str(cause) else ""
    _fail(f"interrupted{hint}", 130)


def _end(error: Exception) -> None:
    """Exit with one line for what the user can mend; return for anything else."""
    match error:
        case click.ClickException():
            _fail(error.format_message(), error.exit_code)
        case UserError():
            _fail(str(error), 2)
        case CheckFailed():
            _fail(str(error), 1)
        case BrokenPipeError():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        case ModuleNotFoundError():
            missing = (error.name or "").partition(".")[0]
            if missing not in ROOMS:
                _fail(f"this needs {missing}, which is not installed; {install('host')}", 2)
        case MemoryError():
            _fail("out of memory; use a smaller model, batch or window, or a machine with more", 2)
        case OSError(errno=number) if number in MENDABLE:
            # Of a copy, the file that is read comes first; what cannot be written is the other one.
            place = error.filename2 or error.filename
            where = f"{place}: " if place else ""
            _fail(f"{where}{os.strerror(number).lower()}; {MENDABLE[number]}", 2)


MENDABLE = {
    errno.ENOSPC: "free some disk or choose an --out on another one",
    errno.EDQUOT: "free some of your disk quota or choose an --out elsewhere",
    errno.EACCES: "choose a place you may read and write",
    errno.EPERM: "choose a place you may read and write",
    errno.EROFS: "choose a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EEXIST: "a file stands where a folder is needed; choose another place",
    errno.ENOTDIR: "part of the path is a file",
    errno.EISDIR: "a folder stands where a file is needed",
}


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"toolchain: {' '.join(message.split())}", err=True)
    sys.exit(code)
