"""Setting a board up: our folder, our code, a virtual environment with the base set; looking at it, and leaving it."""

import hashlib
import importlib.metadata
import json
import re
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

from devices import code, connection, profiles, transfer, wheels
from devices.errors import UserError
from devices.local import findings
from devices.probe import PACKAGES
from devices.process import HOME
from devices.profiles import Profile
from devices.reach import Finding

Say = Callable[[str], None]
PYTHON = (3, 11)
HOLDS = ("venv", "code", "artifacts", "incoming", "cache", "ready", "toolchain-device")
# Our code comes on standard input and is gone again when it has answered; $1 folder, $2 Python, then packages.
PROBE = """cd -- "$1" 2>/dev/null; export ORT_DISABLE_TELEMETRY=1 PYTHONUTF8=1; p="$2"; shift 2
exec "$p" -P -c 'import runpy, sys, tempfile
with tempfile.NamedTemporaryFile(suffix=".zip") as file:
    file.write(sys.stdin.buffer.read())
    file.flush()
    sys.path.insert(0, file.name)
    runpy.run_module("devices.probe", run_name="__main__", alter_sys=True)' "$@" """
SAY = "say() { printf '\\n#toolchain# %s\\n' \"$*\"; }\n"
# What can be seen without our code: $1 folder, $2 Python, $3 our code's digest.
LOOK = (
    SAY
    + r"""
say kernel "$(uname -s)"
say machine "$(uname -m)"
if [ -f "$1/toolchain-device" ]; then say folder ours
elif [ ! -e "$1" ] || [ -z "$(ls -A "$1")" ]; then say folder none
else say folder foreign; fi
say ready "$(cat "$1/ready" 2>/dev/null)"
[ -d "$1/code/$3" ] && say code "$3"
[ -x "$1/venv/bin/python" ] && say venv yes
about='import sys, platform, struct
print("%d.%d.%d" % sys.version_info[:3], struct.calcsize("P") * 8, *platform.libc_ver())'
say python "$("$2" -c "$about" 2>/dev/null)"
"""
)
MAKE = (
    'mkdir -p -- "$1" && cd -- "$1" && echo "made by toolchain; devices clean removes it" > toolchain-device'
)
# A Python that is killed while it unpacks leaves a folder that nobody takes for the code.
UNPACK = """cd -- "$1" && mkdir -p code && rm -rf "code/.$2" && cat > "code/$2.zip" || exit 1
"$3" -m zipfile -e "code/$2.zip" "code/.$2" || exit 1
rm -f "code/$2.zip" && { mv "code/.$2" "code/$2" 2>/dev/null || [ -d "code/$2" ]; }"""
VENV = """cd -- "$1" || exit 1
"$2" -c 'import ensurepip, venv' 2>/dev/null || { echo "no ensurepip" >&2; exit 1; }
venv/bin/python -m pip --version >/dev/null 2>&1 || { rm -rf venv && "$2" -m venv venv >&2; }"""
INSTALL = """cd -- "$1" || exit 1
shift; exec venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
  --only-binary=:all: "$@" 2>&1"""
REMOVE = (
    SAY
    + """
[ -e "$1" ] || { say none; exit 0; }
cd -- "$1" || exit 1
[ -f toolchain-device ] || { say foreign; exit 0; }
say bytes "$(du -sk . | cut -f 1)"
shift; rm -rf "$@" && here="$(pwd -P)" && cd .. && { rmdir "$here" 2>/dev/null || say others "$here"; }"""
)


def python(profile: Profile) -> str:
    """The Python that runs our modules there; one below venv/ is meant from our folder."""
    return "venv/bin/python" if profile.settings["venv"] else profile.settings["python"]


def cure(profile: Profile, action: str = "setup") -> str:
    """The command to give next."""
    known = profiles.places().get(profile.name) == profile.path
    return f"give: toolchain devices {action} {profile.name if known else profile.path}"


def requirements() -> list[str]:
    """The base set, as pip takes it: from the checkout, or from the installation where there is none."""
    project = HOME / "pyproject.toml"
    if project.is_file():
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    needed = importlib.metadata.requires("toolchain") or []
    return sorted(one for one in needed if "extra ==" not in one)


def require(profile: Profile) -> dict[str, str]:
    """What `look` says; UserError unless the board is set up, for the packages that this version wants."""
    found = look(profile)
    if found["folder"] != "ours" or not found["ready"]:
        raise UserError(f"{profile.name}: is not set up; {cure(profile)}")
    if found["ready"] != _ready_mark(profile):
        raise UserError(f"{profile.name}: was set up for another Python or other packages; {cure(profile)}")
    return found


def push_code(profile: Profile, found: dict[str, str], say: Say) -> None:
    """Our code, where this version of it is not there yet, by what `look` found."""
    if found.get("code") == code.digest():
        return
    say(f"{profile.name}: pushing our code, {len(code.packed()) / 1e3:.0f} kB")
    words = profile.settings["folder"], code.digest(), profile.settings["python"]
    with tempfile.NamedTemporaryFile() as archive:
        archive.write(code.packed())
        archive.flush()
        connection.push(profile, Path(archive.name), 0, UNPACK, *words, sent=lambda _: None)


def setup(profile: Profile, say: Say) -> None:
    """Make the folder, push the code, make the virtual environment and install the base set into it."""
    found = look(profile)
    folder = profile.settings["folder"]
    _refuse(profile, found)
    connection.run(profile, MAKE, folder)
    push_code(profile, found, say)
    if profile.settings["venv"]:
        say(f"{profile.name}: a virtual environment in {folder}")
        try:
            connection.run(profile, VENV, folder, profile.settings["python"])
        except UserError as error:
            if "no ensurepip" not in str(error):
                raise
            raise UserError(
                f"{profile.name}: Python there cannot make virtual environments; there: sudo apt install python3-venv"
            ) from None
        _install(profile, found, say)
    connection.run(profile, 'cd -- "$1" && echo "$2" > ready', folder, _ready_mark(profile))


def _install(profile: Profile, found: dict[str, str], say: Say) -> None:
    """The base set from an index there, or from wheels that are downloaded here and pushed."""
    settings = profile.settings
    options = ["--index-url", settings["index"]] if "index" in settings else []
    if settings["offline"]:
        folder, listed = wheels.download(profile, found, requirements(), options, say)
        key = f"{hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()}.wheels"
        place = transfer.put(profile, settings["python"], key, folder, listed, "wheels", say)
        options = ["--no-index", "--find-links", place]

    def tell(text: str) -> None:
        if text.startswith(("Collecting", "Downloading", "Installing", "Successfully")):
            say(f"{profile.name}: {text[:100]}")

    try:
        connection.stream(profile, INSTALL, settings["folder"], *options, *requirements(), tell=tell)
    except UserError as error:
        if "connection was lost" in str(error) or "disk there is full" in str(error):
            raise
        hint = (
            ""
            if settings["offline"]
            else "; offline = true in the profile has this machine fetch the packages"
        )
        raise UserError(f"{error}{hint}") from None
    if settings["offline"]:
        connection.run(profile, 'rm -rf -- "$1"', place)


def _refuse(profile: Profile, found: dict[str, str]) -> None:
    """UserError where the folder is another's, or Python is missing, too old or not for 64 bits."""
    name, asked = profile.name, profile.settings["python"]
    if found["folder"] == "foreign":
        raise UserError(
            f"{name}: {profile.settings['folder']} there holds something that we did not put there; "
            "choose another folder in the profile"
        )
    for finding in _python(profile, found):
        if not finding.ok:
            raise UserError(f"{name}: {asked} there: {finding.value}; {finding.hint}")


def _python(profile: Profile, found: dict[str, str]) -> list[Finding]:
    """What the Python there is."""
    if not found["python"]:
        hint = "there: sudo apt install python3 python3-venv; or name another with python = in the profile"
        return [Finding("python", "missing", False, hint)]
    version, bits, *libc = found["python"].split()
    hint = f"{PYTHON[0]}.{PYTHON[1]} or newer is needed; name one with python = in the profile"
    fits = tuple(map(int, version.split(".")[:2])) >= PYTHON
    lines = [Finding("python", version, fits, hint), Finding("libc", " ".join(libc) or None)]
    if bits != "64":
        hint = "ONNX Runtime has no packages for it; install a 64-bit system"
        lines.append(Finding("bits", f"a {bits}-bit Python", False, hint))
    return lines


def look(profile: Profile) -> dict[str, str]:
    """What LOOK says, by name."""
    settings = profile.settings
    lines = connection.run(profile, LOOK, settings["folder"], settings["python"], code.digest())
    return {name: value.strip() for name, _, value in (one.partition(" ") for one in lines)}


def check(profile: Profile) -> list[Finding]:
    """What the board says of itself, whether it is set up or not; nothing is left there."""
    found = look(profile)
    lines = [
        Finding("host", profile.settings["host"]),
        Finding("kernel", f"{found['kernel']} {found['machine']}"),
    ]
    lines += _python(profile, found)
    if not all(finding.ok for finding in lines):
        return lines
    is_set_up = found["folder"] == "ours" and found["ready"] == _ready_mark(profile)
    lines.append(Finding("set up", "yes" if is_set_up else "no", is_set_up, cure(profile)))
    chosen = python(profile) if is_set_up else profile.settings["python"]
    words = profile.settings["folder"], chosen, *(PACKAGES if is_set_up else ())
    about = json.loads(connection.run(profile, PROBE, *words, given=code.packed())[-1])
    about["environment"].pop("python")  # told already
    return lines + findings(profile, about, cure(profile))


def clean(profile: Profile, say: Say) -> None:
    """Remove what setup and put left there, and nothing else; say how much that was."""
    lines = connection.run(profile, REMOVE, profile.settings["folder"], *HOLDS)
    folder = profile.settings["folder"]
    if lines == ["none"]:
        say(f"{profile.name}: there is no {folder}; nothing to remove")
        return
    if lines == ["foreign"]:
        raise UserError(f"{profile.name}: {folder} there was not made by us; it is left alone")
    kilobytes = re.sub(r"\D", "", lines[0]) or "0"
    say(f"{profile.name}: removed {int(kilobytes) * 1024 / 1e6:.1f} MB in {folder}")
    for other in lines[1:]:
        say(f"{profile.name}: {other.removeprefix('others ')} holds files of others and stays")


def _ready_mark(profile: Profile) -> str:
    """What `setup` was done for."""
    settings = profile.settings
    wanted = [sorted(requirements()), settings["python"], settings["venv"]]
    return hashlib.sha256(json.dumps(wanted).encode()).hexdigest()
