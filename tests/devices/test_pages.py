import ctypes
import mmap
import sys

import pytest

from devices import pages

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux is asked")


@linux
def test_a_mapped_file_is_cut_into_strips(tmp_path):
    """Of a file that was mapped no region is longer than a strip, and what it holds is unchanged."""
    path, content = tmp_path / "data", bytes(range(256)) * 4096
    path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped:
        pages.settle(pages.regions(), path)
        found = [end - start for start, end, name, _ in pages.regions() if name == str(path)]
        assert sum(found) == len(content) and max(found) <= pages.STRIP
        assert mapped[:] == content


@linux
def test_other_memory_is_left_alone(tmp_path):
    """Neither another file nor what was there before loading is touched."""
    path = tmp_path / "other"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped:
        pages.settle(pages.regions(), tmp_path / "data")
        assert [name for *_, name, _ in pages.regions()].count(str(path)) == 1
        assert len(mapped) == 1 << 20


def test_a_kernel_that_does_not_tell(tmp_path, monkeypatch):
    """Without /proc or without madvise nothing is done, and nothing fails."""
    monkeypatch.setattr(pages, "SMAPS", tmp_path / "none")
    assert pages.regions() == []
    pages.settle([], tmp_path / "data")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    pages.settle([], tmp_path / "data")
