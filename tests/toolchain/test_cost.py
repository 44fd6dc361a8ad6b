"""What training costs: arithmetic by hand, energy from counters that turn over, and where all of it is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.architecture import describe
from toolchain.compress.card import model_card
from toolchain.compress.cost import Energy, flops_per_token
from toolchain.compress.progress import Meter


def architecture(checkpoint: Path) -> Any:
    """The architecture of a checkpoint folder."""
    return describe(json.loads((checkpoint / "config.json").read_text()))


def test_arithmetic_by_hand(gpt2_checkpoint: Path, llama_checkpoint: Path) -> None:
    """GPT-2: 12 h² + 13 h a layer and the tied output; no position table; attention 12 · L · h · window."""
    arch = architecture(gpt2_checkpoint)
    weights = 4 * (12 * 32 * 32 + 13 * 32) + 400 * 32
    own = 6 * weights + 12 * 4 * 32 * 64
    assert flops_per_token(arch, 64) == own
    llama = architecture(llama_checkpoint)
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    other = 6 * (4 * layer + 400 * 32) + 12 * 4 * 32 * 64
    assert flops_per_token(llama, 64) == other
    assert flops_per_token(arch, 64, llama) == pytest.approx(own + other / 3)


def counter(folder: Path, microjoules: int) -> None:
    """A RAPL package as the kernel shows it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("10000000\n")


def test_counters_that_turn_over(tmp_path: Path) -> None:
    """Two packages' joules add up, a turn of a counter included; parts of a package are not counted twice."""
    one, two = tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:1"
    counter(one, 9_000_000)
    counter(two, 0)
    counter(tmp_path / "intel-rapl:0:0", 0)
    energy = Energy(tmp_path)
    assert energy.joules() == 0
    counter(one, 1_000_000)  # 1 J to the end of the range, 1 J after it
    counter(two, 500_000)
    counter(tmp_path / "intel-rapl:0:0", 9_000_000)
    assert energy.joules() == pytest.approx(2.5)
    counter(one, 2_000_000)
    assert energy.joules() == pytest.approx(3.5)


def test_no_counter_is_null(tmp_path: Path) -> None:
    """Nothing to read, nothing that can be read, or nonsense: None, never zero."""
    assert Energy(tmp_path).joules() is None
    assert Energy(tmp_path / "missing").joules() is None
    counter(tmp_path / "intel-rapl:0", 1)
    (tmp_path / "intel-rapl:0/energy_uj").write_text("?")
    assert Energy(tmp_path).joules() is None


def test_earlier_runs_energy_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run adds what the snapshot's run had used."""
    counter(tmp_path / "intel-rapl:0", 0)
    monkeypatch.setattr("toolchain.compress.progress.Energy", lambda: Energy(tmp_path))
    (tmp_path / "joules.json").write_text("40.0")
    meter = Meter(tmp_path / "joules.json")
    meter.on_train_begin(None, None, None)
    counter(tmp_path / "intel-rapl:0", 2_000_000)
    assert meter.joules() == pytest.approx(42.0)


def test_cost_is_in_the_record_the_card_and_the_last_lines(
    gpt2_checkpoint: Path, corpus_file: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    """Tokens as a share of the corpus, hours, speed and arithmetic; no share of a peak on a CPU."""
    out = tmp_path / "s"
    words = ["--corpus", corpus_file, "--steps", 3, "--batch", 2, "--window", 16, "--layers", 2]
    done = main("compress", gpt2_checkpoint, "--out", out, "--train", "distill", *words)
    assert done.code == 0, done.err
    made = json.loads((out / "compression.json").read_text())
    record, cost = made["training"], made["training"]["cost"]
    teacher = architecture(gpt2_checkpoint)
    assert cost["flops_per_token"] == flops_per_token(architecture(out), 16, teacher)
    assert cost["peak_flops"] is None and cost["peak_share"] is None
    said = f"96 tokens, {record['epochs']:.1%} of the corpus, in "
    assert said in done.err and "tokens/s" in done.err
    card = (out / "README.md").read_text()
    assert f"96 ({record['epochs']:.1%} of the corpus) in {record['hours']} h" in card
    assert "MFLOP a token" in card and "| energy |" in card
    cost |= {"peak_share": 0.4213, "kilowatt_hours": 1.5}
    card = model_card(made, gpt2_checkpoint)
    assert "42.1% of the GPU's measured bf16 peak" in card and "1.5 kWh" in card
