"""The artifact: a folder whose manifest, written last, vouches for every file in it.

A device refuses what does not verify. What is checked: the manifest's form, each file's size and SHA-256,
that names are plain and nothing is a link, and that the graph names no file beside those listed. The graph
itself is not parsed here (a device has no ONNX library): that its external data stays inside the folder is
held by ONNX Runtime, which refuses to load a location that leaves it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices import files
from devices.errors import UserError

SCHEMA = 1
MANIFEST = "manifest.json"
GRAPH = "model.onnx"
KINDS = ("decoder", "classifier")
CACHES = ("fixed", "growing")  # how a decoder's graph takes its past; see devices/cache.py
COUNTS = ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "positions")


@dataclass(frozen=True)
class Artifact:
    """A folder that verified: its manifest, and the manifest's own SHA-256 as the artifact's identity."""

    path: Path
    manifest: dict[str, Any]
    sha256: str

    @property
    def name(self) -> str:
        """What a report calls it."""
        return self.manifest["name"]

    @property
    def kind(self) -> str:
        """`decoder` or `classifier`."""
        return self.manifest["kind"]

    @property
    def cache(self) -> str:
        """`fixed` (one buffer is past and present) or `growing` (each present is the next past)."""
        return self.manifest.get("cache") or "fixed"

    @property
    def recipe(self) -> str:
        """The name of the recipe it was quantized with."""
        return self.manifest["recipe"]["name"]

    @property
    def model(self) -> dict[str, Any]:
        """Layer, head and width counts: all of COUNTS are positive integers."""
        return self.manifest["model"]

    @property
    def file_bytes(self) -> int:
        """Bytes of all files the manifest lists."""
        return sum(entry["size"] for entry in self.manifest["files"].values())


def seal(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Hash every file in `folder`, write `manifest.json` last, and return what was written."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.name != MANIFEST)
    for name in names:
        if not _is_plain_file(folder / name):
            raise UserError(f"{folder / name}: an artifact holds only plain files; remove it, export again")
    listed = {n: {"size": (folder / n).stat().st_size, "sha256": files.sha256(folder / n)} for n in names}
    sealed = {"schema": SCHEMA, **manifest, "files": listed}
    files.write_json(folder / MANIFEST, sealed)
    return sealed


def open_artifact(path: Path, verify: bool = True) -> Artifact:
    """The artifact in `path`, every byte of it checked.

    `verify=False` skips the hashes (sizes, names and the manifest are checked all the same): for a process
    whose parent has just verified the folder. UserError where anything does not hold.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give an artifact, the folder that `toolchain export` wrote")
    if not (path / MANIFEST).exists():
        raise UserError(f"{path}: has no {MANIFEST}, so it is no artifact; make one with `toolchain export`")
    if (path / MANIFEST).is_symlink():
        raise _refuse(path, f"{MANIFEST} is a link")
    manifest = files.read_json(path / MANIFEST, "the artifact's manifest")
    check_manifest(path, manifest)
    listed = manifest["files"]
    for name, entry in listed.items():
        _check_file(path, name, entry, verify)
    _check_unlisted(path, set(listed))
    return Artifact(path, manifest, files.sha256(path / MANIFEST))


def opened(artifact: Artifact | Path | str, kind: str) -> Artifact:
    """The artifact, verified if it is a path, and of the kind wanted."""
    found = artifact if isinstance(artifact, Artifact) else open_artifact(Path(artifact))
    if found.kind != kind:
        raise UserError(
            f"{found.path}: is a {found.kind}, and a {kind} is needed here; give another artifact"
        )
    return found


def check_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """UserError, one line naming the key, unless `manifest` has the form this version reads."""
    schema = manifest.get("schema")
    if not isinstance(schema, int) or not _is_count(schema):
        raise _refuse(path, f"schema in {MANIFEST} must be a whole number, found {_show(schema)}")
    if schema > SCHEMA:
        newer = f"schema {schema}, and this toolchain reads {SCHEMA}"
        raise UserError(f"{path}: written by a newer toolchain ({newer}); install that one here")
    if manifest.get("kind") not in KINDS:
        raise _refuse(path, f"kind in {MANIFEST} must be one of {', '.join(KINDS)}")
    if manifest.get("cache") not in (None, *CACHES):
        raise _refuse(path, f"cache in {MANIFEST} must be one of {', '.join(CACHES)}, or null")
    if not isinstance(manifest.get("name"), str) or not manifest["name"]:
        raise _refuse(path, f"name in {MANIFEST} must be a text")
    for key in ("model", "recipe", "files"):
        if not isinstance(manifest.get(key), dict):
            raise _refuse(path, f"{key} in {MANIFEST} must be an object")
    for key in ("lineage", "task", "parity", "quality", "graph"):
        if not isinstance(manifest.get(key), dict | None):
            raise _refuse(path, f"{key} in {MANIFEST} must be an object or null")
    if not isinstance(manifest["recipe"].get("name"), str):
        raise _refuse(path, f"recipe.name in {MANIFEST} must be a text")
    for key in COUNTS:
        if not _is_count(manifest["model"].get(key)):
            raise _refuse(path, f"model.{key} in {MANIFEST} must be a positive whole number")
    _check_listing(path, manifest["files"])


def _check_listing(path: Path, listed: dict[str, Any]) -> None:
    """The manifest's `files`: plain names, a size and a SHA-256 each, the graph among them."""
    for name, entry in listed.items():
        if name in ("", ".", "..", MANIFEST) or any(c in name for c in "/\\\0"):
            raise _refuse(path, f"{MANIFEST} lists {name[:80]!r}, which is no plain file name in this folder")
        if not isinstance(entry, dict):
            raise _refuse(path, f"files.{name} in {MANIFEST} must be an object with size and sha256")
        size, digest = entry.get("size"), entry.get("sha256")
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise _refuse(path, f"files.{name}.size in {MANIFEST} must be a number of bytes")
        if not isinstance(digest, str) or len(digest) != 64:
            raise _refuse(path, f"files.{name}.sha256 in {MANIFEST} must be 64 hex digits")
    if GRAPH not in listed:
        raise _refuse(path, f"{MANIFEST} does not list {GRAPH}")


def _check_file(path: Path, name: str, entry: dict[str, Any], verify: bool) -> None:
    """One listed file is there, plain, as long as promised and, with `verify`, the same bytes."""
    file = path / name
    if not file.exists() and not file.is_symlink():
        raise _refuse(path, f"{name} is missing")
    if not _is_plain_file(file):
        raise _refuse(path, f"{name} is a link or no plain file")
    size = file.stat().st_size
    if size != entry["size"]:
        raise _refuse(path, f"{name} has {size} bytes where the manifest says {entry['size']}")
    if verify and files.sha256(file) != entry["sha256"].lower():
        raise _refuse(path, f"{name} is not the file that was exported (its SHA-256 differs)")


def _check_unlisted(path: Path, listed: set[str]) -> None:
    """Nothing unlisted that the graph could open: a file whose name stands in the graph, or any link.

    A user's own note in the folder is left alone; a weight file that the manifest does not vouch for is not.
    """
    known = {path / name for name in (*listed, MANIFEST)}
    extra = [entry for entry in sorted(path.rglob("*")) if entry not in known]
    graph = (path / GRAPH).read_bytes() if extra else b""
    for entry in extra:
        where = entry.relative_to(path)
        if entry.is_symlink():
            raise _refuse(path, f"{where} is a link")
        if not entry.is_dir() and entry.name.encode(errors="surrogateescape") in graph:
            raise _refuse(path, f"the graph may use {where}, which {MANIFEST} does not list")


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _show(value: Any) -> str:
    return repr(value)[:40]


def _refuse(path: Path, why: str) -> UserError:
    return UserError(f"{path}: {why}; the artifact is damaged or was changed, export or copy it again")
