"""Ids in, ids out, in a fresh process: nothing is loaded that is not needed, started, written or sent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNUSED = [
    *("tokenizers", "huggingface_hub", "packaging", "click", "tqdm", "yaml"),
    *("numpy.random", "importlib.metadata", "email", "logging", "asyncio", "http", "ssl"),
    *(
        "tempfile",
        "random",
        "shutil",
        "bz2",
        "lzma",
        "difflib",
        "subprocess",
        "multiprocessing",
        "concurrent",
    ),
    *("tomllib", "fractions", "decimal", "unittest", "xml", "csv", "socket", "select", "queue"),
]
USE = """
import os, sys
from devices.runtime import Decoder
decoder = Decoder(sys.argv[1], threads=1)
assert decoder.generate([1, 2, 3], 4).text == ""
decoder.generate_batch([[1], [2, 3]], 4)
"""
TASKS = "print([open(f'/proc/self/task/{task}/comm').read() for task in os.listdir('/proc/self/task')])"


def run(code, *arguments, **variables):
    """Run `code` in an interpreter of its own; its standard output."""
    env = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_ids_need_no_tokenizer_and_little_else(decoder_folder):
    """Generating from ids loads neither the tokenizers library nor what comes with it."""
    assert run(USE + f"print([name for name in {UNUSED} if name in sys.modules])", decoder_folder) == "[]"


def test_text_loads_the_tokenizer(decoder_folder):
    """The check above would see it: a text does load the library, and has a text for an answer."""
    code = USE + "assert decoder.generate('the cat', 4).text; print('tokenizers' in sys.modules)"
    assert run(code, decoder_folder) == "True"


@pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="the threads of a process are Linux's to tell"
)
def test_no_thread_is_started_and_no_file_written(decoder_folder, tmp_path):
    """One thread asked for is one thread, and the home folder stays empty: telemetry is off."""
    found = run(USE + TASKS, decoder_folder, HOME=str(tmp_path), XDG_CACHE_HOME="")
    assert len(found.split(",")) == 1, found
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "module",
    ["devices.runtime", "devices.session", "bench.worker", "toolchain.cli", "export.build", "export.parity"],
)
def test_every_process_of_ours_turns_telemetry_off(module):
    """Whatever is imported first, the switch is set before ONNX Runtime is loaded."""
    code = f"""
import os, sys
class Watch:
    def find_spec(self, name, *rest):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Watch())
import {module}, onnxruntime
"""
    assert run(code) == "1"


def test_a_users_own_setting_is_kept():
    """Who has set the switch otherwise is not overruled."""
    assert (
        run(
            "import os, devices.runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])",
            ORT_DISABLE_TELEMETRY="0",
        )
        == "0"
    )
