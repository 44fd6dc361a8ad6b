"""How a device is reached: a module for each kind of profile, all with the same functions.

    command(profile, module, *arguments) -> list[str]
        The local command line that runs our `module` there, standard input and output passed through. There it
        gets the id of the process that starts it first, for `devices.process.end_with`, then `arguments`.
    environment(profile) -> dict[str, str]
        The variables of that command line.
    put(profile, artifact, say) -> str
        The path of the artifact there, pushed and verified where it was not there yet.
    put_text(profile, path, sha256, say) -> str
        The same for a text file.
    check(profile) -> list[Finding]
        What the device is and what it lacks.
    setup(profile, say) -> None
        Make it able to run our modules; done again, it mends.
    clean(profile, say) -> None
        Remove everything that setup and put left there, and say how much that was.

A module whose processes print what is not ours has MARK, which every line of ours begins with, and one whose
local command line fails in ways of its own has failure(profile, code, stderr) -> UserError.

`say` takes a line for the user. All raise UserError, one line that names the device.
"""

import importlib
from types import ModuleType
from typing import Any, NamedTuple

from devices.profiles import Profile

MODULES = {"local": "devices.local", "ssh": "devices.ssh", "emulated": "devices.emulated"}


class Finding(NamedTuple):
    """A line of `toolchain devices check`: not `ok` is something missing, and `hint` says what mends it."""

    what: str
    value: Any
    ok: bool = True
    hint: str = ""


def of(profile: Profile) -> ModuleType:
    """The module that reaches this kind of device."""
    return importlib.import_module(MODULES[profile.kind])
