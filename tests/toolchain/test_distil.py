"""Distillation as a run: each objective's defaults and state, teachers of other shapes, teachers that do not fit."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from devices.errors import UserError
from toolchain.compress.objectives import OBJECTIVES
from toolchain.compress.objectives.logits import forward_kl
from toolchain.compress.objectives.taid import START
from toolchain.compress.train import train
from toolchain.compress.trainer import Training, resolved

FEW: dict[str, Any] = {"steps": 4, "window": 16, "batch": 2, "heldout_blocks": 4, "snapshot_every": 2}


@pytest.fixture
def student(gpt2_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny GPT-2 to train in place."""
    return Path(shutil.copytree(gpt2_checkpoint, tmp_path / "student"))


@pytest.fixture(scope="session")
def teacher(make_checkpoint: Callable[..., Path]) -> Path:
    """Another GPT-2 with the same tokenizer; read only."""
    return make_checkpoint("gpt2", seed=5)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors."""
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_pulls_towards_its_teacher(
    name: str, student: Path, teacher: Path, corpus_file: Path, tmp_path: Path
) -> None:
    """The divergence from the teacher falls, and the record holds the settings that were used.

    Not the loss: TAID's target moves away from the student while it learns. This teacher is random and knows
    no text, so that the teacher's part is weighed alone where that can be said.
    """
    made = OBJECTIVES[name]
    alone = None if made.alpha is None else 1.0
    ids = torch.randint(0, 300, (4, 16), generator=torch.Generator().manual_seed(0))

    def divergence() -> float:
        models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (student, teacher)]
        with torch.no_grad():
            return forward_kl(*(model(ids).logits.flatten(0, 1) for model in models), 1.0).item()

    before = divergence()
    asked = Training(objective=name, corpus=str(corpus_file), **{**FEW, "steps": 40}, lr=2e-3, alpha=alone)
    record = train(student, tmp_path, asked, teacher)
    assert divergence() < 0.95 * before
    assert (record["temperature"], record["alpha"], record["mix"]) == (made.temperature, alone, made.mix)


def test_distilgpt2_s_defaults(student: Path, teacher: Path, corpus_file: Path, tmp_path: Path) -> None:
    """T = 2, learning rate 2.5e-4 unless one is given, and position embeddings as they came."""
    asked = Training(objective="distilgpt2", corpus=str(corpus_file), **FEW)
    before = weights(student)
    record = train(student, tmp_path, asked, teacher)
    assert (record["lr"], record["temperature"], record["alpha"]) == (2.5e-4, 2.0, None)
    assert resolved(Training(objective="distilgpt2", lr=1e-3)).lr == 1e-3
    after = weights(student)
    same = {name for name, weight in before.items() if torch.equal(weight, after[name])}
    assert same == {"transformer.wpe.weight"}


@pytest.mark.parametrize("name", ["taid", "jsd"])
def test_a_killed_distillation_ends_with_the_bytes_of_an_undisturbed_one(
    name: str, gpt2_checkpoint: Path, teacher: Path, corpus_file: Path, tmp_path: Path
) -> None:
    """TAID's place between student and teacher comes back with the snapshot."""
    asked = Training(objective=name, corpus=str(corpus_file), dropout=0.1, **FEW)
    folders = [Path(shutil.copytree(gpt2_checkpoint, tmp_path / name)) for name in ("whole", "cut")]
    for folder in folders:
        train(folder, tmp_path / f"{folder.name}-work", asked, teacher)
    shutil.rmtree(tmp_path / "cut-work/snapshots/checkpoint-4")  # as if killed after the first snapshot
    if name == "taid":
        state = json.loads((tmp_path / "cut-work/snapshots/checkpoint-2/trainer_state.json").read_text())
        kept = state["stateful_callbacks"]["Remembered"]["attributes"]
        assert kept["t"] > START and kept["momentum"] != 0 and kept["loss"] > 0
    shutil.copytree(gpt2_checkpoint, folders[1], dirs_exist_ok=True)
    train(folders[1], tmp_path / "cut-work", asked, teacher)
    one, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == other


def test_teachers_of_other_shapes(
    student: Path, corpus_file: Path, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    """Deeper, wider or of another family: logits compare all the same; hidden states of another width do not."""
    for i, wide in enumerate(
        (make_checkpoint("gpt2", n_layer=6, n_embd=48), make_checkpoint("llama", num_hidden_layers=2))
    ):
        record = train(
            student, tmp_path / str(i), Training(objective="jsd", corpus=str(corpus_file), **FEW), wide
        )
        assert record["steps"] == 4
    asked = Training(objective="distilgpt2", corpus=str(corpus_file), **FEW)
    with pytest.raises(UserError, match=r"hidden state has 48 entries, the student's 32, and 'distilgpt2'"):
        train(student, tmp_path, asked, make_checkpoint("gpt2", n_embd=48))


def test_other_tokens_behind_the_same_number_of_ids_are_refused(
    student: Path, corpus_file: Path, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    """Two entries of the teacher's tokenizer swapped: equal sizes, and still not one vocabulary."""
    other = make_checkpoint("gpt2")
    file = other / "tokenizer.json"
    made = json.loads(file.read_text())
    vocab = made["model"]["vocab"]
    one, two = list(vocab)[5:7]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    file.write_text(json.dumps(made))
    asked = Training(objective="logits", corpus=str(corpus_file), **FEW)
    with pytest.raises(UserError, match=r"vocabulary is another than the student's \(token 5, '"):
        train(student, tmp_path, asked, other)
    file.write_text(json.dumps(json.loads((student / "tokenizer.json").read_text()), indent=1))
    train(student, tmp_path, asked, other)  # written otherwise, and the same


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"objective": "taidd"}, "did you mean taid"),
        ({"objective": "skew_kl"}, "did you mean skew-kl"),
        ({"objective": "distilgpt2", "alpha": 0.5}, "objective 'distilgpt2' has no such setting"),
        ({"objective": "logits", "mix": 0.5}, "leave it out, or choose one of skew-kl, jsd"),
        ({"objective": "taid", "mix": 0.5}, "--mix 0.5: objective 'taid' has no such setting"),
    ],
)
def test_settings_that_an_objective_lacks_are_refused(changed: dict[str, Any], says: str) -> None:
    """A name or a setting that would go unheard is one line, before anything is read."""
    with pytest.raises(UserError, match=says):
        resolved(Training(**changed))


def test_a_loss_that_is_no_number_names_the_last_good_snapshot(
    student: Path, teacher: Path, corpus_file: Path, tmp_path: Path
) -> None:
    """Snapshots stay, but for one whose weights are no numbers: the run must not go on from that."""
    asked = Training(objective="logits", corpus=str(corpus_file), **{**FEW, "steps": 6})
    fresh = weights(student)
    train(student, tmp_path, asked, teacher)
    snapshots = tmp_path / "snapshots"
    assert {path.name for path in snapshots.iterdir()} == {"checkpoint-4", "checkpoint-6"}
    shutil.rmtree(snapshots / "checkpoint-6")
    shutil.copytree(snapshots / "checkpoint-4", snapshots / "checkpoint-3")
    spoilt = load_file(snapshots / "checkpoint-4/model.safetensors")
    spoilt["transformer.h.0.ln_1.weight"][0] = math.nan
    save_file(spoilt, snapshots / "checkpoint-4/model.safetensors", metadata={"format": "pt"})
    save_file(fresh, student / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"loss is nan at step 5, .*good snapshot is \S+checkpoint-3; lower"):
        train(student, tmp_path, asked, teacher)
    assert {path.name for path in snapshots.iterdir()} == {"checkpoint-3"}


def test_a_diverged_run_keeps_its_snapshots(
    gpt2_checkpoint: Path, corpus_file: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    """Exit 2 and one line naming step and snapshot; the folder of the run is still there."""
    words = ["compress", gpt2_checkpoint, "--out", tmp_path / "s", "--layers", 2, "--train", "distill"]
    words += ["--corpus", corpus_file, "--steps", 40, "--batch", 2, "--window", 16]
    done = main(*words, "--lr", 1e18, "--warmup", 1, "--snapshot-every", 1)
    assert done.code == 2, done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("toolchain: training: the loss is ")
    kept = sorted((tmp_path / ".s.staging/unfinished/snapshots").glob("checkpoint-*"))
    assert bool(kept) == ("the last good snapshot is" in last)
    assert not (tmp_path / "s").exists()
    for folder in kept:
        made = AutoModelForCausalLM.from_pretrained(folder)
        assert all(torch.isfinite(weight).all() for weight in made.parameters())
