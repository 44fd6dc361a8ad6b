"""The arithmetic and the memory of `make peers`; the peers themselves are not run here."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

PEERS = Path(__file__).parent.parent / "peers"
MODULES = ("environments", "processes", "plan", "goals", "models", "measure", "summary")


@pytest.fixture
def peers(monkeypatch):
    """The harness's modules, which are plain files beside each other, for one test."""
    monkeypatch.syspath_prepend(str(PEERS))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        sys.modules.pop(name, None)


def sample(rate: float, first: float = 0.1, tokens: tuple[int, ...] = ()) -> dict:
    """A generation at `rate` tokens/s."""
    memory = {"end": {"peak": 200, "anonymous": 100}}
    return {"first_token_s": first, "token_s": [1 / rate] * 4, "memory": memory, "tokens": list(tokens)}


def jobs(peers, *names: tuple[str, str]) -> list:
    """A `generate` job at one thread for each (peer, weights) of eight bits."""
    plan, measure = peers.plan, peers.measure
    variants = [plan.Variant(peer, weights, 8, weights) for peer, weights in names]
    return [measure.Job(plan.WORKLOADS["generate"], plan.GPT2, variant, 1) for variant in variants]


def test_ratios_are_paired_within_a_round(peers):
    """A machine that slows down between rounds does not move a ratio: each round has its own."""
    ours, theirs = jobs(peers, ("ours", "int8"), ("llama.cpp", "Q8_0"))
    rounds = [{ours.key: sample(2 * speed), theirs.key: sample(speed)} for speed in (100, 50, 10)]
    found = peers.summary.ratio(rounds, ours.key, theirs.key, "tokens/s")
    assert (found.median, found.low, found.high) == pytest.approx((2, 2, 2))


def test_a_failed_sample_is_in_no_ratio(peers):
    """A peer that failed in one round is compared in the others, and in none where it failed in all."""
    ours, theirs = jobs(peers, ("ours", "int8"), ("llama.cpp", "Q8_0"))
    rounds = [
        {ours.key: sample(30), theirs.key: {"failed": "no memory"}},
        {ours.key: sample(30), theirs.key: sample(10)},
    ]
    found = peers.summary.ratio(rounds, ours.key, theirs.key, "tokens/s")
    assert (found.count, found.median) == (1, pytest.approx(3))
    assert peers.summary.ratio(rounds[:1], ours.key, theirs.key, "tokens/s") is None
    assert peers.summary.failure(rounds[:1], theirs.key) == "no memory"


def test_a_goal_is_held_against_the_best_peer(peers):
    """Generation at int8 is compared with whichever peer is fastest, and held from its limit on."""
    every = jobs(peers, ("ours", "int8"), ("llama.cpp", "Q8_0"), ("ctranslate2", "int8"))
    rounds = [{job.key: sample(rate) for job, rate in zip(every, (150, 100, 50), strict=True)}]
    goals = peers.summary.outcomes(rounds, every, {})
    chosen = next(goal for goal in goals if goal.title == "generation, int8")
    assert (chosen.theirs, chosen.ratio.median, chosen.held) == ("llama.cpp Q8_0", pytest.approx(1.5), True)
    slower = [{**rounds[0], every[0].key: sample(149)}]
    chosen = next(g for g in peers.summary.outcomes(slower, every, {}) if g.title == "generation, int8")
    assert chosen.held is False


def test_agreement_counts_until_the_first_other_token(peers):
    """Tokens that agree again later do not count."""
    (job,) = jobs(peers, ("ours", "int8"))
    rounds = [{job.key: sample(1, tokens=(1, 2, 9, 4))}]
    assert peers.summary.agreement(rounds, job.key, [1, 2, 3, 4]) == "2 of 4"


def test_unfinished_rounds_are_measured_again(peers, tmp_path):
    """A round counts when every job that can be done has a sample; the latest line for a job is taken."""
    ours, theirs = jobs(peers, ("ours", "int8"), ("llama.cpp", "Q8_0"))
    lines = [
        (0, ours, sample(1)),
        (0, theirs, {"failed": "killed"}),
        (1, ours, sample(1)),
        (1, theirs, sample(2)),
    ]
    file = tmp_path / "rounds.jsonl"
    file.write_text("".join(json.dumps({"round": r, "job": j.key, "sample": s}) + "\n" for r, j, s in lines))
    assert list(peers.measure.load_rounds(file, [ours, theirs], {})) == [1]
    assert list(peers.measure.load_rounds(file, [ours, theirs], {theirs.key})) == [0, 1]
    with file.open("a") as more:
        more.write(json.dumps({"round": 0, "job": theirs.key, "sample": sample(3)}) + "\n")
    assert list(peers.measure.load_rounds(file, [ours, theirs], {})) == [0, 1]
