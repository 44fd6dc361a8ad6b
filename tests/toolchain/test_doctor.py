import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from toolchain import doctor
from toolchain.cli.doctor import command
from toolchain.doctor import Check


def test_this_installation_is_sound() -> None:
    """Where the tests run, the base works: exit 0, a line per check, each with its state first."""
    made = CliRunner().invoke(command, [])
    assert made.exit_code == 0
    assert {line.split()[0] for line in made.output.splitlines()} <= {"ok", "warn", "missing"}
    assert "onnxruntime" in made.output and "transformers" in made.output


def test_json_says_the_same_checks() -> None:
    """--json is a list of objects with name, room, state and text."""
    checks = json.loads(CliRunner().invoke(command, ["--json"]).output)
    assert {check["room"] for check in checks} == {"base", "host", "dev"}
    assert all(set(check) == {"name", "room", "state", "text"} for check in checks)
    assert all("\n" not in check["text"] for check in checks)


def test_a_missing_host_package_is_told_and_does_not_break_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base-only installation exits 0, and says what torch would be needed for."""
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "torch" else real(name))
    found = next(check for check in doctor.packages("host") if check.name == "torch")
    assert found.state == "missing" and "compress" in found.text and "[host]" in found.text
    assert doctor.sound([found])


def test_a_missing_base_package_exits_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tokenizers nothing runs on a device."""
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "tokenizers" else real(name))
    made = CliRunner().invoke(command, [])
    assert made.exit_code == 2
    assert "tokenizers" in next(line for line in made.output.splitlines() if line.startswith("missing"))


def test_an_older_package_than_required_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version outside the requirement is named beside what was tested."""
    monkeypatch.setattr(doctor, "version", lambda name: "0.0.1")
    assert {check.state for check in doctor.packages("base")} == {"warn"}
    assert all(">=" in check.text for check in doctor.packages("base"))


def test_a_local_version_satisfies_its_requirement(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.13.0+cpu is torch 2.13.0."""
    monkeypatch.setattr(doctor, "version", lambda name: "2.13.0+cpu")
    assert next(check for check in doctor.packages("host") if check.name == "torch").state == "ok"


@pytest.mark.parametrize("room", doctor.ROOMS)
@pytest.mark.parametrize("file", ["{}.py", "{}/__init__.py"])
def test_a_file_that_hides_a_room_is_found(tmp_path: Path, room: str, file: str) -> None:
    """Where Python finds another `export`, `bench` or `devices` first: an error. Nearby: a warning."""
    other = tmp_path / file.format(room)
    other.parent.mkdir(exist_ok=True)
    other.touch()
    path = [str(tmp_path), str(doctor.HOME)]
    hidden = {check.name: check for check in doctor.shadows(tmp_path, path)}
    assert hidden[room].state == "missing" and str(other) in hidden[room].text
    assert [check.state for name, check in hidden.items() if name != room] == ["ok", "ok"]
    near = {check.name: check for check in doctor.shadows(tmp_path, [str(doctor.HOME)])}
    assert near[room].state == "warn" and str(other) in near[room].text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", "a CPU build"),
        ("cuda: Optional[str] = '12.8'\n", "a CUDA 12.8 build"),
        ("", "a CPU build"),
    ],
)
def test_the_kind_of_torch_is_read_without_importing_it(tmp_path: Path, text: str, says: str) -> None:
    """torch's version file says whether it is a CUDA build."""
    (tmp_path / "version.py").write_text(text)
    assert says in doctor.torch_device(tmp_path / "version.py").text


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file where the cache folder should be is told, with the variable that moves it."""
    (tmp_path / "cache").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = doctor.folders()[-1]
    assert found.state == "warn" and "XDG_CACHE_HOME" in found.text


@pytest.mark.parametrize(("total", "says"), [(0, "cannot be written"), (10**9, "0.5 GB free; a demo wants")])
def test_a_cache_without_room_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, total: int, says: str
) -> None:
    """A cache on a file system that is full, or none for files, is told with the variable that moves it."""
    usage = type(shutil.disk_usage(tmp_path))(total, total // 2, total // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    disk, cache = doctor.folders()
    assert cache.state == "warn" and says in cache.text and "set XDG_CACHE_HOME" in cache.text
    assert "XDG_CACHE_HOME" not in disk.text


def test_a_runtime_that_does_not_load_breaks_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel for another processor is one line, and exit 2."""

    def refuse(name: str) -> None:
        raise ImportError("cannot open shared object file:\nwrong ELF class")

    monkeypatch.setattr(doctor.importlib, "import_module", refuse)
    found = doctor.runtime()
    assert found.state == "missing" and "\n" not in found.text
    assert not doctor.sound([found, Check("x", "host", "ok", "")])
