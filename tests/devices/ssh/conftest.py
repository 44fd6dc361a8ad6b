"""A board to reach: a real sshd on 127.0.0.1, with keys and a configuration of its own, as the user who tests."""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devices import connection, profiles, ssh, transfer

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
TOOLS = {name: shutil.which(name) for name in ("ssh", "ssh-keygen")}
MISSING = [name for name, place in {"sshd": SSHD, **TOOLS}.items() if place is None]


class Board:
    """`folder` is what the board's profile calls so; `profile_path` names the profile, `log` what sshd says."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "there"
        self.profile_path, self.log, self.port = root / "board.toml", root / "sshd.log", _free_port()
        for name in ("host", "user"):
            self.make_key(name)
        (root / "authorized").write_bytes((root / "user.pub").read_bytes())
        self.know((root / "host.pub").read_text())
        self.profile()

    def make_key(self, name: str) -> None:
        """A fresh pair of keys of that name."""
        for path in (self.root / name, self.root / f"{name}.pub"):
            path.unlink(missing_ok=True)
        line = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.root / name)]
        subprocess.run(line, check=True)

    def know(self, public: str) -> None:
        """Let the user know this host key for the board, and no other."""
        kind, key, *_ = public.split()
        (self.root / "known").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def profile(self, **settings: object) -> profiles.Profile:
        """Write the profile, with other settings where some are given; as it is loaded."""
        (self.root / "config").write_text(
            f"Host board\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {self.root}/user\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.root}/known\n  GlobalKnownHostsFile /dev/null\n"
            "  StrictHostKeyChecking yes\n"
        )
        own = {"kind": "ssh", "description": "a test's", "host": "board", "config": "config"}
        own |= {"folder": str(self.folder), "python": sys.executable, "venv": False, **settings}
        lines = (f"{key} = {str(v).lower() if isinstance(v, bool) else repr(v)}" for key, v in own.items())
        self.profile_path.write_text("\n".join(lines) + "\n")
        return profiles.load(str(self.profile_path))

    def start(self, *lines: str) -> None:
        """Start sshd, with further `lines` in its configuration."""
        config = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.root}/host",
            f"AuthorizedKeysFile {self.root}/authorized",
            f"PidFile {self.root}/pid",
            "UsePAM no",
            "StrictModes no",
            "PasswordAuthentication no",
            "PermitRootLogin prohibit-password",
            *lines,
        ]
        (self.root / "sshd_config").write_text("\n".join(config) + "\n")
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(
                exist_ok=True
            )  # where sshd confines itself, made by the system's own start
        line = [str(SSHD), "-D", "-e", "-f", str(self.root / "sshd_config")]
        with self.log.open("ab") as log:
            self.server = subprocess.Popen(line, stderr=log, stdin=subprocess.DEVNULL)
        wait_for(lambda: _answers(self.port) or self.server.poll() is not None)
        assert self.server.poll() is None, self.log.read_text()

    def sessions(self) -> list[int]:
        """The processes of sshd that serve connections."""
        return descendants(self.server.pid, "sshd")

    def cut(self) -> None:
        """Kill every connection's server, as a cable pulled out or a reboot would."""
        for pid in self.sessions():
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End sshd and its connections."""
        pids = self.sessions()
        self.server.kill()
        self.server.wait()
        for pid in pids:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def descendants(pid: int, named: str = "") -> list[int]:
    """Processes below `pid`, those whose name begins so."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in map(int, path.read_text().split()):
                name = Path(f"/proc/{child}/comm").read_text()
                found += [child] * name.startswith(named) + descendants(child, named)
        except OSError:
            continue
    return found


def wait_for(true, seconds=30.0):
    """Wait until `true()` holds; its value."""
    deadline = time.monotonic() + seconds
    while not (held := true()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held


@pytest.fixture
def stopped_board(tmp_path):
    """A board whose sshd was not started yet."""
    if MISSING:
        pytest.skip(f"{', '.join(MISSING)} not installed: apt install openssh-server openssh-client")
    board = Board(tmp_path)
    yield board
    connection.close()
    ssh._ready.clear()
    transfer._used.clear()
    if hasattr(board, "server"):
        board.stop()


@pytest.fixture
def board(stopped_board):
    """A board that answers."""
    stopped_board.start()
    return stopped_board


@pytest.fixture
def ready(board, monkeypatch):
    """A board that is set up: its Python is this one, which has the base set."""
    monkeypatch.setattr(ssh, "PACKAGES", ())  # a second each time; a test of its own has them imported
    ssh.setup(profiles.load(str(board.profile_path)), lambda _: None)
    connection.close()
    return board


@pytest.fixture
def write_artifacts(tmp_path, own_artifact):
    """`write_artifacts(n)`: folders of n artifacts of other bytes each."""

    def write(count):
        folders = []
        for number in range(count):
            folder = tmp_path / f"artifact-{number}"
            shutil.copytree(own_artifact, folder)
            manifest = json.loads((folder / "manifest.json").read_text())
            (folder / "manifest.json").write_text(json.dumps({**manifest, "name": f"tiny-{number}"}))
            folders.append(folder)
        return folders

    return write
