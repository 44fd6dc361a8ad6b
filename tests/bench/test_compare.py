"""Two results compared: paired where they were measured together, refused where they cannot be, in plain words."""

import json
import math
import subprocess

import numpy as np
import pytest

from bench.compare import compare, lines, read, said, slower
from bench.stats import spread, spread_of_rounds
from devices.errors import UserError


def result(slow=1.0, rounds=10, run="one", seed=0, **changed):
    """A result with times of `rounds` rounds, `slow` times as long; the same seed drifts alike."""
    drift = np.exp(np.cumsum(np.random.default_rng(5).normal(0, 0.1, rounds)))
    rng = np.random.default_rng(seed)
    jitter = np.exp(rng.normal(0, 0.005, (rounds, 20)))
    token = [list(slow * 0.01 * drift[at] * jitter[at]) for at in range(rounds)]
    return {
        "schema": 1,
        "kind": "bench",
        "subject": {"name": f"model-{seed}"},
        "device": {"name": "local", "emulated": False},
        "workload": {"name": "chat", "prompt": 128, "generate": 64},
        "environment": {"cpu": "A CPU", "onnxruntime": "1.32"},
        "run": {"id": run},
        "rounds": rounds,
        "threads": 1,
        "token_s": spread_of_rounds(token),
        "first_token_s": spread_of_rounds([[one[0] * 9] for one in token]),
        "load_s": None,
        "peak_rss_bytes": spread_of_rounds([[2e8]] * rounds),
        **changed,
    }


@pytest.fixture
def write(tmp_path):
    """`write(name, result)`: the file it was written to."""

    def put(name, value):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return put


def test_a_slow_down_is_told_with_its_interval():
    """Measured together, 7 % more a token is found through a drift that is larger, and said in one line."""
    found = compare(result(), result(1.07, seed=1))
    token = found["figures"]["token_s"]
    assert found["paired"] and token["verdict"] == "more"
    assert token["low"] < 1.07 < token["high"]
    told = lines(found)
    line = next(one for one in told if one.startswith("time per token"))
    assert line.endswith(f"B is {token['ratio']:.3f}x slower ({token['low']:.3f} to {token['high']:.3f})")
    assert any(one.startswith("peak memory") and "no difference" in one for one in told)
    assert not any(one.startswith("load") for one in told)
    assert told[-1] == "99% intervals over 10 rounds, paired by round"


def test_the_other_way_round_is_faster():
    """The same pair swapped: as much faster as it was slower, and its interval upside down."""
    forth = compare(result(), result(1.07, seed=1))["figures"]["token_s"]
    back = compare(result(1.07, seed=1), result())["figures"]["token_s"]
    assert said("token_s", back) == said("token_s", forth).replace("slower", "faster")


def test_runs_of_their_own_are_not_told_apart():
    """Of other runs there is a ratio of times and no verdict, since the machine may have moved; memory has one."""
    b = result(3.0, seed=1, run="two", peak_rss_bytes=spread_of_rounds([[3e8]] * 10))
    found = compare(result(), b)
    assert not found["paired"] and found["figures"]["token_s"]["verdict"] == "apart"
    assert found["figures"]["peak_rss_bytes"]["verdict"] == "more"
    told = "\n".join(lines(found))
    assert "B took 2.9" in told or "B took 3.0" in told
    assert "measured in runs of their own" in told and "toolchain bench A B" in told
    with pytest.raises(UserError, match="--fail-if-slower needs both results from one run"):
        slower(found)


def test_older_files_are_read():
    """Without rounds told apart and without a run, samples are shared out evenly and compared unpaired."""
    old = []
    for seed, slow in ((0, 1.0), (1, 3.0)):
        one = result(slow, seed=seed)
        for key in ("token_s", "first_token_s", "peak_rss_bytes"):
            one[key] = spread(one[key]["samples"])
        del one["run"]
        old.append(one)
    found = compare(*old)
    assert not found["paired"] and found["figures"]["token_s"]["rounds"] == 10
    new = compare(result(run="a"), result(3.0, seed=1, run="b"))
    assert found["figures"] == new["figures"]


def test_few_rounds_say_so():
    """Three rounds give a ratio and no verdict."""
    found = compare(result(rounds=3), result(2.0, rounds=3, seed=1))
    assert all(one["verdict"] == "few" for one in found["figures"].values())
    assert "too few rounds to tell (3 of at least 5)" in "\n".join(lines(found))


def test_a_wide_interval_does_not_claim_sameness():
    """No difference within 40 % is told as what it is."""
    one = {"ratio": 1.1, "low": 0.8, "high": 1.4, "verdict": "same", "rounds": 6, "paired": True}
    assert (
        said("token_s", one)
        == "no difference (0.800 to 1.400); too unsteady to see less than 40%, take more rounds"
    )


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"device": {"name": "pi"}}, "device local and pi"),
        ({"environment": {"cpu": "B CPU", "onnxruntime": "1.32"}}, "processor A CPU and B CPU"),
        ({"environment": {"cpu": "A CPU", "onnxruntime": "1.33"}}, "ONNX Runtime 1.32 and 1.33"),
        ({"threads": 2}, "threads 1 and 2"),
        ({"workload": {"name": "decode", "prompt": 8}}, r"workload chat .* and decode"),
        ({"workload": {"name": "chat", "prompt": 42, "generate": 22}}, "prompt 42"),
    ],
)
def test_other_conditions_are_refused_unless_asked_for(changed, named):
    """One line names what differs; --across compares all the same and says it."""
    a, b = result(), result(seed=1, **changed)
    with pytest.raises(UserError, match=named) as caught:
        compare(a, b)
    assert "\n" not in str(caught.value) and "--across" in str(caught.value)
    assert any(one.startswith("not alike: ") for one in lines(compare(a, b, across=True)))


def test_an_emulated_device_has_no_times():
    """Nothing is compared there, whatever is asked."""
    device = {"name": "cortex-a76", "emulated": True}
    with pytest.raises(UserError, match="emulated"):
        compare(result(device=device), result(device=device), across=True)


WHOLE = json.dumps(result())
BAD = {
    "cut short": WHOLE[: len(WHOLE) // 2],
    "empty": "",
    "no JSON": "time: 3",
    "a list": "[]",
    "a newer schema": WHOLE.replace('"schema": 1', '"schema": 99', 1),
    "no schema": WHOLE.replace('"schema": 1, ', "", 1),
    "evaluate's": WHOLE.replace('"bench"', '"evaluate"', 1),
    "no subject": WHOLE.replace('"subject"', '"sbj"', 1),
    "subject a list": json.dumps(result(subject=[])),
    "a name that is none": json.dumps(result(subject={"name": 3})),
    "device without a name": json.dumps(result(device={})),
    "rounds a text": json.dumps(result(rounds=5) | {"rounds": "five"}),
    "no rounds": json.dumps(result() | {"rounds": 0, "token_s": {"samples": [1]}}),
    "samples of text": json.dumps(result(token_s={"rounds": ["a"], "samples": []})),
    "no samples": json.dumps(result(token_s={"median": 1})),
    "a spread that is none": json.dumps(result(token_s=3)),
    "a negative time": json.dumps(result(token_s={"rounds": [1, -1], "samples": [1]})),
    "no time at all": json.dumps(result(token_s={"rounds": [0, 0], "samples": [0]})),
    "for ever": json.dumps(result(token_s={"rounds": [1, math.inf], "samples": [1]})),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_result_is_one_line(write, name):
    """However a file is broken, one line names it."""
    with pytest.raises(UserError, match=r"bad\.json") as caught:
        read(write("bad.json", BAD[name]))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    """Nor is a missing file a traceback."""
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "none.json")


def test_the_command(write, cli):
    """Text or JSON, exit 0 whatever came out, 1 where --fail-if-slower asks, 2 for what cannot be compared."""
    a, b = write("a.json", result()), write("b.json", result(1.07, seed=1))
    done = cli("bench", "--compare", a, b)
    assert done.returncode == 0, done.stderr
    assert "slower" in done.stdout
    found = json.loads(cli("bench", "--compare", a, b, "--json").stdout)
    assert found["figures"]["token_s"]["verdict"] == "more" and found["a"]["file"] == str(a)
    failed = cli("bench", "--compare", a, b, "--fail-if-slower")
    assert failed.returncode == 1 and "time per token: B is 1.0" in one_line(failed)
    assert cli("bench", "--compare", b, a, "--fail-if-slower").returncode == 0
    cut = write("cut.json", WHOLE[:200])
    assert "cut.json: not valid JSON" in one_line(cli("bench", "--compare", a, cut))


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["model"],
        ["--out", "x"],
        ["model", "--compare", "a.json", "b.json"],
        ["--compare", "a.json", "b.json", "--out", "x"],
        ["--compare", "a.json"],
        ["model", "--out", "x", "--across"],
        ["model", "--out", "x", "--fail-if-slower"],
        ["model", "--out", "x", "--threads", "1,,2"],
        ["model", "--out", "x", "--threads", "some"],
        ["model", "--out", "x", "--minutes", "0"],
    ],
)
def test_options_that_do_not_go_together(cli, options):
    """One line, exit 2."""
    done = cli("bench", *options)
    assert done.returncode == 2 and one_line(done)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """What the command said, which is a line."""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("toolchain: ")
    return line


def test_slower_is_never_answered_by_silence():
    """--fail-if-slower does not pass over a figure that one side lacks, or a time too unsteady to tell."""
    a, b = result(), result(seed=1)
    assert slower(compare(a, b)) == []
    lacking = compare(a, b | {"token_s": None})
    assert "in one of the two only: time per token" in lines(lacking)
    with pytest.raises(UserError, match="only one of the two has time per token"):
        slower(lacking)
    noise = np.exp(np.random.default_rng(3).normal(0, 0.3, 10)) * 0.01
    with pytest.raises(UserError, match="time per token is too unsteady to tell"):
        slower(compare(a, b | {"token_s": spread_of_rounds([[one] for one in noise])}))


def test_a_run_that_was_cut_off_is_told():
    """Two results of one run in two sittings say so; a whole run says nothing."""
    whole, cut = (result(seed=seed) for seed in (1, 2))
    assert not any("sittings" in line for line in lines(compare(whole, cut)))
    cut["run"]["sittings"] = 2
    assert "the run was cut off and went on: 2 sittings" in lines(compare(whole, cut))
