"""Packages that this machine fetches for a board without internet."""

import re
import zipfile
from pathlib import Path

import pytest

from devices import profiles, wheels
from devices.errors import UserError

BOARD = profiles.Profile("board", "ssh", "a test's")
PI = {"python": "3.11.2 64 glibc 2.36", "machine": "aarch64"}


def make_wheel(folder: Path, name: str, version: str, tag: str, needs: str = "") -> Path:
    """A wheel with one module that knows its version."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"__version__ = {version!r}\n")
        needed = f"Requires-Dist: {needs}\n" if needs else ""
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}"
        )
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_platforms_are_that_glibcs_and_older_ones() -> None:
    """A board with glibc 2.28 takes 2.17 to 2.28, not 2.31."""
    found = wheels.platforms("aarch64", "2.28")
    assert found[0] == "manylinux_2_28_aarch64" and "manylinux_2_17_aarch64" in found
    assert "manylinux2014_aarch64" in found and not any("2_29" in tag for tag in found)


def test_the_boards_wheels_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those for its processor, glibc and Python, with what they need; an older download does not go along."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = tmp_path / "index"
    make_wheel(index, "runs", "1.0", "cp311-cp311-manylinux_2_28_aarch64", "helps")
    make_wheel(index, "runs", "1.0", "cp311-cp311-manylinux_2_28_x86_64", "helps")
    make_wheel(index, "helps", "2.0", "py3-none-any")
    options = ["--no-index", "--find-links", str(index)]
    folder, listed = wheels.download(BOARD, PI, ["runs>=1"], options, lambda _: None)
    assert sorted(listed) == ["helps-2.0-py3-none-any.whl", "runs-1.0-cp311-cp311-manylinux_2_28_aarch64.whl"]
    make_wheel(index, "helps", "2.1", "py3-none-any")
    _, listed = wheels.download(BOARD, PI, ["runs>=1"], options, lambda _: None)
    assert "helps-2.1-py3-none-any.whl" in listed and len(listed) == 2 == len(list(folder.iterdir()))


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({**PI, "python": "3.11.2 64"}, "has no glibc"),
        ({**PI, "python": "3.11.2 64 glibc 2.26"}, "could not be downloaded here: .*runs"),
        ({**PI, "python": "3.12.1 64 glibc 2.36"}, "could not be downloaded here: .*runs"),
    ],
)
def test_no_wheels_for_it_is_one_line(tmp_path: Path, monkeypatch, found: dict[str, str], says: str) -> None:
    """Another libc, too old a one, another Python: one line that names the package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_wheel(tmp_path / "index", "runs", "1.0", "cp311-cp311-manylinux_2_28_aarch64")
    options = ["--no-index", "--find-links", str(tmp_path / "index")]
    with pytest.raises(UserError) as caught:
        wheels.download(BOARD, found, ["runs"], options, lambda _: None)
    assert re.search(says, str(caught.value)) and "\n" not in str(caught.value)
