"""Devices by name: a profile is a TOML file, shipped in `profiles/`, in the user's configuration folder, or a path."""

import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devices.errors import UserError, unknown
from devices.machine import ISA_ARM, ISA_X86, isa

SHIPPED = Path(__file__).parent / "profiles"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
COMMON: dict[str, type] = {"name": str, "kind": str, "description": str, "emulated": bool, "isa": list}
# What each kind of device may say about itself beyond COMMON, and what it has where it says nothing.
FIELDS: dict[str, dict[str, type]] = {
    "local": {},
    "ssh": {
        "host": str,  # a name of the user's ssh configuration counts
        "user": str,
        "port": int,
        "config": str,  # an ssh configuration file in place of the user's own
        "python": str,  # there: a name or an absolute path, 3.11 or newer
        "venv": bool,  # false: that Python has the base set already
        "folder": str,  # there: everything of ours lies in it; relative to the home folder
        "cache_bytes": int,  # artifacts kept there
        "index": str,  # of Python packages, for pip there
        "offline": bool,  # the host downloads the wheels and pushes them
    },
    "emulated": {"cpu": str},
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "ssh": {
        "python": "python3",
        "venv": True,
        "folder": ".cache/toolchain-device",
        "cache_bytes": 4_000_000_000,
        "offline": False,
    }
}
NEEDED: dict[str, tuple[str, ...]] = {"emulated": ("cpu",)}
# Texts that become words of a command line on either side.
PATTERNS = {
    "host": (re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]{0,254}"), "a host's name or address"),
    "user": (re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?"), "a user's name"),
    "cpu": (re.compile(r"[a-z0-9][a-z0-9._-]{0,31}"), "a processor's name"),
    "python": (re.compile(r"[^-\x00-\x1f\x7f][^\x00-\x1f\x7f]{0,999}"), "a command's name or path"),
    "folder": (re.compile(r"[^-~\x00-\x1f\x7f][^\x00-\x1f\x7f]{0,499}"), "a folder's path, without ~"),
    "index": (re.compile(r"https?://[^\s\x00-\x1f\x7f]{1,999}"), "an http or https address"),
    "config": (re.compile(r"[^-\x00-\x1f\x7f][^\x00-\x1f\x7f]{0,999}"), "a file's path"),
}
RANGES = {"port": (1, 65535), "cache_bytes": (1, 1 << 50)}


@dataclass(frozen=True)
class Profile:
    """A device: `kind` says how it is reached, `settings` holds that kind's FIELDS.

    `emulated` devices are never put on a time axis. `isa` is what the processor is expected to have, in the
    words of `devices.machine.isa`; None where nothing is expected. `path` is the file it was read from.
    """

    name: str
    kind: str
    description: str
    emulated: bool = False
    isa: tuple[str, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """As a result records it."""
        return {"name": self.name, "emulated": self.emulated}


def own_folder() -> Path:
    """Where a user's own profiles lie: $XDG_CONFIG_HOME/toolchain/devices, by default below ~/.config."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home).joinpath("toolchain", "devices")


def places() -> dict[str, Path]:
    """Every name that can be given, and its file; a user's own stands before a shipped one of that name."""
    found = [*SHIPPED.glob("*.toml"), *own_folder().glob("*.toml")]
    return {path.stem: path for path in sorted(found, key=lambda path: (path.parent != SHIPPED, path.stem))}


def names() -> list[str]:
    """Names of the shipped profiles and of the user's own, this machine first."""
    return sorted(places(), key=lambda name: (name != "local", name))


def listed() -> list[dict[str, Any]]:
    """Every device with its kind and description; for a profile that cannot be read, what is wrong with it."""
    found: list[dict[str, Any]] = []
    for name in names():
        try:
            one = load(name)
        except UserError as error:
            found.append({"name": name, "kind": None, "description": str(error)})
        else:
            found.append({**one.as_dict(), "kind": one.kind, "description": one.description})
    return found


def load(name_or_path: str) -> Profile:
    """The profile of that name, or the one in that TOML file; UserError with the near names otherwise."""
    known = places()
    if name_or_path in known:
        return _read(known[name_or_path])
    path = Path(name_or_path)
    if path.suffix == ".toml":
        return _read(path)
    raise unknown("device", name_or_path, known)


def target_isa(name_or_path: str) -> tuple[str, ...]:
    """The instruction sets of a device, by its profile, `local`'s by looking; UserError where it names none."""
    profile = load(name_or_path)
    found = profile.isa if profile.kind != "local" else tuple(isa() or ())
    if found is None:
        raise UserError(
            f"device {profile.name}: its profile has no isa, which --device chooses by; add what "
            f"`toolchain devices check {profile.name}` shows"
        )
    return found


def _read(path: Path) -> Profile:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; name a profile ({', '.join(names())}) or a TOML file"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({os.strerror(error.errno or 0).lower()})") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid TOML ({error}); mend it") from None
    try:
        return _checked(table, path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _checked(table: dict[str, Any], path: Path) -> Profile:
    """A profile from its TOML table; UserError naming the key that is missing, unknown or no good."""
    kind = table.get("kind")
    if isinstance(kind, str) and kind not in FIELDS:
        raise unknown("kind of device", kind, FIELDS)
    allowed = {**COMMON, **FIELDS.get(kind, {})} if isinstance(kind, str) else COMMON
    for key, value in table.items():
        if key not in allowed and (isinstance(kind, str) or key not in _all_fields()):
            raise unknown("key", key, allowed)
        _check_value(key, value, _all_fields()[key])
    table = {"name": path.stem, **table}
    missing = [key for key in ("kind", "description", *NEEDED.get(kind or "", ())) if not table.get(key)]
    if missing:
        raise UserError(f"a profile needs {', '.join(missing)}; add it")
    _check_name(table["name"], path)
    own = {**DEFAULTS.get(table["kind"], {}), **{key: table[key] for key in table if key not in COMMON}}
    emulated = table["kind"] == "emulated" or table.get("emulated", False)
    isa = None if table.get("isa") is None else tuple(table["isa"])
    return Profile(table["name"], table["kind"], table["description"], emulated, isa, own, path)


def _all_fields() -> dict[str, type]:
    return {**COMMON, **{key: kind for fields in FIELDS.values() for key, kind in fields.items()}}


def _check_value(key: str, value: Any, wanted: type[Any]) -> None:
    if type(value) is not wanted:  # a bool is an int to isinstance
        names = {str: "a text", int: "a whole number", bool: "true or false", list: "a list"}
        raise UserError(f"{key} must be {names[wanted]}, found {value!r}")
    if key in RANGES and not RANGES[key][0] <= value <= RANGES[key][1]:
        low, high = RANGES[key]
        raise UserError(f"{key} must be from {low} to {high}, found {value}")
    template = key == "host" and not value
    if key in PATTERNS and not template and not PATTERNS[key][0].fullmatch(value):
        raise UserError(f"{key} must be {PATTERNS[key][1]}, found {value[:80]!r}")
    if key == "isa":
        for name in value:
            if name not in (*ISA_X86, *ISA_ARM):
                raise unknown("instruction set in isa", str(name), (*ISA_X86, *ISA_ARM))


def _check_name(name: str, path: Path) -> None:
    """A plain name; in the configuration folder, the file's own, so that it is found by what results call it."""
    if not NAME.fullmatch(name):
        raise UserError(f"name must be letters, digits and . _ + -, at most 64, found {name[:80]!r}")
    if path.parent in (SHIPPED, own_folder()) and name != path.stem:
        raise UserError(f"name is {name!r} and the file is called {path.name}; leave name out")
