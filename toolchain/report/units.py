"""How numbers are written: three significant digits, known units, nothing where nothing was measured."""

import math

UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def three(value: float | None) -> str:
    """Three significant digits with thousands separated: 0.862, 21.0, 1,230, 45,700, 3.01e+07; '' for None."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    rounded = float(f"{value:.2e}")
    if abs(rounded) >= 1e6 or abs(rounded) < 1e-4:
        return f"{rounded:.2e}"
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def ms(seconds: float | None) -> str:
    """Seconds as a number of milliseconds."""
    return three(None if seconds is None else seconds * 1e3)


def mb(size: float | None) -> str:
    """Bytes as a number of megabytes (10^6)."""
    return three(None if size is None else size / 1e6)


def count(value: float | None) -> str:
    """A large count with its unit: 5.12 M, 150 k, 960; '' for None."""
    if value is None:
        return ""
    for scale, unit in UNITS:
        if value >= scale * 0.9995:
            return f"{three(value / scale)} {unit}"
    return f"{value:.0f}"


def short_count(value: float) -> str:
    """A count as people type it: 150k, 2M, 1.5M."""
    for scale, unit in UNITS:
        if value >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.0f}"


def percent(ratio: float) -> str:
    """A ratio to one as a signed change that no line break divides: +42 %, -0.5 %."""
    change = (ratio - 1) * 100
    return f"{change:+.0f}\u00a0%" if abs(change) >= 9.95 else f"{change:+.1f}\u00a0%"


def hours(value: float | None) -> str:
    """Hours as minutes below two hours, else as hours."""
    if value is None:
        return ""
    return f"{three(value)} h" if value >= 2 else f"{three(value * 60)} min"
