"""The code that goes to a board."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

from devices import code
from devices.process import HOME


def test_a_copy_is_known_by_its_bytes(tmp_path: Path) -> None:
    """Unpacked anywhere it runs, from there, and has the digest it was sent under; another byte has another."""
    zipfile.ZipFile(io.BytesIO(code.packed())).extractall(tmp_path)
    asks = "from devices import code; print(code.digest(), code.HOME)"
    env = {"PYTHONPATH": str(tmp_path)}

    def digest() -> list[str]:
        line = [sys.executable, "-P", "-c", asks]
        return subprocess.run(line, env=env, capture_output=True, text=True, check=True).stdout.split()

    assert digest() == [code.digest(), str(tmp_path)]
    with (tmp_path / "bench/worker.py").open("a") as file:
        file.write("#")
    assert digest()[0] != code.digest()


def test_the_same_files_are_the_same_bytes() -> None:
    """Neither times nor bytecode are in it, nothing of the host's rooms, and it is small."""
    names = zipfile.ZipFile(io.BytesIO(code.packed())).namelist()
    first = code.packed()
    code.packed.cache_clear()
    assert code.packed() == first and len(first) < 500_000
    assert {name.split("/")[0] for name in names} == {"bench", "devices"}
    assert not any("__pycache__" in name for name in names) and "devices/profiles/local.toml" in names
    assert all((HOME / name).is_file() for name in names)
