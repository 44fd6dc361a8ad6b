"""Threads get whole cores before halves, big ones before little; what cannot be given is one line."""

import os

import pytest

from devices import cores
from devices.errors import UserError


@pytest.fixture
def topology(tmp_path, monkeypatch):
    """`topology(siblings, capacities)`: a /sys that says so."""

    def write(siblings, capacities=()):
        monkeypatch.setattr(cores, "CPUS", tmp_path)
        for cpu, shared in enumerate(siblings):
            (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
            (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(f"{shared}\n")
        for cpu, capacity in enumerate(capacities):
            (tmp_path / f"cpu{cpu}/cpu_capacity").write_text(f"{capacity}\n")

    return write


@pytest.mark.parametrize(
    ("siblings", "capacities", "expected"),
    [
        (["0", "1", "2", "3"], (), [0, 1, 2, 3]),
        (["0-1", "0-1", "2-3", "2-3"], (), [0, 2, 1, 3]),
        (["0,2", "1,3", "0,2", "1,3"], (), [0, 1, 2, 3]),
        (["0", "1", "2", "3"], (400, 400, 1024, 1024), [2, 3, 0, 1]),
        (["0-1", "0-1", "2", "3"], (1024, 1024, 400, 400), [0, 2, 3, 1]),
    ],
)
def test_whole_cores_first_and_big_ones_before_little(topology, siblings, capacities, expected):
    """Two threads of a core come after every core's first; a phone's fast cores before its slow ones."""
    topology(siblings, capacities)
    assert cores.order(range(4)) == expected


def test_a_machine_that_tells_nothing_is_taken_in_order(tmp_path, monkeypatch):
    """Without /sys the processors are taken as they are numbered."""
    monkeypatch.setattr(cores, "CPUS", tmp_path / "none")
    assert cores.order({5, 1, 3}) == [1, 3, 5]


def test_threads_get_as_many_processors(topology, monkeypatch):
    """One each as far as they reach; a list is taken as it is; none is none."""
    topology(["0-1", "0-1", "2-3", "2-3"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert [cores.choose(None, threads) for threads in (1, 2, 3, 9)] == [
        [0],
        [0, 2],
        [0, 1, 2],
        [0, 1, 2, 3],
    ]
    assert cores.choose("3,1-2", 1) == [1, 2, 3]
    assert cores.choose("none", 2) is None


@pytest.mark.parametrize(
    "text", ["", "a", "1,", "-1", "2-1", "0-", "1 2", "0x1", "0-99999999", "9", "0,9", "²"]
)
def test_what_is_no_list_of_processors_is_one_line(monkeypatch, text):
    """A word, a range backwards, a processor that is not there."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(UserError, match="--affinity") as caught:
        cores.choose(text, 1)
    assert "\n" not in str(caught.value)


def test_pinning_ends_with_the_block():
    """Inside, the process may use that processor alone; afterwards all it might before, whatever happened."""
    before = os.sched_getaffinity(0)
    one = min(before)
    with pytest.raises(ZeroDivisionError), cores.pinned([one]):
        assert os.sched_getaffinity(0) == {one}
        raise ZeroDivisionError
    assert os.sched_getaffinity(0) == before
    with cores.pinned(None):
        assert os.sched_getaffinity(0) == before
    with pytest.raises(UserError), cores.pinned([4000]):
        pass
