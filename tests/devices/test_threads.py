"""The default number of threads: tried out once, remembered, and never a reason to fail."""

import json

import pytest

from devices import threads
from devices.artifact import Artifact, open_artifact
from devices.machine import physical_cores
from devices.runtime import Classifier, Decoder


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """The folder that remembers, the test's own, on a machine of eight cores."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(threads, "physical_cores", lambda: 8)
    monkeypatch.setattr(threads, "usable_threads", lambda: 8)
    return tmp_path / "toolchain" / "threads"


@pytest.fixture
def trials(monkeypatch):
    """`trials(seconds by threads)` gives each number of threads that time; returns the list of those tried."""

    def set_times(times):
        tried = []
        monkeypatch.setattr(threads, "_median_seconds", lambda count: tried.append(count) or times[count])
        return tried

    return set_times


def choose(artifact, asked=None):
    """As a decoder does, with the number of threads itself in place of something to time."""
    return threads.choose(artifact, asked, lambda count: count)


@pytest.mark.parametrize(
    ("cores", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])]
)
def test_candidates_are_powers_of_two_and_all(cores, expected):
    """Every power of two below the cores, and all of them."""
    assert threads.candidates(cores) == expected


@pytest.mark.parametrize(
    ("times", "best", "tried"),
    [
        ({1: 8.0, 2: 4.0, 4: 2.0, 8: 1.0}, 8, [1, 2, 4, 8]),
        ({1: 8.0, 2: 4.0, 4: 3.9, 8: 3.0}, 8, [1, 2, 4, 8]),
        ({1: 8.0, 2: 4.0, 4: 3.9, 8: 3.9}, 2, [1, 2, 4, 8]),
        ({1: 1.0, 2: 1.1, 4: 1.2, 8: 0.1}, 1, [1, 2, 4]),
        ({1: 1.0, 2: 1.1, 4: 0.5, 8: 0.4}, 8, [1, 2, 4, 8]),
    ],
)
def test_more_threads_must_earn_their_place(decoder_folder, memory, trials, times, best, tried):
    """The fastest wins, fewer where more gain less than a twentieth; two that gain nothing end the sweep."""
    asked = trials(times)
    assert choose(open_artifact(decoder_folder)) == (best, "sweep")
    assert asked == tried


def test_the_answer_is_remembered_per_artifact_and_machine(decoder_folder, memory, trials, monkeypatch):
    """A second opening tries nothing; another artifact, processor, core count or ONNX Runtime does."""
    artifact = open_artifact(decoder_folder)
    tried = trials({1: 4.0, 2: 1.0, 4: 2.0, 8: 3.0})
    assert choose(artifact) == (2, "sweep")
    tried.clear()
    assert choose(artifact) == (2, "remembered") and tried == []
    assert choose(Artifact(artifact.path, artifact.manifest, "0" * 64)) == (2, "sweep")
    for name, value in {
        "cpu_model": lambda: "another",
        "usable_threads": lambda: 9,
    }.items():
        monkeypatch.setattr(threads, name, value)
        assert choose(artifact) == (2, "sweep"), name
    monkeypatch.setattr(threads.ort, "__version__", "0")
    assert choose(artifact) == (2, "sweep")
    assert json.loads(next(memory.glob("*.json")).read_text())["seconds"]["2"] == 1.0


def test_what_is_asked_for_is_not_tried(decoder_folder, memory, trials):
    """A number given is taken as it is, tries nothing and is not remembered."""
    tried = trials({})
    assert choose(open_artifact(decoder_folder), 3) == (3, "asked")
    assert tried == [] and not memory.exists()


def test_an_artifact_without_an_identity_gets_the_cores(decoder_folder, memory, trials):
    """One that is only being written is neither tried nor remembered."""
    found = open_artifact(decoder_folder)
    tried = trials({})
    assert choose(Artifact(found.path, found.manifest, ""))[1] == "cores"
    assert tried == [] and not memory.exists()


@pytest.mark.parametrize(
    "junk", ["", "{", "[]", "{}", '{"threads": 0}', '{"threads": 9}', '{"threads": true}', '{"threads": "2"}']
)
def test_a_broken_memory_is_no_error(decoder_folder, memory, trials, junk):
    """What makes no sense here is tried anew and written anew."""
    artifact = open_artifact(decoder_folder)
    trials({1: 4.0, 2: 1.0, 4: 2.0, 8: 3.0})
    choose(artifact)
    path = next(memory.glob("*.json"))
    path.write_text(junk)
    assert choose(artifact) == (2, "sweep")
    assert choose(artifact) == (2, "remembered")
    assert [file.name for file in memory.iterdir()] == [path.name]


@pytest.mark.parametrize("how", ["a file in the way", "a folder in the way", "no home"])
def test_a_memory_that_cannot_be_written_is_no_error(decoder_folder, memory, trials, monkeypatch, how):
    """The sweep's answer is used all the same, time and again."""
    artifact = open_artifact(decoder_folder)
    trials({1: 4.0, 2: 1.0, 4: 2.0, 8: 3.0})
    if how == "a file in the way":
        memory.parent.write_text("")
    elif how == "a folder in the way":
        choose(artifact)
        path = next(memory.glob("*.json"))
        path.unlink()
        path.mkdir()
    else:

        def homeless(*_):
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(threads, "cache_folder", homeless)
    assert choose(artifact) == choose(artifact) == (2, "sweep")


@pytest.mark.parametrize("kind", ["decoder", "classifier"])
def test_an_artifact_is_really_tried(request, memory, monkeypatch, kind):
    """Opened without a number, both kinds of artifact run with one and with two threads, and then know."""
    monkeypatch.setattr(threads, "physical_cores", lambda: 2)
    folder = request.getfixturevalue(f"{kind}_folder")
    opener = Decoder if kind == "decoder" else Classifier
    first, second = opener(folder), opener(folder)
    assert (first.threads_from, second.threads_from) == ("sweep", "remembered")
    assert first.threads == second.threads in (1, 2)
    seconds = json.loads(next(memory.glob("*.json")).read_text())["seconds"]
    assert set(seconds) == {"1", "2"} and all(value > 0 for value in seconds.values())
    assert opener(folder, threads=2).threads_from == "asked"


def test_the_command_says_where_the_number_comes_from(decoder_folder, cli):
    """`generate --json` names threads and their origin; the second call remembers where there was a choice."""
    command = ["generate", decoder_folder, "the cat", "--max-new-tokens", 2, "--json"]
    answers = [json.loads(cli(*command).stdout) for _ in range(2)]
    assert answers[0]["threads_from"] == "sweep"
    assert answers[1]["threads_from"] == ("remembered" if physical_cores() > 1 else "sweep")
    assert json.loads(cli(*command, "--threads", 2).stdout)["threads_from"] == "asked"
