"""ARM64 without a board: our modules in qemu's user mode, as a device. Functions as devices.reach has them.

What is computed there is what an ARM processor computes. What it costs is counted in instructions; seconds, energy
and memory would be the emulator's, and are null.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devices.artifact import Artifact
from devices.emulated import root
from devices.emulated.cpu import processor
from devices.errors import UserError
from devices.probe import INT8
from devices.process import HOME
from devices.profiles import Profile
from devices.reach import Finding

# What would make one run differ from the next: thread pools, hash seeds, ONNX Runtime's telemetry.
FIXED = {
    "LC_ALL": "C.UTF-8",
    "PYTHONUTF8": "1",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
PASSED = ("PATH", "TMPDIR")


def command(profile: Profile, module: str, *arguments: str) -> list[str]:
    """The command line that runs our `module` emulated; qemu reads it, the artifact and our code as they lie here."""
    cpu = _cpu(profile)
    if mend := root.tools(finished=True):
        raise UserError(f"{profile.name}: the emulator is not here; run: {mend}")
    if lacking := root.missing(cpu):
        raise UserError(f"{profile.name}: {lacking} missing; run: toolchain devices setup {_named(profile)}")
    return [*_python(cpu), "-P", "-m", module, str(os.getpid()), *arguments]


def environment(profile: Profile) -> dict[str, str]:
    """Few variables and always the same: what a program finds on its stack moves what it does by a little."""
    passed = {key: os.environ[key] for key in PASSED if key in os.environ}
    paths = {"PYTHONPATH": os.pathsep.join((str(root.site()), str(HOME))), "PYTHONDONTWRITEBYTECODE": "1"}
    return {
        **passed,
        **FIXED,
        **paths,
        "EMULATOR": emulator(),
        "HOME": str(root.folder()),
        "XDG_CACHE_HOME": str(root.folder() / "own"),
    }


def put(profile: Profile, artifact: Artifact, say: Callable[[str], None]) -> str:
    """Where the artifact lies: the emulator sees this machine's files."""
    return str(artifact.path.resolve())


def put_text(profile: Profile, path: Path, sha256: str, say: Callable[[str], None]) -> str:
    """Where the text lies."""
    return str(path.resolve())


def check(profile: Profile) -> list[Finding]:
    """What is missing, or what a process in there finds: the processor as programs see it, versions, imports."""
    cpu = _cpu(profile)
    if mend := root.tools(finished=True):
        return [Finding("emulator", "not here", False, f"run: {mend}")]
    found = [Finding("emulator", emulator())]
    if lacking := root.missing(cpu):
        hint = f"run: toolchain devices setup {_named(profile)}"
        return [*found, Finding("root", f"{lacking} missing", False, hint)]
    seen = _probe(profile)
    found += [Finding(key, value) for key, value in seen.items() if key not in ("expected", "counts")]
    found.append(Finding("int8", next(text for name, text in INT8.items() if name in seen["hwcap"])))
    told = set(seen["isa"] or ())
    if odd := set(profile.isa or ()) - told:
        found.append(
            Finding("isa", f"{', '.join(sorted(odd))} missing", False, "correct isa or cpu in the profile")
        )
    counts = "counted" if seen["counts"] else "not counted"
    return [
        *found,
        Finding("instructions", counts, seen["counts"], f"{emulator()} takes no plugin; {PLAIN_QEMU}"),
    ]


PLAIN_QEMU = "install Debian's qemu-user (the dynamic one)"


def setup(profile: Profile, say: Callable[[str], None]) -> None:
    """Make the root and all that belongs to it; then run our code in it once, which also writes its bytecode."""
    cpu = _cpu(profile)
    whole = root.missing(cpu) is None
    root.make(cpu, say)
    say(f"importing ONNX Runtime on {cpu} ...")
    seen = _probe(profile, PYTHONDONTWRITEBYTECODE="")
    if not seen["counts"]:
        raise UserError(f"{profile.name}: {emulator()} takes no plugin, so nothing is counted; {PLAIN_QEMU}")
    done = "was set up already" if whole else "is set up"
    say(
        f"{profile.name}: {done} in {root.folder()}; dot product {'yes' if 'asimddp' in seen['hwcap'] else 'no'}"
    )


def clean(profile: Profile, say: Callable[[str], None]) -> None:
    """Remove this processor's part; what all of them share goes with the last."""
    place = root.of(_cpu(profile))
    if not place.exists():
        raise UserError(f"{profile.name}: nothing is set up in {root.folder()}")
    shared = root.folder() if len(list(place.parent.iterdir())) == 1 else place
    size = sum(file.lstat().st_size for file in shared.rglob("*") if file.is_file() and not file.is_symlink())
    shutil.rmtree(shared)
    say(f"{profile.name}: removed {shared}, {size / 1e6:.0f} MB")


def emulator() -> str:
    """The emulator and its version, as a result and a baseline record them."""
    done = subprocess.run([root.QEMU, "--version"], capture_output=True, encoding="utf-8", check=False)
    return (done.stdout.splitlines() or ["unknown"])[0]


def wrapper(profile: Profile, path: Path) -> Path:
    """Write an executable that behaves as the device's Python: what a profile's `python` may name, behind ssh too.

    The base set is importable; whatever PYTHONPATH the caller sets stands before it.
    """
    fixed = {**FIXED, "HOME": "${HOME:-/}"}
    exports = "".join(f'export {key}="{value}"\n' for key, value in fixed.items())
    line = " ".join(map(shlex.quote, _python(_cpu(profile))))
    site = shlex.quote(str(root.site()))
    path.write_text(
        f"#!/bin/sh\n# {profile.name}: Python emulated.\n{exports}"
        f'export PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}"{site}\nexec {line} "$@"\n',
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def _python(cpu: str) -> list[str]:
    """Python, emulated: addresses and random numbers are the same each time."""
    place = root.of(cpu)
    emulated = [root.QEMU, "-cpu", cpu, "-seed", "1", "-plugin", str(root.plugin()), "-L", str(place)]
    return ["setarch", "-R", *emulated, str(place / root.PYTHON)]


def _cpu(profile: Profile) -> str:
    cpu = profile.settings["cpu"]
    try:
        processor(cpu)
    except UserError as error:
        raise UserError(f"{profile.name}: {error}") from None
    return cpu


def _named(profile: Profile) -> str:
    """What the user calls it: its name, or the file where that is not a shipped or configured one."""
    from devices.profiles import places

    return profile.name if profile.path is None or profile.path in places().values() else str(profile.path)


def _probe(profile: Profile, **variables: str) -> dict[str, Any]:
    """What devices.emulated.probe says there; UserError with its last line where it fails."""
    line = command(profile, "devices.emulated.probe")
    env = {**environment(profile), **variables}
    done = subprocess.run(line, env=env, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(
            f"{profile.name}: Python does not run there ({last[:300]}); "
            f"run toolchain devices clean {_named(profile)}, then setup"
        )
    return json.loads(done.stdout.splitlines()[-1])
