"""Answers are kept until the result is written."""

import json
from pathlib import Path

import pytest

from bench import rounds
from devices.artifact import Artifact
from devices.errors import UserError
from devices.profiles import Profile

HERE = Profile("local", "local", "this machine")


@pytest.fixture
def command(tmp_path):
    """`command(questions, fails_at, **settings)` runs a command that asks them; its answers, what was asked, said."""
    artifact = Artifact(tmp_path / "artifact", {"name": "a"}, "1" * 64)

    def run(questions, fails_at=None, error=UserError, **settings):
        asked, said, answers = [], [], []

        def ask(request, name):
            if len(answers) == fails_at:
                raise error("the connection was lost")
            asked.append(request)
            return {"n": len(asked), "to": request["q"]}

        with rounds.asking(ask, HERE, [artifact], {}, tmp_path / "out", settings, said.append) as answer:
            for question in questions:
                answers.append(answer({"q": question, "artifact": str(artifact.path)}, "a"))
        return answers, asked, said

    return run


def files(folder: Path) -> list[Path]:
    """What is kept."""
    return list(folder.glob(".out.rounds-*.jsonl"))


def test_nothing_is_kept_of_what_ended_well(command, tmp_path):
    """Neither a file nor a folder is left."""
    answers, asked, said = command("aab")
    assert [one["n"] for one in answers] == [1, 2, 3] and len(asked) == 3 and said == []
    assert files(tmp_path) == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt])
def test_the_same_command_goes_on(command, tmp_path, error):
    """What was answered is not asked again: by how often it was asked, in the order it was."""
    with pytest.raises(error, match="2 answers are kept, the same command goes on"):
        command("aab", fails_at=2, error=error)
    answers, asked, said = command("aab")
    assert [one["q"] for one in asked] == ["b"] and [one["to"] for one in answers] == ["a", "a", "b"]
    assert len(said) == 1 and said[0].startswith("2 answers of a run that was cut off are used")
    assert files(tmp_path) == []


def test_an_error_before_the_first_answer_keeps_nothing(command, tmp_path):
    """Its line is its own."""
    with pytest.raises(UserError, match=r"^the connection was lost$"):
        command("a", fails_at=0)
    assert files(tmp_path) == []


def test_another_command_asks_for_itself(command, tmp_path):
    """Other settings, another artifact, other code: the answers are not for them."""
    with pytest.raises(UserError):
        command("aab", fails_at=2, seed=0)
    assert len(command("aab", seed=1)[1]) == 3
    assert len(files(tmp_path)) == 1


def test_other_code_asks_for_itself(command, tmp_path, monkeypatch):
    """A round that was measured by another version is none of this one's."""
    with pytest.raises(UserError):
        command("aab", fails_at=2)
    monkeypatch.setattr(rounds.code, "digest", lambda: "0" * 64)
    assert len(command("aab")[1]) == 3


@pytest.mark.parametrize("tail", ['{"key": "x", "ans', "\x00\x00", "[]", '{"key": 1}', "null", '"text"'])
def test_a_torn_line_is_dropped(command, tmp_path, tail):
    """A command that was killed while it wrote a line costs that line, and what follows is not trusted."""
    with pytest.raises(UserError):
        command("aab", fails_at=2)
    (file,) = files(tmp_path)
    first, second, *_ = file.read_text().splitlines()
    file.write_text(f"{first}\n{tail}\n{second}\n")
    assert [one["q"] for one in command("aab")[1]] == ["a", "b"]


def test_a_line_is_written_after_a_torn_one(command, tmp_path):
    """What is kept after a torn line is read again the next time."""
    with pytest.raises(UserError):
        command("aabc", fails_at=1)
    (file,) = files(tmp_path)
    file.write_text(file.read_text() + '{"key": "x", "ans')
    with pytest.raises(UserError):
        command("aabc", fails_at=3)
    assert [one["q"] for one in command("aabc")[1]] == ["c"]


def test_a_full_disk_here_costs_only_the_keeping(command, tmp_path, monkeypatch):
    """The benchmark itself goes on."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    assert len(command("ab")[0]) == 2


def test_lines_hold_key_and_answer(command, tmp_path):
    """A line each, JSON, so that they can be looked at."""
    with pytest.raises(UserError):
        command("ab", fails_at=1)
    (file,) = files(tmp_path)
    (line,) = map(json.loads, file.read_text().splitlines())
    assert set(line) == {"key", "answer"} and line["answer"]["to"] == "a"


def test_rounds_say_which_sitting_they_are_of(tmp_path):
    """Rounds measured before a cut and after it can be told apart; what is no round carries nothing."""
    artifact = Artifact(tmp_path / "artifact", {"name": "a"}, "1" * 64)
    answers = []

    def sit(fails_at):
        def ask(request, name):
            if request["seed"] == fails_at:
                raise UserError("the connection was lost")
            return {"seed": request["seed"]}

        with rounds.asking(ask, HERE, [artifact], {}, tmp_path / "out", {}, lambda _: None) as asked:
            assert asked({"action": "bandwidth", "seed": -1}, "a") == {"seed": -1}
            answers[:] = [asked({"action": "measure", "seed": seed}, "a") for seed in range(3)]

    with pytest.raises(UserError):
        sit(fails_at=2)
    sit(fails_at=None)
    first, second, third = (one["sitting"] for one in answers)
    assert first == second != third
