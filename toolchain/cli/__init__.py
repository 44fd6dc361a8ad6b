"""The `toolchain` command: names, exit codes and nothing heavy; each subcommand is a module of this folder."""

import errno
import importlib
import os
import sys
from typing import Any

import click

from devices.errors import CheckFailed, UserError, install, unknown
from toolchain import __version__

# In the order in which a model passes through them. Each module holds one click command named `command`.
COMMANDS = (
    "demo",
    "pretrain",
    "compress",
    "glue",
    "export",
    "generate",
    "evaluate",
    "bench",
    "report",
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
    try:
        sys.exit(toolchain.main(argv, prog_name="toolchain", standalone_mode=False) or 0)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except UserError as error:
        _fail(str(error), 2)
    except CheckFailed as error:
        _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ROOMS:
            raise
        _fail(f"this needs {missing}, which is not installed; {install('host')}", 2)
    except MemoryError:
        _fail("out of memory; use a smaller model, batch or window, or a machine with more", 2)
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{os.strerror(error.errno).lower()}; {MENDABLE[error.errno]}", 2)


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


def _fail(message: str, code: int) -> None:
    click.echo(f"toolchain: {' '.join(message.split())}", err=True)
    sys.exit(code)
