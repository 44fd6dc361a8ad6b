"""Workloads fit the model they are given, and say so where they had to shrink."""

import pytest

from bench.workloads import WORKLOADS, prompt_ids, row_ids, workload_for
from devices.errors import UserError


@pytest.mark.parametrize("name", [name for name, found in WORKLOADS.items() if found.kind == "decoder"])
@pytest.mark.parametrize("positions", [2, 3, 7, 64, 191, 192, 256, 1024])
def test_a_workload_never_exceeds_the_positions(name, positions):
    """Prompt and new tokens fit, each at least one, and what was asked is kept where they had to shrink."""
    found, asked = workload_for(name, "decoder", positions), WORKLOADS[name]
    assert found.prompt >= 1 and found.generate >= 1
    assert found.prompt + found.generate <= positions
    if asked.prompt + asked.generate <= positions:
        assert found == asked
    else:
        assert found.scaled_from == {"prompt": asked.prompt, "generate": asked.generate}
        assert found.prompt + found.generate == positions


def test_chat_keeps_its_shape():
    """Scaled down, a prompt of 128 and 64 new tokens stay two to one."""
    found = workload_for("chat", "decoder", 96)
    assert (found.prompt, found.generate) == (64, 32)


def test_each_kind_has_its_own_default():
    """A decoder chats, a classifier classifies, whatever the name for decoders was."""
    assert workload_for(None, "decoder", 1024).name == "chat"
    assert workload_for(None, "classifier", 1024).name == "classify"
    assert workload_for("chat", "classifier", 1024).name == "classify"
    assert workload_for("classify", "classifier", 20).tokens == 20
    assert workload_for("classify-one", "classifier", 20).batch == 1


def test_a_long_prompt_fills_a_context_of_1024():
    """900 tokens and what follows them are 1024."""
    found = workload_for("long-prompt", "decoder", 2048)
    assert (found.prompt, found.prompt + found.generate) == (900, 1024)


def test_every_workload_can_be_measured_and_is_shown():
    """Each names a style that there is, and stands in `toolchain list workloads` with a line."""
    from bench.measure import STYLES
    from toolchain.catalog import entries

    assert {found.style for found in WORKLOADS.values()} == set(STYLES)
    shown = entries("workloads")
    assert set(shown) == set(WORKLOADS) and all(line for line in shown.values())


def test_minutes_are_sustaineds_alone():
    """A workload that ends by itself is not given any."""
    assert workload_for("sustained", "decoder", 64, 0.5).minutes == 0.5
    assert workload_for("sustained", "decoder", 64).minutes == 5.0
    with pytest.raises(UserError, match="--minutes is for sustained"):
        workload_for("chat", "decoder", 64, 0.5)


@pytest.mark.parametrize(
    ("name", "kind", "positions"),
    [("chta", "decoder", 64), ("classify", "decoder", 64), ("chat", "decoder", 1)],
)
def test_what_does_not_fit_is_one_line(name, kind, positions):
    """Unknown names, the wrong kind and no room are told."""
    with pytest.raises(UserError) as caught:
        workload_for(name, kind, positions)
    assert "\n" not in str(caught.value)


def test_tokens_are_the_same_every_time():
    """A seed is a prompt; ids lie in the vocabulary; rows are as long as they may be."""
    assert prompt_ids(400, 20, 3) == prompt_ids(400, 20, 3) != prompt_ids(400, 20, 4)
    rows = row_ids(400, 50, 30, 0)
    assert rows == row_ids(400, 50, 30, 0)
    assert {len(row) for row in rows} <= set(range(5, 31))
    assert all(0 <= token < 400 for row in rows for token in row)
