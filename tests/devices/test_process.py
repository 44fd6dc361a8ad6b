import subprocess
from pathlib import Path

import pytest

from devices.process import command, environment


@pytest.mark.parametrize("file", ["devices.py", "devices/__init__.py"])
def test_a_file_in_the_users_folder_is_not_taken_for_ours(tmp_path: Path, file: str) -> None:
    """Our modules run as ours wherever the user happens to stand."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("raise SystemExit(3)")
    done = subprocess.run(command("devices.errors"), env=environment(), cwd=tmp_path, check=False)
    assert done.returncode == 0
