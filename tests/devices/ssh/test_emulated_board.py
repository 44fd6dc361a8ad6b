"""A board of another architecture behind the login: the emulated ARM64 root, its Python a wrapper script."""

import json

import pytest

from bench import run
from devices import board_setup, emulated, profiles, ssh
from devices.emulated import root


@pytest.fixture
def arm_board(board, tmp_path):
    """A board whose Python is an emulated Cortex-A76's."""
    lacking = root.tools(finished=True) or root.missing("cortex-a76")
    if lacking:
        pytest.skip(f"cortex-a76 is not set up ({lacking}); toolchain devices setup cortex-a76")
    python = emulated.wrapper(profiles.load("cortex-a76"), tmp_path / "python3")
    return board.profile(python=str(python), emulated=True)


def test_aarch64_comes_back_over_ssh(arm_board):
    """What the board is told to be is what its Python sees: architecture, dot product, and a runtime that imports."""
    found = {finding.what: finding for finding in board_setup.check(arm_board)}
    assert found["arch"].value == "aarch64" and "asimddp" in found["isa"].value
    assert all(finding.ok for what, finding in found.items() if what.startswith("import"))


def test_a_benchmark_on_it_counts_instructions(arm_board, board, decoder_folder, tmp_path):
    """Set up, pushed, run and counted over ssh: a result that is aarch64's, emulated, and has no times."""
    ssh.setup(arm_board, lambda _: None)
    run.bench(
        [decoder_folder],
        tmp_path / "out",
        device=str(board.profile_path),
        workload="short",
        rounds=1,
        progress=False,
    )
    made = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert made["environment"]["arch"] == "aarch64" and made["device"]["emulated"]
    assert made["token_s"] is None and made["instructions"]["per_generated_token"]["median"] > 1000
