"""What a long run leaves when it is stopped: its request and its snapshots, for the same run to go on from."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devices.errors import UserError
from devices.files import read_json, write_json

WORK = "unfinished"  # in the staging folder: the request, snapshots and what else a resumed run needs
REQUEST = "request.json"


@contextmanager
def unfinished(staging: Path, request: dict[str, Any], say: Callable[[str], object]) -> Iterator[None]:
    """`staging`, ready for `request`: an earlier try at the same one keeps its snapshots, another one goes.

    After a failure it is kept where a snapshot makes it worth it, and removed otherwise.
    """
    asked = json.loads(json.dumps(request))
    if any(staging.iterdir()):
        if _earlier(staging) != asked:
            say("the unfinished run found here was for another request; starting anew")
            _empty(staging)
        elif snapshots(staging):
            say("going on with the unfinished run found here")
    (staging / WORK).mkdir(exist_ok=True)
    write_json(staging / WORK / REQUEST, asked)
    try:
        yield
    except BaseException:
        if not snapshots(staging):
            shutil.rmtree(staging, ignore_errors=True)
        raise


def _earlier(staging: Path) -> dict[str, Any] | None:
    """The request that an earlier try left in `staging`, None where it left none that can be read."""
    try:
        return read_json(staging / WORK / REQUEST, "an earlier request")
    except UserError:
        return None


def snapshots(staging: Path) -> bool:
    """Whether an earlier try left a snapshot of its training in `staging`."""
    return any((staging / WORK / "snapshots").glob("checkpoint-*"))


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
