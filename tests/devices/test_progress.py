import pytest

from devices import progress
from devices.progress import Progress


def test_without_a_terminal_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What takes longer than ten seconds says how far it is, in lines that a log file can hold."""
    clock = iter([0.0, 4.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress(30, "perplexity", "window") as bar:
        bar.update(8)
        bar.name("other")
        bar.update(8)
        bar.update(8)
    assert capsys.readouterr().err == "  other: 16 of 30 windows\n"


def test_hidden_means_hidden(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without `show` nothing is said, however long it takes."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with Progress(2, "x", "run", show=False) as bar:
        bar.update()
    assert capsys.readouterr().err == ""
