"""Does a comparison say "no difference" of the same artifact, and find one that is 5 % slower? In a model, and here.

python tests/bench/aa.py simulate --out docs/results/intervals.json
python tests/bench/aa.py measure ARTIFACT --out docs/results/aa.json [--noise]
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import noise

from bench import run, stats
from bench.compare import FIGURES, compare
from devices.files import read_json, write_json
from devices.machine import environment

SLOWER = 1.05
ENOUGH = {"same": 0.95, "found": 0.55}  # 19 of 20; most of 20
# What disturbs: nothing for a while, then a program that computes, then nothing again.
DISTURBER = """
import random, time
rng = random.Random(0)
while True:
    time.sleep(rng.uniform(0.5, 4))
    until = time.monotonic() + rng.expovariate(1)
    while time.monotonic() < until:
        sum(range(1000))
"""


def simulate(rounds: list[int], tries: int) -> dict[str, Any]:
    """Every method on every machine: shares called different where nothing is, and found where something is."""
    table = []
    for name, machine in noise.MACHINES.items():
        for count in rounds:
            row: dict[str, Any] = {"machine": name, "rounds": count}
            for method, interval in noise.METHODS.items():
                row[method] = _rates(noise.rates(interval, machine, count, tries, SLOWER, count))
            row["trimmed, apart"] = _rates(noise.rates_apart(machine, count, tries, SLOWER, count))
            table.append(row)
            sys.stderr.write(f"{name}, {count} rounds\n")
    machines = {name: vars(one) for name, one in noise.MACHINES.items()}
    head = {"slower": SLOWER, "confidence": stats.CONFIDENCE, "tries": tries, "machines": machines}
    return {**head, "table": table}


def _rates(found: tuple[float, float]) -> dict[str, float]:
    return {"false": round(found[0], 4), "found": round(found[1], 4)}


def markdown(found: dict[str, Any]) -> str:
    """The table in per cent: called different where nothing is / found."""
    names = [key for key in found["table"][0] if key not in ("machine", "rounds")]
    lines = ["| machine | rounds | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for row in found["table"]:
        cells = [f"{row[name]['false'] * 100:.1f} / {row[name]['found'] * 100:.0f}" for name in names]
        lines.append(f"| {row['machine']} | {row['rounds']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@contextmanager
def slowed(folder: Path) -> Iterator[None]:
    """Within the block, a worker that measures the artifact in `folder` takes SLOWER times as long."""
    ask = run.ask

    def asked(request: dict[str, Any], *rest: Any, **more: Any) -> dict[str, Any]:
        slow = {"slower": SLOWER} if request.get("artifact") == str(folder) else {}
        return ask({**request, **slow}, *rest, **more)

    run.ask = asked
    try:
        yield
    finally:
        run.ask = ask


@contextmanager
def disturbed(wanted: bool) -> Iterator[None]:
    """Within the block another program computes now and then."""
    if not wanted:
        yield
        return
    other = subprocess.Popen([sys.executable, "-c", DISTURBER])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def measure(artifact: Path, tries: int, rounds: int, threads: int, loud: bool) -> Iterator[dict[str, Any]]:
    """A try at a time: the same artifact twice and once slowed, in one interleaved run; both comparisons."""
    with tempfile.TemporaryDirectory() as scratch, disturbed(loud):
        copies = [Path(scratch).resolve() / name for name in ("a", "again", "slowed")]
        for copy in copies:
            shutil.copytree(artifact, copy)
        with slowed(copies[2]):
            for number in range(tries):
                began = time.monotonic()
                settings = {"rounds": rounds, "threads": threads, "seed": number, "progress": False}
                a, again, slow = run.bench(copies, Path(scratch) / "results", **settings)
                others = a["machine"]["others"]
                seconds = round(time.monotonic() - began, 1)
                yield {
                    "same": compare(a, again)["figures"],
                    "slowed": compare(a, slow)["figures"],
                    "others": others,
                    "seconds": seconds,
                }


def summary(tries: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure: how often the same artifact was the same, and the slowed one slower."""
    return {
        key: {
            "tries": len(tries),
            "same": sum(one["same"][key]["verdict"] == "same" for one in tries),
            "slower_found": sum(one["slowed"][key]["verdict"] == "more" for one in tries),
        }
        for key in FIGURES
        if key in tries[0]["same"]
    }


def measured(given: argparse.Namespace) -> int:
    """Try, keep each try on the disk, print the counts: 0 if both promises held for the time per token."""
    kind = "noisy" if given.noise else "as it was"
    kept = read_json(given.out, "earlier tries") if given.out.exists() else {}
    tries = []
    for one in measure(given.artifact, given.tries, given.rounds, given.threads, given.noise):
        tries.append(one)
        settings = {"artifact": given.artifact.name, "rounds": given.rounds, "threads": given.threads}
        record = {**settings, "slower": SLOWER, "environment": environment(), "summary": summary(tries)}
        write_json(given.out, {**kept, kind: {**record, "tries": tries}})
        token = one["same"]["token_s"]["verdict"], one["slowed"]["token_s"]["verdict"]
        print(
            f"try {len(tries)} of {given.tries}: the same is {token[0]}, the slowed is {token[1]}", flush=True
        )
    found = summary(tries)
    for key, counts in found.items():
        print(
            f"{FIGURES[key][0]}: no difference in {counts['same']} of {len(tries)}; "
            f"{SLOWER - 1:.0%} more found in {counts['slower_found']}"
        )
    token = found["token_s"]
    held = token["same"] >= ENOUGH["same"] * len(tries)
    return 0 if held and token["slower_found"] >= ENOUGH["found"] * len(tries) else 1


def main() -> int:
    """Simulate or measure, as asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="what", required=True)
    model = parts.add_parser("simulate")
    model.add_argument("--rounds", default="5,6,8,10,12,15,20")
    model.add_argument("--tries", type=int, default=1000)
    here = parts.add_parser("measure")
    here.add_argument("artifact", type=Path)
    here.add_argument("--tries", type=int, default=20)
    here.add_argument("--rounds", type=int, default=12)
    here.add_argument("--threads", type=int, default=1)
    here.add_argument("--noise", action="store_true", help="another program computes now and then")
    for part in (model, here):
        part.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.what == "measure":
        return measured(given)
    found = simulate([int(word) for word in given.rounds.split(",")], given.tries)
    write_json(given.out, found)
    print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
