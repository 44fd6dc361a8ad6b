"""A process of its own for each measurement: what it answered, what it took, and who else was busy."""

import json
import os
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LIMIT = 1800.0  # seconds until a process is ended
# Thread counts are what the request says, whatever the shell that called had set.
UNSET = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONPATH", "VIRTUAL_ENV")


class Failed(Exception):  # noqa: N818 - as in devices.errors: an outcome that is told, not a bug
    """A peer could not do it; the message is the reason, one line."""


@dataclass(frozen=True)
class Ended:
    """What a process printed; its seconds and peak bytes; the share of all cores that others used."""

    out: str
    seconds: float
    peak: int
    others: float


def run(command: list[str], text: str = "", env: dict[str, str] | None = None) -> Ended:
    """Run `command` with `text` on its standard input; Failed with its last words where it ends badly."""
    around = {k: v for k, v in os.environ.items() if k not in UNSET}
    around |= {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile() as put, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        put.write(text.encode())
        put.seek(0)
        busy, start = _busy(), time.perf_counter()
        process = subprocess.Popen(command, stdin=put, stdout=out, stderr=err, env={**around, **(env or {})})
        timer = threading.Timer(LIMIT, process.kill)
        timer.start()
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            timer.cancel()
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        others = (_busy() - busy - used.ru_utime - used.ru_stime) / seconds / (os.cpu_count() or 1)
        if process.returncode:
            raise Failed(_reason(process.returncode, _text(err) or _text(out)))
        return Ended(_text(out), seconds, used.ru_maxrss * 1024, round(max(others, 0.0), 3))


def ask(python: Path | str, adapter: str, request: dict[str, Any]) -> tuple[dict[str, Any], Ended]:
    """An adapter's answer to `request`; the variables among its settings are set for the process."""
    env = {"PYTHONPATH": str(ROOT), **request.get("settings", {}).get("env", {})}
    command = [str(python), str(HERE / "adapters" / f"{adapter}.py")]
    ended = run(command, json.dumps(request), env)
    try:
        return json.loads(ended.out.splitlines()[-1]), ended
    except (ValueError, IndexError):
        raise Failed(f"answered no JSON ({ended.out[-80:]!r})") from None


def _text(file: Any) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _reason(code: int, said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "Error" in line), (lines or ["it said nothing"])[-1])
    return f"ended by signal {-code}" if code < 0 else last[:200]


def _busy() -> float:
    """Seconds that all cores have been busy since the machine started, stolen ones included."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
