"""The experiment that holds comparisons to their promise: what it asks, counts and keeps. Its workers are made up."""

import argparse
import importlib
import json
import random
import sys
from pathlib import Path

import pytest

from bench import run


@pytest.fixture
def aa(monkeypatch):
    """The script, a plain file beside this one."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield importlib.import_module("aa")
    for name in ("aa", "noise"):
        sys.modules.pop(name, None)


def worker(jitter, seen):
    """A worker whose times vary by `jitter`, and are as much longer as the request says."""
    rng = random.Random(0)

    def answer(request, name, *_):
        if request["action"] != "measure":
            return {"bytes_per_s": 1e10}
        seen.append((Path(request["artifact"]).name, request.get("slower")))
        token = 0.01 * rng.lognormvariate(0, jitter) * request.get("slower", 1.0)
        clocks = {"governor": None, "mhz": None, "celsius": None, "load": None}
        machine = {"others": 0.0, "stolen": 0.0, "ours": 0.5, "before": clocks, "after": clocks}
        times = {"load_s": 0.1, "first_token_s": token * 9, "token_s": [token] * 3, "peak_rss_bytes": 10**8}
        return {**times, "environment": {}, "machine": machine}

    return answer


@pytest.mark.parametrize(("jitter", "code"), [(0.004, 0), (0.5, 1)])
def test_both_promises_are_counted_and_kept(aa, artifacts, tmp_path, monkeypatch, jitter, code):
    """On a steady machine the same is the same and 5 % is found; on one without rest it is not, and it exits 1."""
    seen = []
    monkeypatch.setattr(run, "ask", worker(jitter, seen))
    out = tmp_path / "aa.json"
    given = {"artifact": artifacts[0], "tries": 4, "rounds": 8, "threads": 1, "noise": False, "out": out}
    assert aa.measured(argparse.Namespace(**given)) == code
    assert dict(seen) == {"a": None, "again": None, "slowed": aa.SLOWER}
    assert len(seen) == 4 * 8 * 3
    token = json.loads(out.read_text())["as it was"]["summary"]["token_s"]
    assert token["tries"] == 4
    if code == 0:
        assert (token["same"], token["slower_found"]) == (4, 4)
    assert aa.measured(argparse.Namespace(**{**given, "tries": 1, "noise": True})) in (0, 1)
    assert set(json.loads(out.read_text())) == {"as it was", "noisy"}


def test_the_model_is_told_as_a_table(aa):
    """A row for each machine and number of rounds, both shares in per cent."""
    found = aa.simulate([5], tries=3)
    lines = aa.markdown(found).splitlines()
    assert len(lines) == 2 + 3 and lines[2].startswith("| quiet | 5 | ")
    assert all(len(line.split("|")) == len(lines[0].split("|")) for line in lines)
