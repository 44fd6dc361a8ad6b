"""An environment of its own for each peer, below the cache folder, with pinned versions."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
LOG, STAMP = "install.log", "ready"
# llama.cpp is compiled where it runs, for the processor it finds, without the parts that read pictures.
BUILD = {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF"}


def python_of(folder: Path, peer: str) -> Path:
    """The interpreter of a peer's environment."""
    return folder / peer / "bin" / "python"


def install(folder: Path, peer: str, index: str, say: Callable[[str], None]) -> str | None:
    """Make the environment of `peer` below `folder` unless it stands; None, or why it could not be made.

    `index` is an index that has the CPU build of torch, or empty. What pip and the compiler said is in
    the environment's install.log.
    """
    wanted = HERE / "requirements" / f"{peer}.txt"
    stamp, home = hashlib.sha256(wanted.read_bytes()).hexdigest(), folder / peer
    if (home / STAMP).is_file() and (home / STAMP).read_text() == stamp:
        return None
    say(f"{peer}: installing into {home}" + (", compiling takes minutes" if peer == "llama.cpp" else ""))
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    python = str(python_of(folder, peer))
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    torch = [line for line in wanted.read_text().splitlines() if line.startswith("torch==")]
    steps = [[sys.executable, "-m", "venv", str(home)]]
    # torch first and from the index that is named, so that no other package pulls in the CUDA build.
    if torch:
        steps.append([*pip, *(["--extra-index-url", index] if index else []), *torch])
    steps.append([*pip, "-r", str(wanted)])
    with (home / LOG).open("w") as log:
        for step in steps:
            if subprocess.run(step, stdout=log, stderr=log, env={**os.environ, **BUILD}).returncode:
                say(f"{peer}: failed; what was said is in {home / LOG}")
                return f"cannot be installed ({_last_error(home / LOG)})"
    (home / STAMP).write_text(stamp)
    return None


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["nothing was said"])[-1][:160]


def versions(folder: Path, peer: str) -> dict[str, str]:
    """What is installed in a peer's environment, by package."""
    command = [str(python_of(folder, peer)), "-m", "pip", "list", "--format=freeze"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return dict(line.split("==", 1) for line in said.splitlines() if "==" in line)
