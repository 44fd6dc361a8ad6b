"""Energy, where a counter or a power sensor tells it: RAPL on x86, an INA3221 on Jetson boards. Else null.

Both count the whole package or board, not this process: on a machine that does other things they say too much.
RAPL's counters are read for the user by root alone since Linux 5.10 (CVE-2020-8694); unreadable is null.
"""

import itertools
import threading
import time
from pathlib import Path
from typing import Any, Self

POWERCAP = Path("/sys/class/powercap")
HWMON = Path("/sys/class/hwmon")
EVERY = 0.05  # seconds between two readings of a power sensor
INPUTS = (
    "VDD_IN",
    "POM_5V_IN",
    "VIN_SYS_5V0",
)  # the rail of the whole board, by its label on Jetson's boards


class Meter:
    """`with Meter() as meter:` around what is measured, then `meter.read()`."""

    def __init__(self) -> None:
        self.counters = [zone for zone in packages() if _number(zone / "energy_uj") is not None]
        self.rail = None if self.counters else board_rail()
        self.used: float | None = None

    def __enter__(self) -> Self:
        """Begin."""
        self.before = [_number(zone / "energy_uj") for zone in self.counters]
        self.watts: list[tuple[float, float]] = []
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True) if self.rail else None
        if self.thread:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self.stopped.set()
        if self.thread:
            self.thread.join()
            self.used = integral(self.watts)
            return
        after = [_number(zone / "energy_uj") for zone in self.counters]
        spent = [
            spent_uj(before, now, _number(zone / "max_energy_range_uj"))
            for zone, before, now in zip(self.counters, self.before, after, strict=True)
        ]
        known = [one for one in spent if one is not None]
        self.used = sum(known) / 1e6 if known and len(known) == len(spent) else None

    def read(self) -> dict[str, Any] | None:
        """{joules, source, label: "measured"}; null where nothing counts."""
        if self.used is None:
            return None
        return {"joules": self.used, "source": "ina3221" if self.rail else "rapl", "label": "measured"}

    def _sample(self) -> None:
        assert self.rail is not None
        while True:
            watts = power(self.rail)
            if watts is not None:
                self.watts.append((time.monotonic(), watts))
            if self.stopped.wait(EVERY):
                return


def packages() -> list[Path]:
    """RAPL's zones of whole processor packages: intel-rapl:0, intel-rapl:1 (AMD's carry the same name)."""
    found = sorted(POWERCAP.glob("intel-rapl:*"))
    return [
        zone for zone in found if zone.name.count(":") == 1 and _text(zone / "name").startswith("package")
    ]


def spent_uj(before: int | None, after: int | None, span: int | None) -> int | None:
    """Microjoules between two readings of a counter that starts again at 0 beyond `span`; null where unknown.

    One overflow is allowed for: at 100 W a counter of 262 kJ lasts 43 minutes.
    """
    if before is None or after is None:
        return None
    if after >= before:
        return after - before
    return None if span is None else after + span + 1 - before


def board_rail() -> tuple[Path, int] | None:
    """The INA3221 channel that the whole board draws through: (its folder, its number)."""
    for folder in sorted(HWMON.glob("hwmon*")):
        if _text(folder / "name") != "ina3221":
            continue
        for channel in (1, 2, 3):
            if _text(folder / f"in{channel}_label") in INPUTS and power((folder, channel)) is not None:
                return folder, channel
    return None


def power(rail: tuple[Path, int]) -> float | None:
    """Watts now: volts (in*_input, mV) times amperes (curr*_input, mA)."""
    folder, channel = rail
    volts, amperes = _number(folder / f"in{channel}_input"), _number(folder / f"curr{channel}_input")
    return None if volts is None or amperes is None else volts * amperes / 1e6


def integral(watts: list[tuple[float, float]]) -> float | None:
    """Joules of readings (seconds, watts) by the trapezoid rule; null for fewer than two."""
    if len(watts) < 2:
        return None
    return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in itertools.pairwise(watts))


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
