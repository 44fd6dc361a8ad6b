"""How far a long command is: a bar on a terminal, elsewhere a line on stderr every ten seconds."""

import sys
import time
from typing import Self

from tqdm import tqdm

EVERY = 10.0  # seconds


class Progress:
    """`with Progress(total, what, unit) as progress:` and `progress.update()` for each `unit` done."""

    def __init__(self, total: int, what: str, unit: str, show: bool = True) -> None:
        self.total, self.what, self.unit, self.done = total, what, unit, 0
        live = sys.stderr.isatty()
        self.lines, self.said = show and not live, time.monotonic()
        hidden = not (show and live)
        self.bar = tqdm(
            total=total, desc=what, unit=unit, leave=False, disable=hidden, dynamic_ncols=True, miniters=1
        )

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()

    def name(self, what: str) -> None:
        """Say what is done from here on."""
        self.what = what
        self.bar.set_description(what)

    def update(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        self.bar.update(count)
        if self.lines and time.monotonic() - self.said >= EVERY:
            self.said = time.monotonic()
            sys.stderr.write(f"  {self.what}: {self.done} of {self.total} {self.unit}s\n")
            sys.stderr.flush()
