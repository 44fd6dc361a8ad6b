"""This machine as a device: processes of our own, and artifacts where they lie. Functions as devices.reach has them."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from devices import machine, process
from devices.artifact import Artifact
from devices.errors import install
from devices.profiles import Profile
from devices.reach import Finding

RUNTIME = ("onnxruntime", "numpy", "tokenizers")


def command(profile: Profile, module: str, *arguments: str) -> list[str]:
    """The command line that runs our `module` in a process that ends with this one."""
    return process.command(module, str(os.getpid()), *arguments)


def environment(profile: Profile) -> dict[str, str]:
    """This process's variables, with the rooms importable."""
    return process.environment()


def put(profile: Profile, artifact: Artifact, say: Callable[[str], None]) -> str:
    """Where the artifact lies."""
    return str(artifact.path)


def put_text(profile: Profile, path: Path, sha256: str, say: Callable[[str], None]) -> str:
    """Where the text lies."""
    return str(path)


def check(profile: Profile) -> list[Finding]:
    """This machine's processor, memory, versions; every package of the runtime is imported."""
    found = [Finding(key, value) for key, value in machine.environment().items()]
    return found + [_imports(package) for package in RUNTIME]


def _imports(package: str) -> Finding:
    import importlib

    try:
        importlib.import_module(package)
    except ImportError as error:
        return Finding(f"import {package}", str(error), False, install("base"))
    return Finding(f"import {package}", sys.modules[package].__version__)


def setup(profile: Profile, say: Callable[[str], None]) -> None:
    """Nothing: what runs this command is what runs here."""
    say(f"{profile.name}: is this machine; there is nothing to set up")


def clean(profile: Profile, say: Callable[[str], None]) -> None:
    """Nothing was put anywhere."""
    say(f"{profile.name}: is this machine, and nothing was put on it")
