"""Packages for a board without internet: downloaded here, for the board's processor and Python."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devices.errors import UserError
from devices.files import cache_folder, make_cache, sha256
from devices.profiles import Profile

OLDEST = 17  # glibc 2.17, manylinux2014


def platforms(machine: str, libc: str) -> list[str]:
    """pip's platform tags for a glibc 2.N: that one's and every older one's (PEP 600)."""
    minor = int(libc.split(".")[1])
    tags = [f"manylinux_2_{n}_{machine}" for n in range(minor, OLDEST - 1, -1)]
    return [*tags, f"manylinux2014_{machine}", f"linux_{machine}"]


def download(
    profile: Profile,
    found: dict[str, str],
    wanted: list[str],
    options: list[str],
    say: Callable[[str], None],
) -> tuple[Path, dict[str, Any]]:
    """A folder of wheels of `wanted` and all that they need, for what `look` found; and a listing of its files.

    `options` go to pip, which is this environment's. UserError where it cannot get them.
    """
    version, _, *libc = found["python"].split()
    if libc[:1] != ["glibc"]:
        raise UserError(
            f"{profile.name}: has no glibc, and there are no wheels for it; install by hand there"
        )
    tag = "".join(version.split(".")[:2])
    folder = make_cache(cache_folder("wheels", f"{found['machine']}-cp{tag}-glibc{libc[1]}"))
    say(f"{profile.name}: downloading packages here, for {found['machine']} and Python {version}")
    line = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    line += ["--dest", str(folder), "--only-binary=:all:", "--implementation", "cp", "--python-version", tag]
    line += [word for name in platforms(found["machine"], libc[1]) for word in ("--platform", name)]
    line += ["--abi", f"cp{tag}", "--abi", "abi3", "--abi", "none"]
    done = subprocess.run([*line, *options, *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UserError(f"{profile.name}: the packages could not be downloaded here: {last[:300]}")
    files = _newest(folder)
    return folder, {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in files}


def _newest(folder: Path) -> list[Path]:
    """Of each package the newest wheel: what an earlier download left behind is removed."""
    from packaging.utils import parse_wheel_filename

    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.whl"), key=lambda path: parse_wheel_filename(path.name)[1]):
        name = parse_wheel_filename(path.name)[0]
        if name in found:
            found[name].unlink()
        found[name] = path
    return sorted(found.values())
