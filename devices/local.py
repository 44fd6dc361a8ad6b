"""This machine as a device: processes of our own, and artifacts where they lie. Functions as devices.reach has them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devices import process
from devices.artifact import Artifact
from devices.errors import install
from devices.probe import probe
from devices.profiles import Profile
from devices.reach import Finding


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
    return findings(profile, probe(), install("base"))


def findings(profile: Profile, about: dict[str, Any], hint: str) -> list[Finding]:
    """What devices.probe says of a device, a line each; `hint` mends a package that does not import."""
    lines = [Finding(key, value) for key, value in about["environment"].items()]
    lacking = sorted(set(profile.isa or ()) - set(about["environment"]["isa"] or ()))
    if lacking:  # recipes are chosen by what the profile says
        cure = f"correct isa in {profile.path}"
        lines.append(Finding("isa of the profile", f"not there: {' '.join(lacking)}", False, cure))
    imports = about["imports"].items()
    return lines + [Finding(f"import {name}", text, ok, hint) for name, (ok, text) in imports]


def setup(profile: Profile, say: Callable[[str], None]) -> None:
    """Nothing: what runs this command is what runs here."""
    say(f"{profile.name}: is this machine; there is nothing to set up")


def clean(profile: Profile, say: Callable[[str], None]) -> None:
    """Nothing was put anywhere."""
    say(f"{profile.name}: is this machine, and nothing was put on it")
