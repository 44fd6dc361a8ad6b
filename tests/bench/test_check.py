"""A baseline of instructions: what is compared, what stops it, and what is only said."""

import copy
import json

import pytest

from bench import check, instructions
from devices.errors import CheckFailed, UserError

VERSIONS = {"emulator": "qemu 7.2", "python": "3.11.2", "onnxruntime": "1.32.0", "numpy": "2.4.6"}


def round_(**counts):
    """A worker's answer that counted so much."""
    return {"instructions": counts, "instructions_all": {key: count + 1 for key, count in counts.items()}}


def result(device="cortex-a76", recipe="int8", per_token=3_000_000.0, **counts):
    """A result with instructions, as far as a check reads it."""
    counts = {"per_prompt_token": 1_000_000.0, "per_generated_token": per_token, "load": 1e8, **counts}
    return {
        "subject": {
            "name": f"demo-{recipe}",
            "sha256": "a" * 64,
            "recipe": {"name": recipe},
            "lineage": {"checkpoint": {"sha256": "c" * 64}},
        },
        "device": {"name": device, "emulated": True},
        "workload": {"name": "short", "description": "d", "prompt": 32, "generate": 16},
        "environment": dict(VERSIONS),
        "instructions": instructions.summary([round_(**counts)]),
    }


@pytest.fixture
def baseline(tmp_path):
    """A file with both processors' int8."""
    path = tmp_path / "baseline.json"
    check.renew(path, [result(), result("cortex-a72", per_token=9e6)])
    return path


def test_what_was_counted_holds_against_itself(baseline):
    """The results a baseline was made of pass with a threshold of nothing, and every figure is told."""
    lines = check.check(baseline, [result(), result("cortex-a72", per_token=9e6)], 0.0)
    assert len(lines) == 6 and all("+0.000 %" in line for line in lines)


@pytest.mark.parametrize(
    ("percent", "threshold", "fails"),
    [(0.49, 0.5, False), (0.51, 0.5, True), (0.51, 1, False), (0.01, 0, True)],
)
def test_growth_beyond_the_threshold_fails(baseline, percent, threshold, fails):
    """Instructions per token may grow by the threshold and no more; the figure, both counts and the limit are named."""
    now = result(per_token=3_000_000 * (1 + percent / 100))
    if not fails:
        assert check.check(baseline, [now], threshold)
        return
    with pytest.raises(CheckFailed) as caught:
        check.check(baseline, [now], threshold)
    said = str(caught.value)
    assert (
        f"more than {threshold:g} %" in said and "against 3,000,000" in said and "per generated token" in said
    )
    assert "prompt token" not in said and "\n" not in said


@pytest.mark.parametrize("figure", ["per_prompt_token", "per_generated_token", "per_sentence"])
def test_every_cost_of_work_is_checked(tmp_path, figure):
    """Prompt, generation and a classifier's sentences: each alone can fail the check."""
    path = tmp_path / "baseline.json"
    check.renew(path, [result(**{figure: 1000.0})])
    with pytest.raises(CheckFailed, match=figure.replace("_", " ")):
        check.check(path, [result(**{figure: 1010.0})])


def test_load_is_told_and_not_checked(baseline):
    """Loading happens once: what it costs is said with its change, and fails nothing."""
    assert any(
        "to load" in line and "+20.000 %" in line for line in check.check(baseline, [result(load=1.2e8)])
    )


def test_cheaper_passes(baseline):
    """Fewer instructions are no failure."""
    assert any("-50.000 %" in line for line in check.check(baseline, [result(per_token=1.5e6)]))


@pytest.mark.parametrize("key", check.VERSIONS)
def test_other_versions_are_said_and_compared(baseline, key):
    """What may explain a change is named with both versions; it does not excuse growth."""
    now = result()
    now["environment"][key] = "other"
    assert any(f"{key} other" in line and VERSIONS[key] in line for line in check.check(baseline, [now]))
    grown = result(per_token=4e6)
    grown["environment"][key] = "other"
    with pytest.raises(CheckFailed):
        check.check(baseline, [grown])


def test_another_graph_is_said_and_compared(tmp_path, decoder_artifact):
    """What the exporter writes today is checked against what it wrote; that it is another graph is said."""
    path, now = tmp_path / "baseline.json", result()
    now["subject"]["path"] = str(decoder_artifact)
    check.renew(path, [now])
    assert not any("graph" in line for line in check.check(path, [now]))
    old = json.loads(path.read_text())
    old["entries"][0]["graph"] = "0" * 64
    path.write_text(json.dumps(old))
    assert any("the graph or its weights are others" in line for line in check.check(path, [now]))


def test_another_device_recipe_workload_or_checkpoint_is_not_compared(baseline):
    """A baseline of something else is refused, with what differs."""
    changes = {
        "device": result("cortex-a53"),
        "recipe": result(recipe="int4"),
        "workload": copy.deepcopy(result()),
        "checkpoint": copy.deepcopy(result()),
    }
    changes["workload"]["workload"]["prompt"] = 64
    changes["checkpoint"]["subject"]["lineage"]["checkpoint"]["sha256"] = "d" * 64
    for what, now in changes.items():
        with pytest.raises(UserError, match=f"has no entry for .*{what} other than in its .*--renew"):
            check.check(baseline, [now])


def test_renewing_replaces_its_own_and_keeps_the_rest(baseline):
    """One processor's figures are renewed without the other's; the file stays in order."""
    check.renew(baseline, [result(per_token=2e6)])
    entries = check.read(baseline)
    assert [one["device"] for one in entries] == ["cortex-a72", "cortex-a76"]
    assert [one["instructions"]["per_generated_token"] for one in entries] == [9e6, 2e6]


def test_times_are_no_instructions(baseline):
    """A result of a device with time is refused, with the way to compare those."""
    now = {**result(), "instructions": None}
    with pytest.raises(UserError, match=r"counts no instructions.*--compare"):
        check.check(baseline, [now])


def test_repeats_that_differ_are_said(baseline):
    """Where rounds do not agree within 0.1 %, the figures are not passed off as exact."""
    now = result()
    now["instructions"]["repeats_within"] = 0.004
    assert any("repeats differ by 0.40%" in line for line in check.check(baseline, [now]))


def damaged():
    """Texts that are no baseline, or one with something wrong in it."""
    good = {"schema": 1, "kind": "instructions", "entries": [check.entry(result())]}
    yield ""
    yield "[]"
    yield "{}"
    yield json.dumps(good)[:-40]
    yield json.dumps(result())
    for change in (
        {"schema": 2},
        {"schema": "1"},
        {"kind": "bench"},
        {"entries": {}},
        {"entries": []},
        {"entries": [3]},
    ):
        yield json.dumps({**good, **change})
    for key in ("device", "recipe", "name", "workload", "versions", "instructions"):
        yield json.dumps({**good, "entries": [{**good["entries"][0], key: None}]})
    for count in (0, -1, "3", None, True, 1e300):
        counts = {"per_generated_token": count}
        yield json.dumps({**good, "entries": [{**good["entries"][0], "instructions": counts}]})
    yield json.dumps({**good, "entries": [{**good["entries"][0], "instructions": {"load": 1}}]})


@pytest.mark.parametrize("text", list(damaged()))
def test_a_damaged_baseline_is_one_line(tmp_path, text):
    """What is wrong with the file is told in one line that names it, before anything is compared."""
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"baseline\.json") as caught:
        check.check(path, [result()])
    assert "\n" not in str(caught.value)


def test_rounds_are_pooled_by_figure():
    """Median over rounds, what all threads did beside it, and how far rounds differ; nothing where none counted."""
    found = instructions.summary([round_(load=10, per_prompt_token=n) for n in (1000, 1001, 1002)])
    assert found["per_prompt_token"]["median"] == 1001 and found["all_threads"]["load"]["median"] == 11
    assert found["repeats_within"] == pytest.approx(2 / 1001)
    assert found["per_sentence"] is None
    assert instructions.summary([{"token_s": [1.0]}]) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cortex-a76"], "--out is missing"),
        (["--device", "cortex-a76", "--renew"], "--renew writes a baseline"),
        (["--check", "BASE"], "local: has times, and --check compares instructions"),
        (["--check", "BASE", "--renew"], "local: has times"),
        (
            ["--device", "cortex-a76", "--check", "none.json"],
            "no such file; write it by giving the same command with",
        ),
        (["--device", "cortex-a76", "--check", "no/where.json", "--renew"], "there is no folder no"),
        (["--device", "cortex-a76", "--check", "ARTIFACT/manifest.json", "--renew"], "or delete it"),
        (["--device", "cortex-a76", "--check", "BASE", "--threshold", "-1"], "threshold"),
        (["--device", "cortex-a76", "--check", "BASE", "--threshold", "much"], "threshold"),
        (["--device", "cortex-a67", "--check", "BASE"], "unknown device 'cortex-a67': did you mean"),
        (["--device", "cortex-a76", "--check", "BASE", "--threads", "2"], "threads is 2"),
    ],
)
def test_the_command_refuses_in_one_line(cli, baseline, decoder_artifact, options, said):
    """Options that do not go together, and a baseline that is none: exit 2 before anything is counted."""
    places = {"BASE": str(baseline), "ARTIFACT": str(decoder_artifact)}
    words = [places.get(word, word.replace("ARTIFACT", places["ARTIFACT"])) for word in options]
    done = cli("bench", decoder_artifact, *words)
    assert done.returncode == 2 and said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="session")
def decoder_artifact(artifacts):
    """Some artifact."""
    return artifacts[1]
