"""Between ssh and a worker, on the device: `python -m devices.supervisor PYTHON MODULE ARGUMENT...`

Without a terminal nobody tells a process that its connection is gone: a worker would measure on. This process
reads the request, a line on standard input, hands it to the module's process and then waits: standard input's
end, or silence on it for PATIENCE seconds, ends that process. Every line that it writes goes out behind MARK, so
that what a login shell prints is not taken for an answer; where it ends badly, a last line says how.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading

MARK = "#toolchain# "
PATIENCE = 60.0  # seconds: bench.process.BEAT comes every ten
TAIL = 4000  # bytes of standard error that are kept


def main(python: str, module: str, *arguments: str) -> int:
    """Run the module until it ends or nobody listens any more: 0 where it did well."""
    request, rest = _request()
    if not rest:
        return 1
    command = [python, "-P", "-m", module, str(os.getpid()), *arguments]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    threading.Thread(target=_feed, args=(child, request), daemon=True).start()
    try:
        said = _watch(child)
        code = child.wait()
    finally:
        child.kill()
    if code:
        _write(json.dumps({"ended": code, "said": said.decode("utf-8", "replace")}).encode())
    return 1 if code else 0


def _request() -> tuple[bytes, bool]:
    """The first line of standard input, and whether it came whole."""
    request = b""
    while not request.endswith(b"\n"):
        piece = os.read(0, 1 << 16)
        if not piece:
            return request, False
        request += piece.lstrip(b"\n") if not request else piece
    return request, True


def _feed(child: subprocess.Popen[bytes], request: bytes) -> None:
    assert child.stdin is not None
    with contextlib.suppress(OSError):
        child.stdin.write(request)
        child.stdin.close()


def _watch(child: subprocess.Popen[bytes]) -> bytes:
    """Pass its lines on until it closes both outputs; the end of what it wrote to standard error.

    Where standard input ends or falls silent, it is killed.
    """
    assert child.stdout is not None and child.stderr is not None
    line, said = b"", b""
    with selectors.DefaultSelector() as waiting:
        for stream in (0, child.stdout.fileno(), child.stderr.fileno()):
            waiting.register(stream, selectors.EVENT_READ)
        while len(waiting.get_map()) > 1:
            ready = [key.fd for key, _ in waiting.select(PATIENCE)]
            if not ready or (0 in ready and not os.read(0, 1 << 16)):
                child.kill()
                sys.exit(1)
            for stream in set(ready) - {0}:
                piece = os.read(stream, 1 << 16)
                if not piece:
                    waiting.unregister(stream)
                elif stream == child.stderr.fileno():
                    said = (said + piece)[-TAIL:]
                else:
                    *lines, line = (line + piece).split(b"\n")
                    for one in lines:
                        _write(one)
    if line:
        _write(line)
    return said


def _write(line: bytes) -> None:
    """A line behind MARK, and an empty one before it: the shell may have left one unfinished."""
    whole = memoryview(b"\n" + MARK.encode() + line + b"\n")
    while whole:
        whole = whole[os.write(1, whole) :]


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except BrokenPipeError:
        os._exit(1)  # nobody listens; `main` has ended the module's process
