"""Is this installation whole? A line per check: what was found and, where it is bad, what to do."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from devices.errors import install
from devices.files import cache_folder
from devices.machine import environment, version

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

HOME = Path(__file__).resolve().parent.parent  # the folder that holds toolchain, export, bench and devices
ROOMS = ("export", "bench", "devices")
ISA_DOT = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm", "amx_int8")
# What stops working without a package; what is not named here is needed by all of its extra.
NEEDED_FOR = {
    "accelerate": "training",
    "altair": "report",
    "datasets": "compress --train, pretrain",
    "gguf": "GGUF teachers",
    "jinja2": "report",
    "jsonschema": "report",
    "onnx": "export",
    "onnx_ir": "export",
    "optimum": "compress",
    "requests": "compress (optimum imports it)",
    "safetensors": "compress, export",
    "scikit-learn": "glue",
    "scipy": "glue",
    "torch": "compress, glue, export, evaluate",
    "transformers": "compress, glue, evaluate",
    "vl-convert-python": "report",
}
EXTRAS = {"base": "everything", "host": "the commands of a host", "dev": "make test and make lint"}

ELSEWHERE = {"disk": "work in another folder", "cache": "set XDG_CACHE_HOME to another folder"}


@dataclass(frozen=True)
class Check:
    """One line: `state` is ok, warn or missing; `room` is base, host or dev, whatever it is needed by."""

    name: str
    room: str
    state: str
    text: str


def diagnose() -> list[Check]:
    """All checks, those of the base installation first. Imports none of the host's packages."""
    checks = [python(), *packages("base"), runtime(), *shadows(), instructions(), *folders()]
    return [*checks, *packages("host"), torch_device(), *packages("dev")]


def sound(checks: Iterable[Check]) -> bool:
    """Whether the base installation works: nothing it needs is missing."""
    return not any(check.state == "missing" and check.room == "base" for check in checks)


def python() -> Check:
    """The interpreter against the floor that the packages' wheels set."""
    found, low = platform.python_version(), sys.version_info < (3, 11)
    text = f"{found} is too old; install Python 3.11 or newer" if low else f"{found} at {sys.executable}"
    return Check("python", "base", "missing" if low else "ok", text)


def requirements(extra: str) -> list[str]:
    """Our own requirements of "base", "host" or "dev": of the installed package, else of the checkout."""
    try:
        declared = importlib.metadata.requires("toolchain") or []
    except importlib.metadata.PackageNotFoundError:
        declared = _checkout()
    if extra == "base":
        return [line for line in declared if "extra ==" not in line]
    return [line for line in declared if f"extra == '{extra}'" in line.replace('"', "'")]


def _checkout() -> list[str]:
    """The requirements in the checkout's pyproject.toml, written as an installed package writes them."""
    try:
        project = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return []
    optional = project.get("optional-dependencies", {}).items()
    return [
        *project["dependencies"],
        *(f"{line}; extra == '{extra}'" for extra, lines in optional for line in lines),
    ]


def packages(extra: str) -> list[Check]:
    """A check for each package that `extra` requires: installed, and new enough."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [Check("packaging", extra, "missing", f"not installed; {install(extra)}")]
    wanted = [Requirement(line) for line in requirements(extra)]
    if not wanted:
        return [Check(extra, extra, "warn", "no list of requirements found; install the toolchain package")]
    return [_package(requirement.name, requirement.specifier, extra) for requirement in wanted]


def _package(name: str, allowed: "SpecifierSet", extra: str) -> Check:
    found, use = version(name), NEEDED_FOR.get(name, EXTRAS[extra])
    if found is None:
        return Check(name, extra, "missing", f"not installed, needed by {use}; {install(extra)}")
    if found.split("+")[0] not in allowed:
        return Check(name, extra, "warn", f"{found}, but {allowed} is what was tested; {install(extra)}")
    return Check(name, extra, "ok", found)


def runtime() -> Check:
    """Whether ONNX Runtime loads and has its CPU provider: a wheel for another processor does not."""
    try:
        onnxruntime = importlib.import_module("onnxruntime")
        providers = onnxruntime.get_available_providers()
    except (ImportError, OSError, AttributeError) as error:
        reason = " ".join(str(error).split())
        return Check("runtime", "base", "missing", f"onnxruntime does not load ({reason}); reinstall it")
    if "CPUExecutionProvider" not in providers:
        return Check("runtime", "base", "missing", "onnxruntime has no CPU provider; install the plain wheel")
    return Check("runtime", "base", "ok", f"onnxruntime loads; providers: {', '.join(providers)}")


def shadows(here: Path | None = None, path: list[str] | None = None) -> list[Check]:
    """A check per room whose name others may take too: does Python, searching `path`, find ours?

    `here` is the folder the user works in: a file there does not count for the `toolchain` command, but
    does for `python -m` and for scripts, so it is worth a warning.
    """
    here = (here or Path.cwd()).resolve()
    return [_shadow(room, here, sys.path if path is None else path) for room in ROOMS]


def _shadow(room: str, here: Path, path: list[str]) -> Check:
    ours = HOME / room / "__init__.py"
    spec = PathFinder.find_spec(room, path)
    origin = Path(spec.origin).resolve() if spec and spec.origin else None
    owners = set(importlib.metadata.packages_distributions().get(room, [])) - {"toolchain"}
    others = [
        p for p in (here / f"{room}.py", here / room / "__init__.py") if p.is_file() and p.resolve() != ours
    ]
    if origin is not None and origin != ours:
        text = f"{origin} is found instead of {ours}; rename it, uninstall its package, or work elsewhere"
        return Check(room, "base", "missing", text)
    if owners:
        text = f"the package {', '.join(sorted(owners))} brings another {room}; uninstall it"
        return Check(room, "base", "warn", text)
    if others:
        return Check(
            room, "base", "warn", f"{others[0]} would hide ours from scripts that start here; rename it"
        )
    return Check(room, "base", "ok", str(ours.parent))


def instructions() -> Check:
    """The instruction sets by which the runtime's int8 kernels differ."""
    found = environment()
    isa, cpu = found.get("isa"), found.get("cpu") or found.get("arch")
    if not isa:
        return Check("instructions", "base", "warn", f"{cpu}: could not be read; int8 speed is unknown")
    text = f"{cpu}: {' '.join(isa)}"
    if not set(isa) & set(ISA_DOT):
        return Check("instructions", "base", "warn", f"{text}; no int8 dot products, so int8 gains less here")
    return Check("instructions", "base", "ok", text)


def torch_device(file: Path | None = None) -> Check:
    """Whether torch is a CPU or a CUDA build, read from its version file: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if file is None and (spec is None or spec.origin is None):
        return Check("torch device", "host", "missing", f"torch is not installed; {install('host')}")
    text = (file or Path(str(spec and spec.origin)).with_name("version.py")).read_text(encoding="utf-8")
    line = next((x for x in text.splitlines() if x.startswith("cuda") and "=" in x), "cuda = None")
    built = line.split("=", 1)[1].strip().strip("'\"")
    if built == "None":
        return Check("torch device", "host", "ok", "a CPU build; training runs on the processor")
    if not Path("/dev/nvidia0").exists():
        return Check(
            "torch device",
            "host",
            "warn",
            f"a CUDA {built} build, but no GPU is here; a CPU build is smaller",
        )
    return Check("torch device", "host", "ok", f"a CUDA {built} build, and a GPU is here")


def folders() -> list[Check]:
    """Free disk here, and whether the cache folder can be written."""
    return [_folder("disk", Path.cwd()), _folder("cache", cache_folder())]


def _folder(name: str, folder: Path) -> Check:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    usable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    space = shutil.disk_usage(there)
    if not (usable and space.total):  # of no size: a file system like /proc, which holds no files of ours
        return Check(name, "base", "warn", f"{folder} cannot be written; {ELSEWHERE[name]}")
    free = space.free / 1e9
    state, hint = ("warn", f"; a demo wants 2 GB: {ELSEWHERE[name]}") if free < 2 else ("ok", "")
    return Check(name, "base", state, f"{folder}: {free:.1f} GB free{hint}")
