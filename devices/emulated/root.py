"""An arm64 root to emulate in: Debian's Python and C libraries, ONNX Runtime's wheels, and our plugin.

No root rights are needed and no arm64 code is run: apt resolves, downloads and verifies packages with lists of its
own, dpkg-deb unpacks them, pip fetches wheels for a platform that is not this one. (mmdebstrap would do the first two,
with user namespaces, which containers often forbid.) Everything lies in the cache folder `arm64`, about 210 MB:

    root/ARCHIVE     75 MB, from 16 MB of packages and 19 MB of lists
    site/VERSIONS   130 MB, from 45 MB of wheels: the versions that this machine has
    plugin/HASH      the plugin, compiled from the source beside this file
    cpu/NAME         links into root, and what describes the processor

Each is moved in whole when it is done; setup makes those that are missing.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from devices.emulated.cpu import describe, processor
from devices.errors import UserError
from devices.files import cache_folder, make_cache, sha256, staged
from devices.machine import version

Say = Callable[[str], None]

RELEASE, MIRROR = "bookworm", "http://deb.debian.org"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = ("python3-minimal", "libpython3.11-stdlib", "libstdc++6", "libgomp1")
PYTHON = "usr/bin/python3.11"
SITE_PACKAGES = ("numpy", "onnxruntime", "tokenizers")  # what a worker imports
PLATFORMS = tuple(f"manylinux{tag}_aarch64" for tag in ("_2_28", "_2_27", "_2_17", "2014"))
SOURCES = ("instructions.c", "qemu_plugin.h")
QEMU = "qemu-aarch64"
# Programs, the Debian package each is in, and whether a finished root still needs it.
TOOLS = (
    *((QEMU, "qemu-user", True), ("setarch", "util-linux", True)),
    *(("apt-get", "apt", False), ("dpkg-deb", "dpkg", False), ("gcc", "gcc libc6-dev", False)),
)


def folder() -> Path:
    """Where all of it lies."""
    return cache_folder("arm64")


def base() -> Path:
    """Debian's part."""
    return folder() / "root" / RELEASE


def versions() -> dict[str, str | None]:
    """The packages that are wanted there: as this machine has them, so that the two can be compared."""
    return {name: version(name) for name in SITE_PACKAGES}


def site() -> Path:
    """Where those versions lie."""
    return folder() / "site" / "+".join(f"{name}-{found}" for name, found in versions().items())


def plugin() -> Path:
    """The plugin that this source makes."""
    digest = hashlib.sha256("".join(sha256(_source(name)) for name in SOURCES).encode()).hexdigest()
    return folder() / "plugin" / digest[:12] / "instructions.so"


def of(cpu: str) -> Path:
    """The root for a processor."""
    return folder() / "cpu" / cpu


def missing(cpu: str) -> str | None:
    """What keeps the root from being used, in a few words; None where it is whole."""
    processor(cpu)
    wanted = {
        "Debian's packages": base() / PYTHON,
        f"{', '.join(f'{name} {found}' for name, found in versions().items())}": site() / SITE_PACKAGES[-1],
        "the plugin": plugin(),
        "the processor's description": of(cpu) / "proc/cpuinfo",
    }
    absent = [what for what, path in wanted.items() if not path.exists()]
    return ", ".join(absent) or None


def tools(finished: bool) -> str | None:
    """The command that installs the programs that are not here; None where none is needed."""
    wanted = [(name, package) for name, package, always in TOOLS if always or not finished]
    absent = [package for name, package in wanted if shutil.which(name) is None]
    if not finished and not Path(KEYRING).exists():
        absent.append("debian-archive-keyring")
    return f"sudo apt-get install {' '.join(absent)}" if absent else None


def make(cpu: str, say: Say) -> None:
    """Make whatever is missing; UserError for a program that is not here or a registry that does not answer."""
    processor(cpu)
    if mend := tools(finished=False):
        raise UserError(f"{cpu}: programs are missing here; run: {mend}")
    make_cache(folder())
    for whole, place, step in (
        (base() / PYTHON, base(), _debian),
        (site() / SITE_PACKAGES[-1], site(), _wheels),
        (plugin(), plugin().parent, _compile),
    ):
        if not whole.exists():
            shutil.rmtree(place, ignore_errors=True)  # somebody has taken from it
            with staged(place) as staging:
                step(staging, say)
    if not (of(cpu) / "proc/cpuinfo").exists():
        shutil.rmtree(of(cpu), ignore_errors=True)
        with staged(of(cpu)) as staging:
            describe(cpu, staging)
            for entry in sorted(base().iterdir()):
                (staging / entry.name).symlink_to(os.path.relpath(entry, of(cpu)))


def _debian(root: Path, say: Say) -> None:
    """Unpack PACKAGES and what they depend on; downloads survive an interrupt."""
    say(f"arm64 packages of Debian {RELEASE}: 35 MB to download ...")
    apt = folder() / "apt"
    options = _apt_options(apt)
    _run(["apt-get", *options, "--quiet", "update"], "apt-get update")
    _run(["apt-get", *options, "--quiet", "--yes", "--download-only", "install", *PACKAGES], "apt-get")
    packages = sorted((apt / "archives").glob("*.deb"))
    say(f"unpacking {len(packages)} packages ...")
    for package in packages:
        _run(["dpkg-deb", "--extract", str(package), str(root)], f"unpacking {package.name}")
    shutil.rmtree(apt)


def _apt_options(apt: Path) -> list[str]:
    """apt with lists, archives and a status file of its own below `apt`, for arm64 alone."""
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    suites = (
        ("debian", RELEASE),
        ("debian", f"{RELEASE}-updates"),
        ("debian-security", f"{RELEASE}-security"),
    )
    lines = (
        f"deb [arch=arm64 signed-by={KEYRING}] {MIRROR}/{where} {suite} main\n" for where, suite in suites
    )
    (apt / "sources.list").write_text("".join(lines), encoding="utf-8")
    settings = {
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": apt,
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt,
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",  # as root, apt would otherwise download as a user who cannot write here
        "APT::Install-Recommends": "false",
        "APT::Update::Post-Invoke-Success": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Debug::NoLocking": "true",
    }
    return [word for key, value in settings.items() for word in ("--option", f"{key}={value}")]


def _wheels(target: Path, say: Say) -> None:
    """Unpack the wheels; without what they depend on, none of which inference imports."""
    wanted = versions()
    if absent := [name for name, found in wanted.items() if found is None]:
        raise UserError(
            f"{', '.join(absent)} is not installed here, so no version is known; install it first"
        )
    say(f"aarch64 wheels of {', '.join(wanted)}: 45 MB to download ...")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    python = ["--python-version", "3.11", "--implementation", "cp", "--only-binary=:all:"]
    abis = [word for name in ("cp311", "abi3", "none") for word in ("--abi", name)]
    pins = [f"{name}=={found}" for name, found in wanted.items()]
    place = ["--no-compile", "--upgrade", "--target", str(target)]
    _run([*pip, *place, *platforms, *python, *abis, *pins], "pip")


def _compile(target: Path, say: Say) -> None:
    say("compiling the plugin that counts instructions ...")
    flags = ["-O2", "-shared", "-fPIC", "-fvisibility=hidden"]
    _run(["gcc", *flags, "-o", str(target / "instructions.so"), str(_source("instructions.c"))], "gcc")


def _source(name: str) -> Path:
    return Path(__file__).with_name(name)


def _run(command: Sequence[str], what: str) -> None:
    """Run a command to its end; UserError with its own last word of complaint."""
    quiet = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command,
        env=quiet,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = (
            [line for line in lines if line.lower().startswith(("e:", "error"))] or lines or ["no word why"]
        )
        raise UserError(f"{what} failed ({errors[-1][:300]}); mend that and run the setup again: it goes on")
