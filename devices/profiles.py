"""Devices by name: a profile is a TOML file, shipped in `profiles/` or the user's own, named by its path."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.errors import UserError, unknown

SHIPPED = Path(__file__).parent / "profiles"
KINDS = ("local",)


@dataclass(frozen=True)
class Profile:
    """A device: `kind` says how it is reached; `emulated` devices are never put on a time axis."""

    name: str
    kind: str
    description: str
    emulated: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As a result records it."""
        return {"name": self.name, "emulated": self.emulated}


FIELDS = {"name": str, "kind": str, "description": str, "emulated": bool}


def names() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load(name_or_path: str) -> Profile:
    """The profile of that name, or the one in that TOML file; UserError with the near names otherwise."""
    if name_or_path in names():
        return _read(SHIPPED / f"{name_or_path}.toml")
    path = Path(name_or_path)
    if path.suffix == ".toml":
        return _read(path)
    raise unknown("device", name_or_path, names())


def _read(path: Path) -> Profile:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; name a profile ({', '.join(names())}) or a TOML file"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not valid TOML ({error}); mend it") from None
    for key, value in table.items():
        if key not in FIELDS:
            raise UserError(f"{path}: {unknown('key', key, FIELDS)}")
        if not isinstance(value, FIELDS[key]):
            raise UserError(f"{path}: {key} must be a {FIELDS[key].__name__}, found {value!r}")
    missing = [key for key in ("name", "kind", "description") if not table.get(key)]
    if missing:
        raise UserError(f"{path}: a profile needs {', '.join(missing)}; add it")
    if table["kind"] not in KINDS:
        raise UserError(f"{path}: {unknown('kind of device', table['kind'], KINDS)}")
    return Profile(**table)
