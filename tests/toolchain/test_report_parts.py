import random

import pytest

from toolchain.report.charts import spread_out, ticks, wrap
from toolchain.report.front import front
from toolchain.report.lineage import Student, label
from toolchain.report.units import count, hours, mb, ms, percent, short_count, three


@pytest.mark.parametrize("seed", range(60))
def test_the_front_is_what_brute_force_says(seed: int) -> None:
    """Over random points, many of them equal in one coordinate or both, exactly the undominated ones stay."""
    rng = random.Random(seed)
    points = [(rng.randrange(1 + seed % 9), rng.randrange(1 + seed % 7)) for _ in range(rng.randrange(25))]
    alone = [
        i for i, p in enumerate(points) if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)
    ]
    kept = front(points)
    assert sorted(kept) == alone
    assert [points[i] for i in kept] == sorted(points[i] for i in kept)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0, "0"),
        (0.8617, "0.862"),
        (21.04, "21.0"),
        (9.996, "10.0"),
        (999.6, "1,000"),
        (12345, "12,300"),
        (30123456, "3.01e+07"),
        (-0.5, "-0.500"),
        (0.000012345, "1.23e-05"),
    ],
)
def test_three_significant_digits(value: float | None, text: str) -> None:
    """Numbers keep three digits that mean something, and nothing measured is nothing written."""
    assert three(value) == text


def test_units() -> None:
    """Seconds are shown as ms, bytes as MB of 10^6, counts with the letter people use."""
    assert (ms(0.00421), mb(20_123_456), count(5_030_000), count(150_000), count(960)) == (
        *("4.21", "20.1", "5.03 M", "150 k", "960"),
    )
    assert (short_count(150_000), short_count(1_500_000), hours(0.061), hours(2.5)) == (
        "150k",
        "1.5M",
        "3.66 min",
        "2.50 h",
    )
    assert (percent(1.62), percent(1.004), percent(0.9)) == ("+62\u00a0%", "+0.4\u00a0%", "-10\u00a0%")


@pytest.mark.parametrize(
    ("low", "high"), [(20, 230), (21, 23), (1, 1e6), (0.9, 1.1), (34.6, 34.7), (18, 9e4)]
)
def test_log_axes_have_round_values_inside(low: float, high: float) -> None:
    """Between two and twelve ticks, ascending, none outside the axis."""
    values = ticks(low, high)
    assert values == sorted(values)
    assert all(low <= value <= high for value in values)
    assert len(values) <= 12


def test_labels_never_overlap() -> None:
    """Boxes keep their order, touch at most, and stay inside where there is room for all."""
    rng = random.Random(0)
    for _ in range(200):
        sizes = [rng.choice([19.0, 33.0]) for _ in range(rng.randrange(1, 10))]
        places = sorted(rng.uniform(0, 400) for _ in sizes)
        moved = spread_out(places, sizes, 400)
        gaps = [b - a - (x + y) / 2 for a, b, x, y in zip(moved, moved[1:], sizes, sizes[1:], strict=False)]
        assert all(gap > -1e-6 for gap in gaps)
        assert moved[-1] + sizes[-1] / 2 <= 400 + 1e-6


def test_labels_break_after_commas() -> None:
    """A label's parts stand on lines of their own, and a word longer than the line is not lost."""
    assert wrap("6 layers pseudo-uniform, as cut", 26) == "6 layers pseudo-uniform,\nas cut"
    assert wrap("a" * 30, 26).replace("\n", "") == "a" * 30


def made(**compression: object) -> Student:
    """A student of six layers with the given compression.json."""
    return Student("s", "small", "", "decoder", 6, 1, compression or None, None, None, False)


@pytest.mark.parametrize(
    ("compression", "text"),
    [
        ({}, "small, 6 layers"),
        ({"init": "truncate", "select": "uniform", "train": "none"}, "6 layers uniform, as cut"),
        (
            {"init": "truncate", "select": "keep", "keep": [0, 1], "train": None},
            "6 layers kept by hand, as cut",
        ),
        (
            {"init": "truncate", "select": "first", "train": "pretrain", "training": {"tokens": 2_000_000}},
            "6 layers first, healed 2M tokens",
        ),
        (
            {
                "init": "truncate",
                "select": "first",
                "train": "distill",
                "objective": "hidden",
                "training": {},
            },
            "6 layers first, distilled (hidden)",
        ),
        (
            {"init": "random", "train": "pretrain", "training": {"tokens": 900}},
            "6 layers from nothing, 900 tokens",
        ),
    ],
)
def test_labels_come_from_lineage(compression: dict, text: str) -> None:
    """What was done to a model is what it is called."""
    assert label(made(**compression)) == text
