import os
from collections.abc import Callable
from pathlib import Path

import pytest

from devices.errors import UserError
from devices.files import (
    cache_folder,
    make_cache,
    old_path,
    refuse_existing,
    refuse_unwritable,
    staged,
    staging_path,
)


def make(out: Path, text: str = "new", force: bool = False) -> None:
    """Write a small output."""
    with staged(out, force=force) as staging:
        (staging / "glue.json").write_text(text)


def link(out: Path) -> None:
    """A link to a folder of ours."""
    make(out.with_name("target"))
    out.symlink_to(out.with_name("target"))


def work(out: Path) -> None:
    """A folder with somebody's own work."""
    out.mkdir()
    (out / "thesis.txt").write_text("years")


@pytest.mark.parametrize(
    "mark", ["compression.json", "training.json", "manifest.json", "report.html", "a/task.toml"]
)
def test_force_replaces_what_a_command_wrote(tmp_path: Path, mark: str) -> None:
    """A folder with one of our marks, or an empty one, is replaced whole."""
    out = tmp_path / "out"
    (out / mark).parent.mkdir(parents=True)
    (out / mark).touch()
    make(out, force=True)
    assert [path.name for path in out.iterdir()] == ["glue.json"]
    (out / "glue.json").unlink()
    make(out, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (work, "holds something that no command here wrote"),
        (link, "is a link"),
        (lambda out: out.touch(), "is a file"),
        (lambda out: (make(out), os.chdir(out)), "is the folder you work in"),
        (
            lambda out: ((out / "a" / "b").mkdir(parents=True), os.chdir(out / "a" / "b")),
            "holds the folder you work in",
        ),
    ],
)
def test_force_replaces_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: Callable[[Path], object], says: str
) -> None:
    """Neither a user's work nor a link, a file or the folder one stands in."""
    monkeypatch.chdir(tmp_path)  # and back afterwards
    out = tmp_path / "out"
    before(out)
    with pytest.raises(UserError, match=says):
        make(out, force=True)
    assert os.path.lexists(out) and not staging_path(out).exists()


def test_a_file_on_the_way_is_named(tmp_path: Path) -> None:
    """A parent that is a file is one line, for new folders and for results."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file"):
        refuse_existing(tmp_path / "file" / "out", True)
    with pytest.raises(UserError, match="file is a file"):
        refuse_unwritable(tmp_path / "file" / "out")


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="no /proc here")
@pytest.mark.parametrize("out", [Path("/proc/out"), Path("/proc/nowhere/out")])
def test_a_place_that_takes_no_files_is_named(out: Path) -> None:
    """/proc answers "no such file" to whoever makes one, root included: still one line."""
    with pytest.raises(UserError, match=r"cannot be made.*choose another --out"):
        make(out)
    with pytest.raises(UserError, match=r"/proc cannot be written; choose another --out"):
        refuse_unwritable(out)


@pytest.mark.parametrize("place", ["/proc/nowhere", "file/cache"])
def test_a_cache_that_cannot_be_made_names_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Whoever set XDG_CACHE_HOME to such a place reads its name."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    with pytest.raises(UserError, match=r"set XDG_CACHE_HOME to a folder"):
        make_cache(cache_folder("corpus"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fine"))
    assert make_cache(cache_folder("corpus")).is_dir()


def test_a_failure_leaves_no_folder_above(tmp_path: Path) -> None:
    """Folders made on the way to `out` go again with a failure or Ctrl-C; one that was there stays."""
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "mine" / "a" / "b" / "out"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    """What a library wrote for the owner alone (safetensors does) is published as any other file."""
    umask = os.umask(0o027)
    try:
        with staged(tmp_path / "out") as staging:
            (staging / "below").mkdir()
            for file in (staging / "glue.json", staging / "below" / "weights"):
                file.touch(0o600)
    finally:
        os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*")}
    assert modes == {"glue.json": 0o640, "below": 0o750, "weights": 0o640}


def test_what_appeared_meanwhile_stays(tmp_path: Path) -> None:
    """Another program's `out`, made while ours was computed, is not replaced without force."""
    with pytest.raises(UserError, match="already exists"), staged(tmp_path / "out") as staging:
        (staging / "glue.json").touch()
        work(tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_a_failed_exchange_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the new folder cannot take its place, the old one is there as before."""
    out, rename = tmp_path / "out", Path.rename
    make(out, "old")

    def fail(self: Path, target: Path) -> Path:
        if self == staging_path(out):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"):
        make(out, force=True)
    assert (out / "glue.json").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    """The old folder that stepped aside is put back by the next command that writes there."""
    out = tmp_path / "out"
    make(out, "old")
    out.rename(old_path(out))
    with pytest.raises(UserError, match="already exists"):
        make(out)
    assert (out / "glue.json").read_text() == "old"
    make(out, force=True)
    assert (out / "glue.json").read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["out"]
