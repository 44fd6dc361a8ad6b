"""One ssh connection to a device, and scripts run through it.

Plain `ssh` processes, so that a user's configuration, agent and jump hosts count; no password is asked for, no
host key accepted, nothing forwarded. The connection is an ssh process of ours whose standard input this process
holds: however this process ends, it ends too, and with it whatever runs there. Everything else goes through its
socket, in a folder that only we may read.
"""

import atexit
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from devices.errors import UserError
from devices.profiles import Profile, own_folder
from devices.supervisor import MARK

TIMEOUT = 15  # seconds to connect in
ALIVE = 5  # seconds between signs of life, and how many of them may go unanswered
UNANSWERED = 4
OPTIONS = {
    "BatchMode": "yes",
    "ClearAllForwardings": "yes",
    "ConnectTimeout": str(TIMEOUT),
    "ForwardAgent": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "ServerAliveCountMax": str(UNANSWERED),
    "ServerAliveInterval": str(ALIVE),
}
FULL = ("No space left on device", "Disk quota exceeded", "write error", "File too large")
# ssh, and however it ends its folder is gone.
TIDY = '"$@"; code=$?; rm -rf -- "$0"; exit $code'
_open: dict[str, tuple[subprocess.Popen[str], Path]] = {}


def key(profile: Profile) -> str:
    """What tells a board, and how it is reached, from another."""
    return repr((profile.name, profile.path, sorted(profile.settings.items())))


def connect(profile: Profile) -> Path:
    """The socket of the connection, made where there is none; UserError with ssh's own words where it fails."""
    known = _open.get(key(profile))
    if known and known[0].poll() is None:
        return known[1] / "s"
    if not profile.settings.get("host"):
        raise UserError(_template(profile))
    if shutil.which("ssh") is None:
        raise UserError(f"{profile.name}: ssh is not installed here; sudo apt install openssh-client")
    folder = Path(tempfile.mkdtemp(prefix="toolchain-", dir="/tmp"))  # a socket's path has 107 bytes
    # `cat` there waits for the end of its input, which is the end of this process.
    script = f"printf '\\n%s\\n' '{MARK}'; exec cat >/dev/null"
    line = [*_ssh(profile, folder / "s", "yes"), "--", profile.settings["host"], remote(script)]
    with (folder / "err").open("w+", encoding="utf-8", errors="replace") as err:
        pipe = subprocess.PIPE
        # A session of its own: Ctrl-C is for us, who then end it.
        master = subprocess.Popen(
            ["sh", "-c", TIDY, str(folder), *line],
            stdin=pipe,
            stdout=pipe,
            stderr=err,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert master.stdout is not None
        if not any(answer.startswith(MARK) for answer in master.stdout):
            code = master.wait()
            err.seek(0)
            raise _refused(profile, code, err.read())
    _open[key(profile)] = master, folder
    return folder / "s"


def close() -> None:
    """End every connection; done when this process ends."""
    for master, folder in _open.values():
        with contextlib.suppress(OSError):
            assert master.stdin is not None
            master.stdin.close()
        try:
            master.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(master.pid, signal.SIGKILL)
            master.wait()
            shutil.rmtree(folder, ignore_errors=True)
    _open.clear()


atexit.register(close)


def line(profile: Profile, script: str, *arguments: str) -> list[str]:
    """The local command line that runs a POSIX `script` there, with `arguments` as its $1, $2 and so on."""
    return [
        *_ssh(profile, connect(profile), "no"),
        "--",
        profile.settings["host"],
        remote(script, *arguments),
    ]


def remote(script: str, *arguments: str) -> str:
    """What the login shell there, whichever it is, is given to parse: sh, its script and arguments, quoted."""
    return " ".join(["exec sh -c", *map(shlex.quote, (script, "sh", *arguments))])


def run(profile: Profile, script: str, *arguments: str, given: bytes = b"") -> list[str]:
    """What the script said behind MARK, a text each; UserError with its last line where it did not end with 0."""
    done = subprocess.run(line(profile, script, *arguments), input=given, capture_output=True, check=False)
    if done.returncode:
        raise failed(profile, done.returncode, done.stderr.decode("utf-8", "replace"))
    return marked(done.stdout.decode("utf-8", "replace"))


def marked(text: str) -> list[str]:
    """The lines of ours in what a login shell and we printed."""
    return [one[len(MARK) :] for one in text.splitlines() if one.startswith(MARK)]


def stream(profile: Profile, script: str, *arguments: str, tell: Callable[[str], object]) -> None:
    """Run a script and `tell` each line that it prints; UserError with the last of them where it fails."""
    with tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            line(profile, script, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        last = ""
        try:
            for one in process.stdout:
                last = one.strip() or last
                tell(one.strip())
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            process.stdout.close()
        err.seek(0)
        if code:
            said = err.read().decode("utf-8", "replace") if code == 255 else last
            raise failed(profile, code, said)


def push(
    profile: Profile, source: Path, offset: int, script: str, *arguments: str, sent: Callable[[int], object]
) -> None:
    """Give the file's bytes from `offset` on to a script's standard input; `sent` is told how many went."""
    process = subprocess.Popen(
        line(profile, script, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stderr is not None
    try:
        with contextlib.suppress(BrokenPipeError), source.open("rb") as file:
            file.seek(offset)
            while piece := file.read(1 << 18):
                process.stdin.write(piece)
                sent(len(piece))
            process.stdin.flush()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        said = process.stderr.read().decode("utf-8", "replace")
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        process.stderr.close()
    if code:
        raise failed(profile, code, said)


def failed(profile: Profile, code: int, said: str) -> UserError:
    """One line for a command that ended with `code` there, or whose connection did (ssh's own 255)."""
    words = (said.strip().splitlines() or [f"a command there ended with {code}"])[-1].strip()
    if code == 255:
        cause = f" ({_words(said)[-300:]})" if said.strip() else ""
        return UserError(f"{profile.name}: the connection was lost{cause}; give the same command again")
    if any(text in said for text in FULL):
        return UserError(
            f"{profile.name}: the disk there is full ({words[-200:]}); free some of it, or lower cache_bytes in the "
            "profile; what has been pushed is kept"
        )
    return UserError(f"{profile.name}: {words[:300]}")


def _ssh(profile: Profile, socket: Path, master: str) -> list[str]:
    settings = profile.settings
    options = {**OPTIONS, "ControlMaster": master, "ControlPath": str(socket), "ControlPersist": "no"}
    line = ["ssh"]
    if "config" in settings:
        place = Path(settings["config"]).expanduser()
        line += ["-F", str((profile.path or Path()).parent / place)]
    line += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    if "port" in settings:
        line += ["-p", str(settings["port"])]
    if "user" in settings:
        line += ["-l", settings["user"]]
    return line


def _template(profile: Profile) -> str:
    own = own_folder() / f"{profile.name}.toml"
    if profile.path == own:
        return f"{profile.name}: no host is named in {own}; set host"
    return f"{profile.name}: is a template without a host; copy {profile.path} to {own} and set host"


def _refused(profile: Profile, code: int, said: str) -> UserError:
    """ssh's own words, and what may be done about the usual ones."""
    words = _words(said) or f"ssh ended with {code}"
    host = profile.settings["host"]
    if "IDENTIFICATION HAS CHANGED" in said:
        cure = "find out why before you remove the old key (ssh-keygen -R)"
    elif "Host key verification failed" in said:
        cure = f"connect once by hand and compare its key: ssh {host}"
    elif "Permission denied" in said:
        cure = f"let your key in there first (ssh-copy-id {host}), or load it into your agent; no password is asked for"
    else:
        cure = f"see that it is on, and that `ssh {host}` works"
    return UserError(f"{profile.name}: ssh: {words.removeprefix('ssh: ')}; {cure}")


def _words(said: str) -> str:
    """What was said, in a line, without ssh's frames of @."""
    return " ".join(word for one in said.splitlines() if (word := one.strip().strip("@").strip()))
