"""What is asked of the kernel about the weights' memory: no answer is changed by it, and nothing else is touched."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from devices import pages
from devices.runtime import Classifier, Decoder

MIB = 1 << 20
SMAPS = """\
{header}
Size:              {size} kB
Rss:               {size} kB
Anonymous:         {anonymous} kB
AnonHugePages:         0 kB
VmFlags: rd wr mr mw me ac
"""
needs_linux = pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="the kernel's own account")


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """`kernel(*regions)`: a process with regions (start, MiB, share that is anonymous, path); what is asked of it.

    `kernel.offers(text)` says what the kernel has of large pages; None: no such kernel.
    """
    asked = []
    monkeypatch.setattr(pages, "_madvise", lambda: lambda *call: asked.append(call) or 0)
    monkeypatch.setattr(pages, "SMAPS", tmp_path / "smaps")
    monkeypatch.setattr(pages, "ENABLED", tmp_path / "enabled")

    def has(*regions):
        text = ""
        for start, size, share, path in regions:
            header = f"{start:x}-{start + size * MIB:x} rw-p 00000000 fe:00 12" + " " * 20 + path
            text += SMAPS.format(header=header, size=size * 1024, anonymous=int(share * size * 1024))
        (tmp_path / "smaps").write_text(text)
        return asked

    has.offers = lambda text: (tmp_path / "enabled").write_text(text) if text else None
    has.offers("always [madvise] never\n")
    return has


def test_regions_are_read_as_the_kernel_writes_them(kernel):
    """Start, end, path and anonymous bytes of each; names with blanks whole, none where there is none."""
    kernel((0x7F0000000000, 3, 0.5, ""), (0x1000, 1, 1, "[heap]"), (0x400000, 2, 0, "/a b/model.onnx.data"))
    assert pages.regions() == [
        (0x7F0000000000, 0x7F0000300000, "", 3 * MIB // 2),
        (0x1000, 0x101000, "[heap]", MIB),
        (0x400000, 0x600000, "/a b/model.onnx.data", 0),
    ]


START = 0x7F0000000000
WHOLE = [(START, 8 * MIB, pages.MADV_HUGEPAGE), (START, 8 * MIB, pages.MADV_COLLAPSE)]
AT_4K = [(START + 4096, 8 * MIB, pages.MADV_HUGEPAGE), (START + 2 * MIB, 6 * MIB, pages.MADV_COLLAPSE)]
EVERY_OTHER = range(START + pages.STRIP, START + 8 * MIB, 2 * pages.STRIP)
DROPPED = [
    (START, 8 * MIB, pages.MADV_DONTNEED),
    *((at, pages.STRIP, pages.MADV_DONTDUMP) for at in EVERY_OTHER),
]


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ((START, 8, 1, ""), WHOLE),
        ((START, 8, 0.95, "[heap]"), WHOLE),
        ((START + 4096, 8, 1, ""), AT_4K),  # collapsed where large pages can begin and end
        ((START, 8, 0.5, ""), []),  # half empty: it would grow
        ((START, 1, 1, ""), []),  # no large page fits
        ((START, 8, 1, "[stack]"), []),
        ((START, 8, 1, "/usr/lib/lib.so"), []),
        ((START, 8, 0, "DATA"), DROPPED),
        ((START, 8, 0.001, "DATA"), []),  # what was written to the mapping would be lost
        ((START, 8, 0, "DATA.other"), []),
        ((START, 8, 0, "DATA (deleted)"), []),
    ],
)
def test_what_is_asked(kernel, tmp_path, region, expected):
    """New memory that is full goes into large pages, unwritten pages of the data file go back, all else stays."""
    data = tmp_path / "data"
    *place, path = region
    asked = kernel((*place, path.replace("DATA", str(data))))
    pages.settle([], data)
    assert asked == expected


def test_what_was_there_before_is_left_alone(kernel, tmp_path):
    """Of two regions only the one that loading has brought is touched."""
    kernel((START, 8, 1, ""))
    before = pages.regions()
    asked = kernel((START, 8, 1, ""), (START + 64 * MIB, 4, 1, ""))
    pages.settle(before, tmp_path / "data")
    assert {start for start, *_ in asked} == {START + 64 * MIB}


@pytest.mark.parametrize("offer", ["always madvise [never]\n", None])
def test_without_large_pages_memory_stays_as_it_is(kernel, tmp_path, offer):
    """Where they are switched off, or the kernel does not know them, none is asked for."""
    (tmp_path / "enabled").unlink()
    kernel.offers(offer)
    asked = kernel((START + 64 * MIB, 8, 1, ""), (START, 8, 0, str(tmp_path / "data")))
    pages.settle([], tmp_path / "data")
    assert asked == DROPPED


@pytest.mark.parametrize("text", [None, "", "garbage\n\n", "zz-yy rw-p\nAnonymous: 8 kB\n"])
def test_a_system_that_tells_nothing_is_asked_nothing(kernel, tmp_path, text):
    """Without an account of memory, or with one of another form, there is no region to touch."""
    asked = kernel()
    (tmp_path / "smaps").unlink() if text is None else (tmp_path / "smaps").write_text(text)
    pages.settle([], tmp_path / "data")
    assert asked == []


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_a_system_without_the_call(decoder_folder, monkeypatch, error):
    """No C library, or one without madvise: an artifact opens and answers all the same."""

    def missing(_):
        raise error

    expected = Decoder(decoder_folder, threads=1).logits([[1, 2, 3]])
    monkeypatch.setattr(pages.ctypes, "CDLL", missing)
    np.testing.assert_array_equal(Decoder(decoder_folder, threads=1).logits([[1, 2, 3]]), expected)


def test_a_kernel_that_declines(decoder_folder, monkeypatch):
    """An advice that fails (an old kernel knows no MADV_COLLAPSE) changes nothing."""
    monkeypatch.setattr(pages, "_madvise", lambda: lambda *_: -1)
    assert np.isfinite(Decoder(decoder_folder, threads=1).logits([[1, 2, 3]])).all()


def test_answers_are_the_same(decoder_folder, classifier_folder, monkeypatch):
    """Logits of a decoder, its steps included, and of a classifier are bit for bit those without any advice."""

    def answers():
        decoder = Decoder(decoder_folder, threads=1)
        rows = [decoder.logits([[5, 6, 7, 8]]), decoder.prefill([[1, 2], [3]]), decoder.step([4, 5])]
        return [*rows, Classifier(classifier_folder, threads=1).logits([[1, 2, 3]])]

    found = answers()
    monkeypatch.setattr(pages, "_madvise", lambda: None)
    for one, other in zip(found, answers(), strict=True):
        np.testing.assert_array_equal(one, other)


@needs_linux
def test_a_mapped_file_is_cut_into_strips(tmp_path):
    """Of a file that was mapped no region is longer than a strip, and what it holds is unchanged."""
    path, content = tmp_path / "data", bytes(range(256)) * 4096
    path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped:
        pages.settle(pages.regions(), path)
        found = [end - start for start, end, name, _ in pages.regions() if name == str(path)]
        assert sum(found) == len(content) and max(found) <= pages.STRIP
        assert mapped[:] == content


def test_strips_of_a_huge_table_are_few(kernel, tmp_path):
    """A mapping of 8 GiB is cut into fewer regions than a process may have."""
    asked = kernel((START, 8192, 0, str(tmp_path / "data")))
    pages.settle([], tmp_path / "data")
    assert 1000 < len(asked) < 5000 and all(at % pages.STRIP == 0 for at, *_ in asked)


@needs_linux
def test_real_memory_keeps_its_bytes_and_its_size(tmp_path):
    """A full region and a mapped file hold after it what they held; the file's pages are no longer resident."""
    (tmp_path / "data").write_bytes(np.random.default_rng(0).bytes(4 * MIB))
    with (tmp_path / "data").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    held, before = bytes(mapped), pages.regions()
    full = mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    full[:] = held * 4
    assert resident(tmp_path / "data") == 4 * MIB
    anonymous = sum(region[3] for region in pages.regions())
    pages.settle(before, tmp_path / "data")
    assert resident(tmp_path / "data") == 0
    assert sum(region[3] for region in pages.regions()) < anonymous + 2 * MIB
    assert mapped[:] == held and full[:] == held * 4


@needs_linux
def test_what_was_written_to_the_mapping_stays(tmp_path):
    """A private change of the file's mapping is not taken back."""
    (tmp_path / "data").write_bytes(bytes(4 * MIB))
    with (tmp_path / "data").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    mapped[MIB : MIB + 5] = b"mine!"
    pages.settle([], tmp_path / "data")
    assert mapped[MIB : MIB + 5] == b"mine!"


def resident(file):
    """Bytes of a mapped file that this process has resident."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if header := pages.HEADER.fullmatch(line):
            ours = header[4] == str(file)
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found
