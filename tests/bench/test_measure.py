"""A round on a real artifact: what is timed, what is recorded beside it, and what is not."""

import json
import os
import shutil

import numpy as np
import pytest

from bench import bandwidth, measure, process, roofline, run
from bench.result import build
from bench.run import bench
from bench.workloads import WORKLOADS, workload_for
from devices import profiles
from devices.artifact import open_artifact
from devices.errors import UserError


def ask_round(artifact, workload, **more):
    """A worker's answer to one round."""
    opened = open_artifact(artifact)
    plan = workload_for(workload, opened.kind, opened.model["positions"])
    request = {"action": "measure", "artifact": str(opened.path), "threads": 1, "seed": 0, **more}
    return process.ask({**request, "workload": plan.as_dict()}, "art")


@pytest.fixture(scope="module")
def chat(artifacts):
    """One round of chat."""
    return ask_round(artifacts[0], "chat")


def test_warm_up_is_told_apart(chat):
    """The first prompt and two steps of a process stand under warm_up, not among the times."""
    assert chat["warm_up"]["first_token_s"] > 0 and len(chat["warm_up"]["token_s"]) == measure.WARM_STEPS
    assert len(chat["token_s"]) == 21  # of 22 new tokens the first is timed with the prompt


def test_memory_is_read_at_three_points(chat):
    """After loading, after the prompt, at the end: the peak only grows, and what backs it adds up."""
    points = [chat["memory"][at] for at in ("load", "prompt", "end")]
    assert [point["peak"] for point in points] == sorted(point["peak"] for point in points)
    assert all(point["resident"] == point["anonymous"] + point["file"] for point in points)
    assert all(point["file"] > 0 for point in points)
    assert chat["peak_rss_bytes"] == points[-1]["peak"]


def test_where_it_ran_and_how_the_machine_was(chat):
    """One thread, one processor; clocks before and after; the share of others; the environment unpinned."""
    assert len(chat["affinity"]) == 1
    assert set(chat["machine"]["before"]) == {"governor", "mhz", "celsius", "load"}
    assert 0 <= chat["machine"]["others"] <= 1
    assert chat["environment"]["threads"] == len(os.sched_getaffinity(0))


def test_processors_can_be_named(artifacts):
    """A list is where it runs, none is nowhere in particular, and one that is not there is one line."""
    last = max(os.sched_getaffinity(0))
    assert ask_round(artifacts[0], "decode", affinity=str(last))["affinity"] == [last]
    assert ask_round(artifacts[0], "decode", affinity="none")["affinity"] is None
    with pytest.raises(UserError, match="--affinity 4000"):
        ask_round(artifacts[0], "decode", affinity="4000")


def test_garbage_is_not_collected_while_timing():
    """Off inside, on afterwards, also where what was timed failed."""
    with pytest.raises(ZeroDivisionError), measure.timed():
        assert not measure.gc.isenabled()
        raise ZeroDivisionError
    assert measure.gc.isenabled()
    with measure.timed() as around:
        pass
    assert "energy" in around


def test_a_slowed_worker_is_slower_by_that(monkeypatch):
    """What the comparison is tested with: each time becomes as much longer as asked."""
    now = iter(np.cumsum([0.0, 1.0, 0.01, 0.01, 0.05]))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(now))
    start, end = next(now), next(now)
    assert measure._wait(start, end, 1.05) == pytest.approx(1.07)  # the first reading past 1.05


def test_a_cold_start_is_a_process_each_time(artifacts):
    """From nothing to the first token, three times; loading is a part of it and its memory is that process's."""
    found = ask_round(artifacts[0], "cold-start")
    assert len(found["start_s"]) == 3
    assert all(0 < found["load_s"] < sample < 60 for sample in found["start_s"])
    assert found["peak_rss_bytes"] > 10 << 20


def test_a_cold_start_that_fails_is_one_line(artifacts, tmp_path):
    """It verifies every hash, as a program does: a changed byte is told in its words."""
    copy = tmp_path / "copy"
    shutil.copytree(artifacts[0], copy)
    with (copy / "model.onnx.data").open("r+b") as file:
        file.seek(100)
        file.write(b"\x42\x42\x42")
    request = {"workload": WORKLOADS["cold-start"].as_dict(), "artifact": str(copy), "threads": 1, "seed": 0}
    with pytest.raises(UserError, match=r"model\.onnx\.data"):
        measure._child("bench.cold", request)


def test_a_sustained_run_shows_time_over_time(artifacts, tmp_path):
    """Points a second apart until the minutes are over, one round unless more are asked for."""
    said = []
    (found,) = bench(
        artifacts[:1],
        tmp_path / "out",
        workload="sustained",
        minutes=0.05,
        threads=1,
        progress=False,
        say=said.append,
    )
    points = found["over_time"]
    assert found["rounds"] == 1 and found["workload"]["minutes"] == 0.05
    assert [point["at_s"] for point in points] == sorted(point["at_s"] for point in points)
    assert 3.0 <= points[-1]["at_s"] < 10 and 2 <= len(points) <= 4
    assert {"token_s", "first_token_s", "mhz", "celsius"} <= set(points[0])
    assert len(found["token_s"]["samples"]) <= 2 * measure.SAMPLES


def test_a_sustained_run_says_how_far_it_is(capfd):
    """A line that whoever asked takes for progress."""
    measure._progress({"at_s": 30.2, "token_s": 0.0123, "celsius": 61.4}, 300)
    line = json.loads(capfd.readouterr().out)
    assert line == {"progress": "sustained: 30 of 300 s, 12.3 ms/token, 61 degrees"}


def test_several_thread_counts_are_a_result_each(artifacts, tmp_path):
    """--threads 1,2: two results of one run, each with its roof, in files of their own."""
    found = bench(artifacts[:1], tmp_path / "out", threads=[1, 2, 1], rounds=1, progress=False)
    assert [one["threads"] for one in found] == [1, 2]
    assert found[0]["run"] == found[1]["run"]
    assert [one["roofline"]["bandwidth"]["threads"] for one in found] == [1, 2]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_all_thread_counts_are_the_devices_own(artifacts, tmp_path, monkeypatch):
    """--threads all asks the device how many cores it has."""
    asked = []

    def answer(request, name):
        if request["action"] == "threads":
            return {"threads": 4, "threads_from": "sweep", "candidates": [1, 2, 4]}
        asked.append(request["threads"])
        if request["action"] == "bandwidth":
            return {"bytes_per_s": 1e9}
        times = {"load_s": 1.0, "first_token_s": 1.0, "token_s": [1.0], "peak_rss_bytes": 1}
        return {**times, "environment": {}}

    monkeypatch.setattr(run, "ask", answer)
    found = bench(artifacts[:1], tmp_path / "out", threads="all", rounds=2, progress=False)
    assert [one["threads"] for one in found] == [1, 2, 4]
    assert asked[:3] == [1, 2, 4] and sorted(asked[3:]) == [1, 1, 2, 2, 4, 4]


def answer_of(**machine):
    """A worker's answer on a machine like that."""
    clocks = {"governor": None, "mhz": None, "celsius": None, "load": None}
    told = {"stolen": 0.0, "ours": 0.5, "before": clocks, "after": clocks, **machine}
    times = {"load_s": 1.0, "first_token_s": 1.0, "token_s": [1.0], "peak_rss_bytes": 1}
    return {**times, "environment": {}, "machine": told}


@pytest.mark.parametrize(("others", "busy"), [(0.02, False), (0.4, True), (None, False)])
def test_a_busy_machine_is_told_in_one_line(artifacts, tmp_path, monkeypatch, others, busy):
    """Where others used more than a tenth of it in the median round; where that is unknown nothing is said."""
    monkeypatch.setattr(run, "ask", lambda request, name: answer_of(others=others))
    said = []
    bench(artifacts[:2], tmp_path / "out", threads=1, rounds=3, progress=False, say=said.append)
    told = [line for line in said if "busy" in line]
    assert len(told) == busy and all("\n" not in line and "40%" in line for line in told)


def built(artifact, rounds):
    """A result of these answers."""
    opened = open_artifact(artifact)
    plan = workload_for("chat", "decoder", 1024)
    rounds = [{**one, "threads": 1, "threads_from": "asked"} for one in rounds]
    return build(opened, artifact, plan, profiles.load("local"), 0, rounds, {}, {"id": "x"})


def test_energy_is_measured_or_null(artifacts):
    """Joules by round and by token where every round counted them; otherwise nothing."""
    counted = {"joules": 6.0, "source": "rapl", "label": "measured"}
    found = built(artifacts[0], [answer_of(others=0.0) | {"energy": counted}] * 2)
    assert found["energy"]["joules"]["samples"] == [6.0, 6.0] and found["energy"]["label"] == "measured"
    assert found["energy"]["joules_per_token"]["median"] == 3.0  # a first token and one more
    part = [answer_of(others=0.0) | {"energy": counted}, answer_of(others=0.0) | {"energy": None}]
    assert built(artifacts[0], part)["energy"] is None
    assert built(artifacts[0], [answer_of(others=0.0)])["energy"] is None


def test_bytes_of_a_token_by_hand(artifacts):
    """GPT-2's position table is looked up and its tied embedding multiplied; the cache has keys and values."""
    opened = open_artifact(artifacts[0])
    model, stored = opened.model, sum(opened.manifest["bytes"].values())
    found = roofline.bytes_per_token(opened, 10)
    assert found["weights"] == stored - model["positions"] * model["hidden"] * 4
    assert found["cache"] == 2 * 4 * 2 * 16 * 4 * 10  # layers, heads, width of a head, float32, positions
    llama = open_artifact(artifacts[2])
    assert roofline.bytes_per_token(llama, 0) == {
        "weights": sum(llama.manifest["bytes"].values()),
        "cache": 0,
    }


def test_the_share_of_the_roof_by_hand(artifacts):
    """Bytes a token over its time, over the bandwidth; whether all of it fits the cache."""
    opened = open_artifact(artifacts[0])
    plan = workload_for("decode", "decoder", 1024)
    total = sum(roofline.bytes_per_token(opened, 8 + 60).values())
    roof = {"bytes_per_s": 4e9, "cache_bytes": total + 1}
    found = roofline.of(opened, plan, {"median": total / 1e9}, roof)
    assert found["share"] == pytest.approx(0.25) and found["in_cache"]
    assert not roofline.of(opened, plan, {"median": 1}, {**roof, "cache_bytes": total})["in_cache"]
    assert roofline.of(opened, plan, None, roof) is None
    assert roofline.of(opened, plan, {"median": 1}, None) is None
    assert roofline.of(opened, plan, {"median": 1}, {}) is None


@pytest.mark.parametrize(
    ("cache", "available", "expected"),
    [(None, None, 64), (1, None, 64), (32, None, 128), (1024, None, 256), (32, 256, 64), (None, 64, 16)],
)
def test_the_buffer_is_larger_than_the_cache_and_fits_the_memory(cache, available, expected):
    """Sizes in MB: four caches, between 64 and 256, never more than a quarter of what is free."""
    of = [None if value is None else value << 20 for value in (cache, available)]
    assert bandwidth.size(*of) == expected << 20


def test_bandwidth_is_of_every_byte(monkeypatch):
    """The best pass counts, and all threads together read the buffer once."""
    monkeypatch.setattr(bandwidth, "_best", lambda pool, shares, reading: sum(map(len, shares)) * 8 / 1e9)
    assert bandwidth.read(3, 8 << 20) == pytest.approx(1e9)


@pytest.mark.parametrize(
    "settings",
    [
        {"minutes": 1.0},
        {"minutes": -1.0, "workload": "sustained"},
        {"minutes": 1e9, "workload": "sustained"},
        {"affinity": "x"},
        {"affinity": "4000"},
        {"threads": [1, 9999]},
        {"threads": [0]},
        {"rounds": 0},
        {"device": "cortex-a76", "workload": "cold-start"},
        {"device": "cortex-a76", "workload": "sustained"},
    ],
)
def test_what_cannot_be_measured_is_told_before(artifacts, tmp_path, monkeypatch, settings):
    """Minutes of a workload that ends by itself, processors and threads that are not there: no process starts."""
    monkeypatch.setattr(run, "ask", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(UserError) as caught:
        bench(artifacts[:1], tmp_path / "out", progress=False, **{"threads": 1, **settings})
    assert "\n" not in str(caught.value)
