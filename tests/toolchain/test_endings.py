import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from toolchain.cli import MENDABLE, toolchain


@pytest.mark.parametrize("number", MENDABLE)
def test_a_place_that_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch, main: Callable[..., Any], number: int
) -> None:
    """What a file system refuses names the file and what to do, and exits 2."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "some/place")

    monkeypatch.setattr(toolchain, "main", refuse)
    done = main("list")
    assert done.code == 2 and done.err.startswith("toolchain: some/place: ") and done.err.count("\n") == 1
    assert errno.EEXIST in MENDABLE


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ModuleNotFoundError(name="torch"), 2, "pip install '.[host]'"),
    ],
)
def test_other_endings(
    monkeypatch: pytest.MonkeyPatch, main: Callable[..., Any], error: BaseException, code: int, says: str
) -> None:
    """Ctrl-C promises nothing that not every command keeps; a missing package is named with its extra."""

    def end(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(toolchain, "main", end)
    done = main("list")
    assert done.code == code and says in done.err and done.err.count("\n") == 1
