"""A board over ssh as a device. Functions as devices.reach has them; docs/devices.md says what lies on the board."""

import os
from pathlib import Path

from devices import board_setup, code, transfer
from devices.artifact import MANIFEST, Artifact
from devices.board_setup import Say, check
from devices.connection import failed as failure
from devices.connection import key, line
from devices.errors import UserError
from devices.probe import PACKAGES
from devices.profiles import Profile
from devices.supervisor import MARK

__all__ = ["MARK", "check", "clean", "command", "environment", "failure", "put", "put_text", "setup"]
SUPERVISED = transfer.RUN.replace('-m "$@"', '-m devices.supervisor "$python" "$@"')
_ready: set[str] = set()


def command(profile: Profile, module: str, *arguments: str) -> list[str]:
    """The ssh command line that runs our `module` there, under a supervisor that ends it with the connection."""
    words = profile.settings["folder"], code.digest(), board_setup.python(profile)
    return line(profile, SUPERVISED, *words, module, *arguments)


def environment(profile: Profile) -> dict[str, str]:
    """This process's variables: ssh's own configuration and agent are a user's."""
    return dict(os.environ)


def put(profile: Profile, artifact: Artifact, say: Say) -> str:
    """The artifact's path there: pushed where its hash is not there yet, verified in any case."""
    size = (artifact.path / MANIFEST).stat().st_size
    listed = {**artifact.manifest["files"], MANIFEST: {"size": size, "sha256": artifact.sha256}}
    return _put(profile, artifact.sha256, artifact.path, listed, artifact.name, say)


def put_text(profile: Profile, path: Path, sha256: str, say: Say) -> str:
    """The text's path there; its name there is `text`."""
    listed = {"text": {"size": path.stat().st_size, "sha256": sha256}}
    return _put(profile, f"{sha256}.text", path, listed, path.name, say) + "/text"


def _put(profile: Profile, called: str, source: Path, listed: dict, name: str, say: Say) -> str:
    _make_ready(profile, say)
    return transfer.put(profile, board_setup.python(profile), called, source, listed, name, say)


def setup(profile: Profile, say: Say) -> None:
    """A virtual environment with the base set, and our code, in a folder of their own."""
    board_setup.setup(profile, say)
    _ready.discard(key(profile))
    try:
        _make_ready(profile, say, PACKAGES)
    except UserError as error:
        if "No module named" not in str(error):
            raise
        # pip believes what is listed as installed; files that a board has lost since come back with a new folder.
        cure = board_setup.cure(profile, "clean")
        raise UserError(
            f"{error}; what was installed there is damaged; {cure}, then set it up again"
        ) from None
    say(f"{profile.name}: is set up")


def clean(profile: Profile, say: Say) -> None:
    """Remove the folder, and say how much that was."""
    board_setup.clean(profile, say)
    _ready.discard(key(profile))


def _make_ready(profile: Profile, say: Say, packages: tuple[str, ...] = ()) -> None:
    """Once for each process: UserError unless the board is set up; our code is pushed where it is another.

    `packages` are imported there.
    """
    if key(profile) in _ready:
        return
    board_setup.push_code(profile, board_setup.require(profile), say)
    request = {"packages": packages}
    found = transfer.ask_board(profile, board_setup.python(profile), "installed", request)
    if found["code"] != code.digest():
        raise UserError(f"{profile.name}: our code there was changed; {board_setup.cure(profile, 'clean')}")
    _ready.add(key(profile))
