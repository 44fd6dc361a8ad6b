"""The environment is recorded on any machine; what cannot be read is null, never a guess or a crash."""

import json
import subprocess
import sys

import pytest

from devices import machine
from devices.process import environment

X86 = """processor\t: 0
model name\t: Some CPU @ 3.00GHz
cpu MHz\t\t: 2999.9
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse avx avx2 fma avx512f avx512_vnni

processor\t: 1
model name\t: Some CPU @ 3.00GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse avx avx2 fma avx512f avx512_vnni

processor\t: 2
physical id\t: 0
core id\t\t: 1
"""
ARM = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes asimdhp asimddp
CPU part\t: 0xd0b

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    """Write a cpuinfo that the module reads."""

    def write(text):
        path = tmp_path / "cpuinfo"
        path.write_text(text)
        monkeypatch.setattr(machine, "CPUINFO", path)

    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    return write


def test_two_threads_of_a_core_count_once(cpuinfo):
    """Cores are counted by where they are, not by how many threads they run."""
    cpuinfo(X86)
    assert machine.physical_cores() == 2
    assert machine.usable_threads() == 3


def test_only_cores_this_process_may_use_count(cpuinfo, monkeypatch):
    """A process that is held to one core has one."""
    cpuinfo(X86)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {2})
    assert machine.physical_cores() == 1


def test_instruction_sets_are_those_that_matter(cpuinfo):
    """Of all flags, those are named by which kernels differ."""
    cpuinfo(X86)
    found = machine.environment()
    assert found["isa"] == ["avx", "avx2", "fma", "avx512f", "avx512_vnni"]
    assert found["cpu"] == "Some CPU @ 3.00GHz"


def test_an_arm_board_is_described(cpuinfo):
    """ARM's cpuinfo has other names for the same things."""
    cpuinfo(ARM)
    found = machine.environment()
    assert found["isa"] == ["asimd", "asimddp", "asimdhp"]
    assert found["cpu"] == "Raspberry Pi 5 Model B Rev 1.0"


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        (X86, True),
        (X86.replace("avx512_vnni", "avx_vnni"), True),
        (X86.replace("avx512_vnni", "amx_int8"), True),
        (X86.replace("avx512_vnni", "avx512bw"), False),
        ("", False),
        (ARM, True),
        (ARM.replace("asimddp", ""), True),
    ],
)
def test_exact_int8_sums_are_told_by_the_instruction_sets(cpuinfo, text, exact):
    """VNNI or ARM: sums are exact; other x86, or nothing known: they saturate."""
    cpuinfo(text)
    assert machine.exact_int8(machine.isa() or ()) is exact


@pytest.mark.parametrize("text", ["", "\n\n\n", "garbage", "processor : x\ncpu MHz : fast\n", "a:b:c\n\n:\n"])
def test_a_strange_cpuinfo_does_not_crash(cpuinfo, text):
    """Anything in the kernel's files makes a record that JSON can carry."""
    cpuinfo(text)
    json.dumps(machine.environment())
    assert machine.physical_cores() >= 1


def test_nothing_to_read_is_null(tmp_path, monkeypatch):
    """Without /proc and /sys, what they would say is null."""
    monkeypatch.setattr(machine, "_read", lambda _: None)
    found = machine.environment()
    assert [found[key] for key in ("isa", "memory_bytes", "governor", "mhz")] == [None] * 4
    assert machine.peak_rss() is None


def test_peak_memory_is_the_high_water_mark():
    """The peak stays after memory is given back. In a fresh process: this one may have been higher before."""
    code = (
        "from devices.machine import peak_rss; before = peak_rss(); block = bytearray(64 << 20)\n"
        "block[:: 1 << 12] = b'x' * len(block[:: 1 << 12]); del block; print(peak_rss() - before)"
    )
    grown = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, check=True)
    assert (32 << 20) <= int(grown.stdout) < (128 << 20)


def test_a_package_that_is_not_there_is_null():
    """A version is read from what is installed."""
    assert machine.version("no-such-package-here") is None
    assert machine.version("numpy")
