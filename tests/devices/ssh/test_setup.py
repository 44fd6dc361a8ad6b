"""Setting a board up: a virtual environment of its own, from an index or from what this machine pushes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from devices import board_setup, ssh
from devices.artifact import open_artifact
from devices.errors import UserError


def load_tests_of(name):
    """Another test module, for its helpers: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small_set(monkeypatch, tmp_path):
    """A base set of one small package, in a folder that stands for an index; the folder."""
    make_wheel = load_tests_of("test_wheels").make_wheel
    index = tmp_path / "index"
    make_wheel(index, "smallset", "1.0", "py3-none-any")
    monkeypatch.setattr(board_setup, "requirements", lambda: ["smallset>=1"])
    monkeypatch.setattr(ssh, "PACKAGES", ("smallset",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def test_a_board_without_internet(board, small_set, decoder_folder):
    """Packages are fetched here and pushed; the environment is the board's own, and done again it mends."""
    profile, said = board.profile(venv=True, offline=True), []
    ssh.setup(profile, said.append)
    assert said[-1] == "board: is set up" and any("Successfully installed smallset" in line for line in said)
    assert list(board.folder.glob("venv/lib/python3*/site-packages/smallset.py"))
    assert not list((board.folder / "artifacts").iterdir())
    place = ssh.put(profile, open_artifact(decoder_folder), said.append)
    assert Path(place).is_dir()
    (module,) = board.folder.glob("venv/lib/python3*/site-packages/smallset.py")
    module.unlink()
    with pytest.raises(UserError, match="No module named 'smallset'"):
        ssh.setup(profile, said.append)


def test_an_index_that_does_not_answer(board, small_set):
    """The board's own pip: its last words, and what else may be done. Set up it is not."""
    profile = board.profile(venv=True, index="http://127.0.0.1:9/simple")
    with pytest.raises(UserError, match=r"smallset.*offline = true in the profile") as caught:
        ssh.setup(profile, print)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is not set up"):
        board_setup.require(profile)


def test_a_python_without_venv(board, small_set):
    """Debian's Python without its venv package: what to install there."""
    fake = board.root / "python"
    fake.write_text(f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    fake.chmod(0o755)
    with pytest.raises(UserError, match="there: sudo apt install python3-venv"):
        ssh.setup(board.profile(venv=True, python=str(fake)), print)


def test_the_base_set_is_the_base_install():
    """What a board gets is what the project asks for without extras; nothing of the host's."""
    wanted = board_setup.requirements()
    assert any(one.startswith("onnxruntime") for one in wanted)
    assert not any(one.startswith(("torch", "transformers", "onnx>")) or "extra" in one for one in wanted)


def test_check_says_what_the_board_is(ready, cli):
    """`devices check`: processor, int8 kernels, memory, imports; exit 0 where all is there, as JSON too."""
    done = cli("devices", "check", ready.profile_path)
    assert done.returncode == 0, done.stderr
    assert "set up                  yes" in done.stdout and "import onnxruntime" in done.stdout
    found = json.loads(cli("devices", "check", ready.profile_path, "--json").stdout)
    assert found["missing"] == [] and found["cores"] >= 1 and "int8" in found and "celsius" in found


def test_check_of_a_board_that_lacks_something(board, cli):
    """Exit 1 and one line with the command that mends it; nothing is left on the board."""
    board.profile(isa=["asimd", "sve2"])
    done = cli("devices", "check", board.profile_path, "--json")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"set up: no; give: toolchain devices setup {board.profile_path}" in done.stderr
    missing = {one["what"]: one["hint"] for one in json.loads(done.stdout)["missing"]}
    assert missing["isa of the profile"] == f"correct isa in {board.profile_path}"
    assert not board.folder.exists()


def test_setup_and_clean_are_commands(board, cli, decoder_folder, tmp_path):
    """setup, then bench, then clean, as a user gives them; `bench --setup` is both at once."""
    assert cli("devices", "setup", board.profile_path).returncode == 0
    done = cli("devices", "clean", board.profile_path)
    assert done.returncode == 0 and "removed" in done.stdout and not board.folder.exists()
    line = ["bench", decoder_folder, "--device", board.profile_path, "--rounds", 1, "--threads", 1]
    done = cli(*line, "--setup", "--out", tmp_path / "out")
    assert done.returncode == 0 and "board: is set up" in done.stderr


def test_the_checkout_and_an_installation_send_the_same(tmp_path):
    """Code that was installed somewhere else has the same digest as this checkout's."""
    root = Path(__file__).resolve().parents[3]
    for room in ("devices", "bench"):
        subprocess.run(["cp", "-r", str(root / room), str(tmp_path)], check=True)
    asks = "from devices import code; print(code.digest())"
    both = [
        subprocess.run(
            [sys.executable, "-P", "-c", asks], env={"PYTHONPATH": str(place)}, capture_output=True
        )
        for place in (root, tmp_path)
    ]
    assert both[0].stdout == both[1].stdout != b""
