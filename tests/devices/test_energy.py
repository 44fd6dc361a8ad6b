"""Energy is what a counter counted, an overflow included, or null; never an estimate."""

import time

import pytest

from devices import energy


@pytest.fixture
def sysfs(tmp_path, monkeypatch):
    """`sysfs(path, text)` writes a file of a made-up powercap and hwmon."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    monkeypatch.setattr(energy, "HWMON", tmp_path / "hwmon")

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write


def test_no_counter_is_null(sysfs):
    """A machine without one says nothing."""
    with energy.Meter() as meter:
        pass
    assert meter.read() is None


def test_packages_are_added_and_their_parts_are_not(sysfs):
    """Two packages count, cores inside one and the whole platform do not."""
    for zone, name, value in (
        ("intel-rapl:0", "package-0", 1_000_000),
        ("intel-rapl:1", "package-1", 5_000_000),
        ("intel-rapl:0:0", "core", 7),
        ("intel-rapl:2", "psys", 7),
    ):
        sysfs(f"powercap/{zone}/name", name)
        sysfs(f"powercap/{zone}/energy_uj", str(value))
    with energy.Meter() as meter:
        sysfs("powercap/intel-rapl:0/energy_uj", "3000000")
        sysfs("powercap/intel-rapl:1/energy_uj", "5500000")
        sysfs("powercap/intel-rapl:2/energy_uj", "99")
    assert meter.read() == {"joules": 2.5, "source": "rapl", "label": "measured"}


@pytest.mark.parametrize(
    ("before", "after", "span", "spent"),
    [
        (5, 9, 100, 4),
        (5, 5, None, 0),
        (90, 9, 99, 19),
        (0, 99, 99, 99),
        (90, 9, None, None),
        (None, 9, 99, None),
        (9, None, 99, None),
    ],
)
def test_a_counter_that_starts_again(before, after, span, spent):
    """Past its range it begins at 0; without a range nothing is known then."""
    assert energy.spent_uj(before, after, span) == spent


def test_a_counter_that_may_not_be_read_is_null(sysfs):
    """Text that is no number, as of a file that only root reads."""
    sysfs("powercap/intel-rapl:0/name", "package-0")
    sysfs("powercap/intel-rapl:0/energy_uj", "")
    with energy.Meter() as meter:
        pass
    assert meter.read() is None


def test_a_power_sensor_is_integrated(sysfs, monkeypatch):
    """A Jetson's input rail of 5 V and 2 A over a moment: 10 W times the time between its readings."""
    monkeypatch.setattr(energy, "EVERY", 0.01)
    sysfs("hwmon/hwmon0/name", "thermal")
    for name, text in {
        "name": "ina3221",
        "in1_label": "VDD_CPU",
        "in2_label": "VDD_IN",
        "in2_input": "5000",
        "curr2_input": "2000",
    }.items():
        sysfs(f"hwmon/hwmon1/{name}", text)
    began = time.monotonic()
    with energy.Meter() as meter:
        time.sleep(0.1)
    found = meter.read()
    assert found["source"] == "ina3221"
    assert 0.5 < found["joules"] <= 10 * (time.monotonic() - began)


def test_the_trapezoid_by_hand():
    """1 s from 10 to 20 W and 2 s at 20 W: 55 J."""
    assert energy.integral([(0, 10), (1, 20), (3, 20)]) == 55
    assert energy.integral([(0, 10)]) is None
