"""What the kernel tells of memory, load, clock and heat; on a machine that tells nothing all of it is null."""

import mmap
import subprocess
import sys

import pytest

from devices import state
from devices.process import environment


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """`kernel(path, text)` writes a file of a made-up /proc and /sys."""
    monkeypatch.setattr(state, "PROC", tmp_path / "proc")
    monkeypatch.setattr(state, "SYS", tmp_path / "sys")

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write


def test_memory_is_split_by_what_backs_it(tmp_path):
    """40 MB of a mapped file and 20 MB of our own stand where they belong; the peak outlives both."""
    (tmp_path / "weights").write_bytes(b"x" * (40 << 20))
    code = f"""
import mmap
from devices.state import memory
before = memory()
own = bytearray(b"x" * (20 << 20))
file = open({str(tmp_path / "weights")!r}, "rb")
mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
sum(mapped[at] for at in range(0, len(mapped), {mmap.PAGESIZE}))
during = memory()
del own
mapped.close()
after = memory()
assert (19 << 20) < during["anonymous"] - before["anonymous"] < (24 << 20)
assert (39 << 20) < during["file"] - before["file"] < (44 << 20)
assert during["resident"] == during["anonymous"] + during["file"]
assert after["peak"] >= during["resident"] - (1 << 20) and after["resident"] < during["resident"] - (50 << 20)
"""
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


def test_without_smaps_the_status_tells(kernel):
    """Kernels without smaps_rollup have the same figures in status."""
    kernel(
        "proc/self/status",
        "Name:\tx\nVmHWM:\t  900 kB\nVmRSS:\t 800 kB\nRssAnon:\t 300 kB\nRssFile:\t 500 kB\n",
    )
    found = state.memory()
    assert found == {"peak": 900 << 10, "resident": 800 << 10, "anonymous": 300 << 10, "file": 500 << 10}


def test_others_time_is_what_neither_we_nor_nobody_used(kernel, monkeypatch):
    """Of 10 s on all processors 4 s idle, 1 s stolen and 2 s ours: 30 % were others'."""
    own = iter([5.0, 7.0])
    monkeypatch.setattr(state, "_own", lambda: next(own))
    monkeypatch.setattr(state.os, "sysconf", lambda _: 100)
    kernel("proc/stat", "cpu  100 0 0 1000 50 0 0 0 7 7\ncpu0 1\n")
    busy = state.Busy()
    kernel("proc/stat", "cpu  500 50 50 1350 100 0 0 100 9 9\ncpu0 1\n")
    assert busy.read() == {"others": 0.3, "stolen": 0.1, "ours": 0.2}


@pytest.mark.parametrize("text", ["", "cpu 1 2", "cpu a b c d e f g h", "intr 1 2 3 4 5 6 7 8 9"])
def test_a_strange_stat_is_null(kernel, text):
    """What is not as documented is not guessed at."""
    kernel("proc/stat", text)
    assert state.Busy().read() == {"others": None, "stolen": None, "ours": None}


def test_our_own_work_is_not_others():
    """A process that works alone counts its own time as its own."""
    busy = state.Busy()
    total = sum(i * i for i in range(3_000_000))
    found = busy.read()
    assert total and found["ours"] > 0


def test_clock_governor_and_heat(kernel, monkeypatch):
    """MHz over the processors in use, the hottest zone, the governor of the first processor."""
    monkeypatch.setattr(state, "_allowed", lambda: [0, 1])
    cpus = "sys/devices/system/cpu"
    kernel(f"{cpus}/cpu0/cpufreq/scaling_governor", "ondemand\n")
    kernel(f"{cpus}/cpu0/cpufreq/scaling_cur_freq", "1500000\n")
    kernel(f"{cpus}/cpu1/cpufreq/scaling_cur_freq", "2400000\n")
    for zone, text in enumerate(("45123", "81500", "-274000", "hot")):
        kernel(f"sys/class/thermal/thermal_zone{zone}/temp", text)
    found = state.clocks()
    assert (found["governor"], found["mhz"], found["celsius"]) == ("ondemand", 1950.0, 81.5)


def test_a_clock_may_stand_in_cpuinfo(kernel):
    """Virtual machines have no cpufreq."""
    kernel("proc/cpuinfo", "processor : 0\ncpu MHz\t\t: 2000.5\n\nprocessor : 1\ncpu MHz : x\n")
    assert state.mhz() == 2000.5


def test_the_largest_cache(kernel):
    """Sizes are told with units; the last level is the largest."""
    for index, text in enumerate(("32K", "1024K", "32M", "?")):
        kernel(f"sys/devices/system/cpu/cpu0/cache/index{index}/size", text)
    assert state.cache_bytes() == 32 << 20


def test_nothing_to_read_is_null(kernel):
    """A system without /proc and /sys is measured all the same."""
    assert set(state.memory().values()) == {None}
    assert [state.clocks()[key] for key in ("governor", "mhz", "celsius")] == [None] * 3
    assert state.cache_bytes() is None
