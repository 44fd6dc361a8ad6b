"""The code that runs on a device, as bytes: the two rooms that it needs, from a checkout or an installation."""

import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path

from devices.process import HOME

ROOMS = ("devices", "bench")
SUFFIXES = (".py", ".toml", ".c", ".h", ".onnx")
EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's first: the same files are the same bytes


def files() -> list[Path]:
    """Every file of the rooms, below HOME, in order."""
    found = (path for room in ROOMS for path in (HOME / room).rglob("*") if path.suffix in SUFFIXES)
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


@cache
def packed() -> bytes:
    """The files as a zip archive, the same bytes wherever the same files are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files():
            info = zipfile.ZipInfo(path.relative_to(HOME).as_posix(), EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, path.read_bytes())
    return buffer.getvalue()


@cache
def digest() -> str:
    """Hex SHA-256 of the files' names and bytes: what a device's copy, and a kept round, is known by."""
    whole = hashlib.sha256()
    for path in files():
        name, content = path.relative_to(HOME).as_posix().encode(), path.read_bytes()
        whole.update(b"%d %d " % (len(name), len(content)) + name + content)
    return whole.hexdigest()
