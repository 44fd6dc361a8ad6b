"""Asking a worker: a fresh process per question, whose failure is one line and which never outlives us."""

import contextlib
import json
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from typing import IO, Any

from devices import profiles, reach
from devices.errors import UserError
from devices.profiles import Profile

BEAT = 10.0  # seconds between signs of life, for who waits for them far away (devices/supervisor.py)
LOCAL = profiles.Profile("local", "local", "this machine")


def ask(
    request: dict[str, Any],
    name: str,
    profile: Profile = LOCAL,
    *,
    module: str = "bench.worker",
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The answer of our `module`, on the device, to `request`; UserError naming the artifact where it has none.

    The request is one line of JSON on its standard input. It may write lines {"progress": text}, which `tell`
    gets; its last line is the answer. Whatever ends this call, Ctrl-C included, ends the worker too; so does
    whatever ends this process.
    """
    there = reach.of(profile)
    with tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            there.command(profile, module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=there.environment(profile),
        )
        answered = threading.Event()
        beating = profile.kind == "ssh"
        threading.Thread(target=_feed, args=(process, json.dumps(request), answered, beating)).start()
        assert process.stdout is not None
        try:
            last, ended = _read(process.stdout, tell, getattr(there, "MARK", ""))
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            answered.set()
            process.stdout.close()
        err.seek(0)
        said = err.read().decode("utf-8", "replace")
    where = name if profile.kind == "local" else f"{name} on {profile.name}"
    if ended is not None:
        raise _failure(ended["ended"], ended["said"], where, profile)
    if code:
        failure = getattr(there, "failure", None)
        raise (failure and failure(profile, code, said)) or _failure(code, said, where, profile)
    try:
        return json.loads(last)
    except ValueError:
        raise UserError(f"{where}: the worker answered no JSON ({last[-80:]!r}); run it again") from None


def _feed(process: subprocess.Popen[str], request: str, answered: threading.Event, beating: bool) -> None:
    """Write the request; then, where it is waited for, an empty line every BEAT seconds until all is answered."""
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):  # it has ended already: what it says on that is read
        process.stdin.write(request + "\n")
        process.stdin.flush()
        while beating and not answered.wait(BEAT):
            process.stdin.write("\n")
            process.stdin.flush()
    with contextlib.suppress(OSError, ValueError):
        process.stdin.close()


def _read(out: IO[str], tell: Callable[[str], None], mark: str) -> tuple[str, dict[str, Any] | None]:
    """The last line behind `mark`, and how a supervisor says it ended where that was not well; progress is told."""
    last: str = ""
    ended: dict[str, Any] | None = None
    for whole in out:
        if not whole.startswith(mark):
            continue
        line, value = whole.removeprefix(mark), None
        if line.startswith(('{"progress":', '{"ended":')):
            with contextlib.suppress(ValueError):
                value = json.loads(line)
        match value:
            case {"progress": str(text)}:
                tell(text)
            case {"ended": int(), "said": str()}:
                ended = value
            case _:
                last = line.strip() or last
    return last, ended


def _failure(code: int, err: str, name: str, profile: Profile) -> UserError:
    """One line for a worker that ended with `code` after writing `err`."""
    last = (err.strip().splitlines() or ["it said nothing"])[-1]
    if code == 2:
        return UserError(last if profile.kind == "local" else f"{profile.name}: {last}")
    if code < 0:
        killed = signal.Signals(-code).name
        hint = "; out of memory? use a smaller model or workload" if killed == "SIGKILL" else ""
        return UserError(f"{name}: the worker was ended by {killed}{hint or '; run it again'}")
    if profile.kind == "local":
        cure = "check the installation with `toolchain doctor`"
    else:
        cure = f"check the device with `toolchain devices check {profile.name}`"
    return UserError(f"{name}: the worker failed ({last[:200]}); {cure}")
