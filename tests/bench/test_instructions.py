"""Instructions counted by the emulator; skipped where `toolchain devices setup` has not been run."""

import json
from pathlib import Path

import pytest

from bench import instructions, run
from bench.process import ask
from bench.settings import Settings
from bench.workloads import Workload
from devices import profiles
from devices.emulated import root
from devices.errors import UserError

RECIPES = ("fp32", "int8", "int8-dynamic", "int4")
SMALL = Workload("small", "decoder", "d", prompt=8, generate=4)


@pytest.fixture(scope="module", params=["cortex-a72", "cortex-a76"])
def arm(request):
    """An emulated processor's profile."""
    lacking = root.tools(finished=True) or root.missing(request.param)
    if lacking:
        pytest.skip(f"{request.param} is not set up ({lacking}); toolchain devices setup {request.param}")
    return profiles.load(request.param)


def counted(artifact, profile, workload=SMALL):
    """One round's counts, of the main thread."""
    request = {"action": "instructions", "artifact": str(artifact), "workload": workload.as_dict(), "seed": 0}
    return ask({**request, "threads": 1, "rows": None}, "x", profile)


def test_repeats_agree_within_a_thousandth(artifacts, arm):
    """Two processes count the same, all figures within 0.1 %; and all threads did what the main one did, or more."""
    one, two = (counted(artifacts[1], arm) for _ in range(2))
    assert set(one["instructions"]) == {"load", "first_token", "per_prompt_token", "per_generated_token"}
    for key, count in one["instructions"].items():
        assert two["instructions"][key] == pytest.approx(count, rel=1e-3), key
        assert one["instructions_all"][key] >= count


def test_a_result_has_instructions_and_no_times(artifacts, arm, tmp_path):
    """`emulated` is true; load, latency and memory are null; a prompt token costs what its share of the first is."""
    (made,) = run.bench([artifacts[0]], tmp_path, device=arm.name, workload="short", rounds=1, progress=False)
    assert made == json.loads(next(tmp_path.glob("*.json")).read_text())
    for key in ("load_s", "first_token_s", "token_s", "sentence_s", "peak_rss_bytes"):
        assert made[key] is None
    assert made["device"] == {"name": arm.name, "emulated": True} and made["threads"] == 1
    assert made["environment"]["emulated"] and made["environment"]["arch"] == "aarch64"
    assert made["environment"]["emulator"].startswith("qemu-aarch64 version")
    assert all(made["environment"][key] is None for key in ("memory_bytes", "governor", "mhz", "load"))
    found = made["instructions"]
    share = found["first_token"]["median"] / made["workload"]["prompt"]
    assert found["per_prompt_token"]["median"] == pytest.approx(share)


def test_more_work_costs_more(artifacts):
    """A longer prompt costs more to the first token, and less per token of it."""
    lacking = root.tools(finished=True) or root.missing("cortex-a76")
    if lacking:
        pytest.skip(f"cortex-a76 is not set up ({lacking})")
    profile = profiles.load("cortex-a76")
    short, long = (
        counted(artifacts[0], profile, Workload("w", "decoder", "d", prompt=n, generate=2))["instructions"]
        for n in (4, 32)
    )
    assert long["first_token"] > short["first_token"]
    assert long["per_prompt_token"] < short["per_prompt_token"]


def test_this_machine_counts_nothing(artifacts):
    """Asked for instructions where time is measured, the worker says so in place of numbers."""
    with pytest.raises(UserError, match="nothing counts instructions here"):
        counted(artifacts[0], profiles.load("local"))


@pytest.mark.parametrize("threads", [2, [1, 2], "all", (4,)])
def test_threads_are_one(threads):
    """More threads, several numbers or a sweep are refused; one is what is counted anyway."""
    with pytest.raises(UserError, match="instructions are counted with 1"):
        instructions.settled(Settings(threads=threads))
    assert {instructions.settled(Settings(threads=one)).threads for one in (None, 1, [1], (1,))} == {1}


def test_the_projects_baseline_is_one(request):
    """The baseline in the repository is read, and knows every recipe on both processors."""
    from bench import check

    entries = check.read(Path(request.config.rootpath) / "docs/results/arm-baseline.json")
    known = {(one["device"], one["recipe"]) for one in entries}
    assert known == {(cpu, recipe) for cpu in ("cortex-a72", "cortex-a76") for recipe in RECIPES}
