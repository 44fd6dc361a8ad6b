"""Files written whole or not at all: hashes, JSON, and folders staged beside their place."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from devices.errors import UserError

CHUNK = 1 << 20
# A folder with one of these is a command's output; --force replaces such a one or an empty one, nothing else.
MARKS = (
    *("compression.json", "training.json", "glue.json", "manifest.json", "clean.json"),
    *("report.html", "*/task.toml"),
)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in `path`; UserError naming `what` where it is missing, malformed or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it should hold {what}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); {what} is damaged, make it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what} must be a JSON object, found {type(value).__name__}")
    return value


def read_record(path: Path) -> dict[str, Any] | None:
    """How a checkpoint was made: its compression.json, training.json or glue.json; None if there is none."""
    return read_json(path, "how the checkpoint was made") if path.is_file() else None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON in one rename, so that a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # two processes may write at once
    try:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def cache_folder(*parts: str) -> Path:
    """A folder of what can be made again: $XDG_CACHE_HOME/toolchain (by default below ~/.cache) and `parts`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").joinpath("toolchain", *parts)


def make_cache(folder: Path) -> Path:
    """`folder` of the cache, made where it is missing; UserError naming XDG_CACHE_HOME where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cause = os.strerror(error.errno or errno.ENOENT).lower()
    else:
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        cause = os.strerror(errno.EACCES).lower()
    raise UserError(
        f"{folder}: the cache cannot be written there ({cause}); set XDG_CACHE_HOME to a folder that can be"
    )


def staging_path(out: Path) -> Path:
    """Where a command stages `out`: a hidden sibling, on the same file system, found again by a resume."""
    return out.with_name(f".{out.name}.staging")


def old_path(out: Path) -> Path:
    """Where what `out` was stands while it is replaced."""
    return out.with_name(f".{out.name}.old")


def refuse_existing(out: Path, force: bool) -> None:
    """UserError if `out` cannot be made, or exists and `force` is not given or would destroy other work."""
    file = next(
        (parent for parent in out.absolute().parents if parent.exists() and not parent.is_dir()), None
    )
    if file:
        raise UserError(f"{out}: cannot be made, {file} is a file; choose another --out")
    if not os.path.lexists(out):
        return
    if not force:
        raise UserError(f"{out}: already exists; choose another --out or pass --force to replace it")
    if out.is_symlink():
        raise UserError(f"{out}: is a link, and only folders are replaced; remove it or choose another --out")
    if not out.is_dir():
        raise UserError(f"{out}: is a file, and --out names a folder; choose another --out")
    if Path.cwd().is_relative_to(out.resolve()):
        relation = "is" if Path.cwd() == out.resolve() else "holds"
        raise UserError(f"{out}: {relation} the folder you work in; choose a folder below that")
    if any(out.iterdir()) and not any(next(out.glob(mark), None) for mark in MARKS):
        raise UserError(f"{out}: holds something that no command here wrote; choose another --out")


def refuse_unwritable(out: Path) -> None:
    """UserError if no folder `out` can be made or written: better known before an hour's work than after."""
    there = next(place for place in (out.absolute(), *out.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise UserError(
            f"{out}: {there} is a file, and --out names a folder of results; choose another --out"
        )
    import tempfile  # with `random`: not for a program that only reads an artifact

    try:
        tempfile.TemporaryFile(dir=there).close()  # permissions alone say too much of /proc
    except OSError:
        raise UserError(f"{out}: {there} cannot be written; choose another --out") from None


@contextmanager
def staged(out: Path, *, force: bool = False, resume: bool = False) -> Iterator[Path]:
    """A folder to fill; moved to `out` whole when the block ends well, removed when it does not.

    With `resume`, the staging folder survives a failure or an interrupt (it holds snapshots), and what
    an earlier try left there is still there. One writer at a time: a second one gets a UserError.
    What is published has the mode that the umask gives, whichever library wrote it.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - not resolve: a link's target is not what is replaced
    refuse_existing(out, force)
    staging = staging_path(out)
    lock_path = out.with_name(f".{out.name}.lock")
    with _parents(out), _opened(lock_path, out) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{out}: another command is writing it; wait for it or choose another --out"
            ) from None
        try:
            if old_path(out).exists() and not out.exists():  # killed while it was replaced
                old_path(out).rename(out)
            refuse_existing(out, force)
            if staging.exists() and not resume:
                _remove(staging, ignore_errors=False)
            staging.mkdir(exist_ok=True)
            yield staging
            _publish(staging, out, force)
        finally:
            if not resume:
                _remove(staging)
            lock_path.unlink(missing_ok=True)


@contextmanager
def _parents(out: Path) -> Iterator[None]:
    """The folders above `out`, made where they are missing; those made here go again if nothing came of them."""
    missing = [parent for parent in out.parents if not parent.exists()]
    try:
        _made(out.parent, out)
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty, which is the rule, or never made
            for parent in missing:
                parent.rmdir()


def _made(folder: Path, out: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, PermissionError):
        raise _no_place(out) from None


def _opened(lock: Path, out: Path) -> TextIO:
    try:
        return lock.open("w")
    except (FileNotFoundError, PermissionError):
        raise _no_place(out) from None


def _no_place(out: Path) -> UserError:
    """For a file system that answers "no such file" to whoever makes one: /proc, and others of the kernel's."""
    return UserError(f"{out}: cannot be made, {out.parent} takes no new files; choose another --out")


def _open_to_read(folder: Path) -> None:
    """Give files the mode that the folder's own says: safetensors writes its files for the owner alone."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(file.stat().st_mode & 0o7777 | mode)


def _publish(staging: Path, out: Path, force: bool) -> None:
    """Move `staging` to `out`; an old `out` steps aside first, comes back on a failure, and goes last."""
    refuse_existing(out, force)  # it may have appeared meanwhile
    _open_to_read(staging)
    old = old_path(out)
    _remove(old)
    try:
        if out.exists():
            out.rename(old)
        staging.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    _remove(old)


def _remove(folder: Path, ignore_errors: bool = True) -> None:
    """Remove a folder and all that is in it."""
    import shutil  # with bz2, lzma and zlib: not for a program that only reads an artifact

    shutil.rmtree(folder, ignore_errors=ignore_errors)
