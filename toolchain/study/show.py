"""A study while it runs: a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from toolchain.study.engine import CACHED, DONE, FAILED, RUNNING, SKIPPED, WAITING, Walk
from toolchain.study.estimate import START

if TYPE_CHECKING:
    from rich.table import Table

SAID = 48  # characters of a stage's last line
COLOURS = {CACHED: "dim", WAITING: "dim", RUNNING: "cyan", DONE: "green", FAILED: "red", SKIPPED: "yellow"}


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return f"{int(seconds // 3600)}:{int(seconds // 60) % 60:02}:{int(seconds) % 60:02}"


def remaining(walk: Walk, expected: dict[str, float], jobs: int) -> float:
    """Seconds until the end: what was expected of the stages left, corrected by how the finished ones ran."""
    over = [name for name, state in walk.states.items() if state == DONE and expected[name] > 2 * START]
    planned = sum(expected[name] for name in over)
    pace = sum(walk.seconds[name] for name in over) / planned if planned else 1.0
    left = sum(expected[name] for name, state in walk.states.items() if state == WAITING)
    for name, state in walk.states.items():
        if state == RUNNING:
            left += max(0.0, expected[name] - (time.monotonic() - walk.since[name]) / pace)
    return left * pace / jobs


@contextmanager
def shown(walk: Walk, expected: dict[str, float], jobs: int) -> Iterator[Callable[[str], None]]:
    """What to call when a stage's state or last line changes."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain(walk, expected, jobs)
        return
    from rich.live import Live

    with Live(console=console, refresh_per_second=2, get_renderable=lambda: _table(walk, expected, jobs)):
        yield lambda name: None


def _plain(walk: Walk, expected: dict[str, float], jobs: int) -> Callable[[str], None]:
    """A line when a stage begins and one when it ends."""
    said: dict[str, str] = {}

    def changed(name: str) -> None:
        state = walk.states[name]
        if said.get(name) == state:
            return
        said[name] = state
        over = sum(s not in (WAITING, RUNNING) for s in walk.states.values())
        text = f"{over}/{len(walk.states)} {name}: {state}"
        if name in walk.seconds:
            text += f" after {clock(walk.seconds[name])}, about {clock(remaining(walk, expected, jobs))} left"
        if state in (FAILED, SKIPPED) and name in walk.lines:
            text += f" ({walk.lines[name]})"
        click.echo(text, err=True)

    return changed


def _table(walk: Walk, expected: dict[str, float], jobs: int) -> "Table":
    """Counts in the caption; the stages that run, and the last ones that ended."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("stage", "state", "time", "said"):
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    ended = [n for n in walk.states if n in walk.seconds]
    failed = [n for n, s in walk.states.items() if s in (FAILED, SKIPPED)]
    waiting = [n for n, s in walk.states.items() if s == WAITING]
    for name in dict.fromkeys(
        [*failed[-8:], *ended[-6:], *(n for n, s in walk.states.items() if s == RUNNING), *waiting[:4]]
    ):
        state = walk.states[name]
        spent = walk.seconds.get(name, time.monotonic() - walk.since[name] if name in walk.since else 0.0)
        line = walk.lines.get(name, "")[:SAID]
        table.add_row(name, f"[{COLOURS[state]}]{state}[/]", clock(spent) if spent else "", line)
    counts = {state: sum(s == state for s in walk.states.values()) for state in COLOURS}
    words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    table.caption = f"{words}; about {clock(remaining(walk, expected, jobs))} left"
    return table
