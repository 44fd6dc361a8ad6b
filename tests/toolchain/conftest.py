"""The command line in this process, for what does not need one of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import toolchain.cli


class Done(NamedTuple):
    """How a command ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def main(
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Done]:
    """`main(*args)` runs `toolchain` in this process: in milliseconds what `cli` does in seconds."""
    cache: Path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))

    def run(*args: object) -> Done:
        with pytest.raises(SystemExit) as ended:
            toolchain.cli.main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return run
