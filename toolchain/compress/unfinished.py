"""What a long run leaves when it is stopped: its request and its snapshots, for the same run to go on from."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devices.errors import UserError
from devices.files import read_json, staged, write_json

WORK = "unfinished"  # in the staging folder: the request, snapshots and what else a resumed run needs
REQUEST = "request.json"


@contextmanager
def unfinished(
    out: Path, request: dict[str, Any], *, force: bool, say: Callable[[str], object]
) -> Iterator[Path]:
    """A staging folder for `out`, empty but for its WORK, and published as `out` when the block ends well.

    An earlier try at the same request keeps its WORK (snapshots). Another request's snapshots are an hour's
    work that a typing error could cost: UserError saying what differs, and with `force` they go. After a failure
    the staging folder is kept where a snapshot makes it worth it, and removed otherwise. WORK steps aside
    before the rest is published and is removed last: an interrupt at any moment loses nothing.
    """
    with staged(out, force=force, resume=True) as staging:
        work, aside = staging / WORK, staging.with_suffix(".work")
        if aside.exists() and any(staging.iterdir()) and not work.exists():
            aside.rename(work)  # stopped between stepping aside and being published
        shutil.rmtree(aside, ignore_errors=True)
        asked = json.loads(json.dumps(request))
        _prepare(staging, asked, out, force, say)
        work.mkdir(exist_ok=True)
        write_json(work / REQUEST, asked)
        try:
            yield staging
        except BaseException:
            if not _snapshots(staging):
                shutil.rmtree(staging, ignore_errors=True)
            raise
        work.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _prepare(
    staging: Path, asked: dict[str, Any], out: Path, force: bool, say: Callable[[str], object]
) -> None:
    """Empty `staging` of what an earlier try left, but for the WORK of one at the same request."""
    if not any(staging.iterdir()):
        return
    earlier = _earlier(staging)
    same = earlier == asked
    if not same:
        other = ", ".join(dict.fromkeys(differences(earlier, asked))) if earlier else "which cannot be read"
        if _snapshots(staging) and not force:
            raise UserError(
                f"{out}: an unfinished run is kept for it, of another request ({other}); "
                "give that one again to go on with it, choose another --out, or drop it with --force"
            )
        say(f"the unfinished run found here was for another request ({other}); starting anew")
    elif _snapshots(staging):
        say("going on with the unfinished run found here")
    for path in staging.iterdir():
        if same and path.name == WORK:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def differences(earlier: Any, asked: Any, name: str = "request") -> Iterator[str]:
    """What differs between two requests, each by its key: `lr 0.0005, now 0.001`, or `another corpus` (by hash)."""
    if isinstance(earlier, dict) and isinstance(asked, dict):
        for key in earlier | asked:
            yield from differences(earlier.get(key), asked.get(key), name if key == "sha256" else key)
    elif earlier != asked:
        hashes = all(isinstance(value, str) and len(value) == 64 for value in (earlier, asked))
        yield f"another {name}" if hashes else f"{name} {str(earlier)[:40]}, now {str(asked)[:40]}"


def _earlier(staging: Path) -> dict[str, Any] | None:
    """The request that an earlier try left in `staging`, None where it left none that can be read."""
    try:
        return read_json(staging / WORK / REQUEST, "an earlier request")
    except UserError:
        return None


def _snapshots(staging: Path) -> bool:
    """Whether an earlier try left a snapshot of its training in `staging`."""
    return any((staging / WORK / "snapshots").rglob("checkpoint-*"))
