"""The wheel alone, in an environment of its own: what a device installs is enough to run an artifact."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST = ["torch", "transformers", "onnx", "onnx_ir", "safetensors", "datasets", "sklearn", "pandas", "jinja2"]
USE = f"""
import importlib.util, sys
from devices.runtime import Decoder
found = Decoder(sys.argv[1], threads=1).generate("Return the number", 8)
assert found.text and len(found.ids) <= 8, found
print([name for name in {HOST} if importlib.util.find_spec(name) or name in sys.modules])
"""


def pip(*arguments):
    """Run this environment's pip; the test is skipped where it cannot fetch what it needs."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        if any(
            sign in done.stderr for sign in ("No matching distribution", "Connection", "No module named pip")
        ):
            pytest.skip(f"pip reaches no package registry: {last}")
        pytest.fail(f"pip {arguments[0]}: {last}")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """`base(program, *args)` runs a program of an environment that has the built wheel and nothing of the host."""
    root = tmp_path_factory.mktemp("base")
    pip("wheel", ROOT, "--no-deps", "--wheel-dir", root)
    venv.create(root / "venv", with_pip=False)
    bin_folder = root / "venv" / "bin"
    pinned = ["--constraint", ROOT / "requirements.lock", "--no-compile"]
    pip("--python", bin_folder / "python", "install", *pinned, next(root.glob("toolchain-*.whl")))
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(program, *arguments):
        command = [bin_folder / program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=env)

    return run


@pytest.fixture(scope="module")
def artifact(gpt2_checkpoint, tmp_path_factory):
    """An int8 artifact of a tiny model, as the host exports it."""
    from export.build import export

    out = tmp_path_factory.mktemp("artifact") / "tiny-int8"
    export(gpt2_checkpoint, out, "int8", parity=False)
    return out


def test_the_command_generates(base, artifact):
    """`toolchain generate` continues a text."""
    done = base("toolchain", "generate", artifact, "Return the number", "--max-new-tokens", 8)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Return the number") and done.stderr == ""


def test_the_class_generates_without_host_packages(base, artifact):
    """`devices.runtime.Decoder` generates where torch and its company are not installed."""
    done = base("python", "-c", USE, artifact)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_benchmark_runs_on_a_device(base, artifact, tmp_path, corpus_file):
    """`toolchain bench` measures speed and perplexity with the base install."""
    options = ["--rounds", 1, "--corpus", corpus_file, "--blocks", 2, "--out", tmp_path / "out"]
    done = base("toolchain", "bench", artifact, *options)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "tiny-int8--local--chat.json").read_text())
    assert result["quality"]["perplexity"]["value"] > 1 and result["token_s"]["median"] > 0


@pytest.mark.parametrize("command", [["--help"], ["generate", "--help"], ["devices", "check", "local"]])
def test_light_commands_answer(base, command):
    """Help and the device's description need nothing of the host."""
    done = base("toolchain", *command)
    assert done.returncode == 0, done.stderr


def test_a_host_command_names_the_extra(base, gpt2_checkpoint, tmp_path):
    """`toolchain compress` says in one line what to install, and exits 2."""
    done = base("toolchain", "compress", gpt2_checkpoint, "--layers", 2, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "pip install '.[host]'" in done.stderr
    assert not (tmp_path / "out").exists()
