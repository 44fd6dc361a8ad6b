"""Training: what a step computes, what a run records, resuming, several processes, what stops it."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from devices.errors import UserError
from toolchain.compress.objectives.logits import forward_kl
from toolchain.compress.train import perplexity, train
from toolchain.compress.trainer import RANGES, Training, batch_loss, fuse_gelu, newest_snapshot, refuse

FEW: dict[str, Any] = {"steps": 4, "window": 16, "batch": 2, "heldout_blocks": 4, "snapshot_every": 2}


@pytest.fixture
def student(gpt2_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny GPT-2 to train in place."""
    return Path(shutil.copytree(gpt2_checkpoint, tmp_path / "student"))


def test_training_lowers_the_loss_and_says_so(
    student: Path, corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out perplexity falls, and the record's tokens, steps and perplexities are what happened."""
    training = Training(corpus=str(corpus_file), **{**FEW, "steps": 60}, lr=3e-3)
    record = train(student, tmp_path, training)
    assert record["perplexity"]["after"] < 0.8 * record["perplexity"]["before"]
    assert record["tokens"] == 60 * 2 * 16 and record["steps"] == 60
    assert record["perplexity"]["tokens"] == 4 * 15
    assert record["corpus"]["tokens"] % (2 * 16) == 0  # every step is a whole one
    assert f"before training: {record['perplexity']['before']:.1f}" in (said := capsys.readouterr().err)
    assert f"after training: {record['perplexity']['after']:.2f}" in said
    assert 0 < json.loads((tmp_path / "seconds.json").read_text()) <= record["hours"] * 3600 + 1
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    from toolchain.compress.train import _heldout_blocks
    from toolchain.corpus import load

    blocks = _heldout_blocks(load(str(corpus_file)).heldout, student, 16)[:4]
    assert perplexity(model, blocks) == pytest.approx(record["perplexity"]["after"], rel=1e-5)


@pytest.mark.parametrize(("tokens", "said"), [(31, True), (32, False)])
def test_a_budget_below_one_step_is_said(
    student: Path,
    corpus_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tokens: int,
    said: bool,
) -> None:
    """Less than a step cannot be trained: what is trained instead is said, and recorded."""
    few = {key: value for key, value in FEW.items() if key != "steps"}
    record = train(student, tmp_path, Training(corpus=str(corpus_file), tokens=tokens, **few))
    assert record["tokens"] == 32
    line = f"--tokens {tokens}: rounded up to one step, 32 tokens"
    assert (line in capsys.readouterr().err) == said


def test_distilling_pulls_towards_the_teacher(
    student: Path, corpus_file: Path, tmp_path: Path, make_checkpoint
) -> None:  # type: ignore[no-untyped-def]
    """With alpha 1 the divergence from the teacher falls."""
    teacher_dir = make_checkpoint("gpt2", seed=5)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_dir)
    ids = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(0))

    def divergence() -> float:
        model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
        with torch.no_grad():
            return forward_kl(model(ids).logits.view(32, -1), teacher(ids).logits.view(32, -1), 1.0).item()

    before = divergence()
    training = Training(
        objective="logits", corpus=str(corpus_file), **{**FEW, "steps": 60}, lr=3e-3, alpha=1.0
    )
    record = train(student, tmp_path, training, teacher_dir)
    assert divergence() < 0.8 * before
    assert record["temperature"] == 2.0


def test_plain_loss_is_the_model_s_own(gpt2_checkpoint: Path) -> None:
    """Our cross-entropy equals what transformers computes from labels."""
    model = AutoModelForCausalLM.from_pretrained(gpt2_checkpoint)
    ids = torch.randint(0, 400, (2, 16))
    out = model(ids, labels=ids)
    loss, _ = batch_loss(model, {"input_ids": ids, "labels": ids}, None, Training(), None)
    torch.testing.assert_close(loss, out.loss)


def test_fused_gelu_is_the_same_function(gpt2_checkpoint: Path) -> None:
    """Swapping GPT-2's activation for torch's kernel changes logits by rounding only."""
    model = AutoModelForCausalLM.from_pretrained(gpt2_checkpoint).eval()
    ids = torch.randint(0, 400, (1, 16))
    before = model(ids).logits
    fuse_gelu(model)
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-4)


def test_same_seed_same_bytes_and_another_seed_other_ones(
    gpt2_checkpoint: Path, corpus_file: Path, tmp_path: Path
) -> None:
    """A run is a function of its seed."""
    weights = []
    for i, seed in enumerate((1, 1, 2)):
        folder = Path(shutil.copytree(gpt2_checkpoint, tmp_path / f"s{i}"))
        work = tmp_path / f"w{i}"
        work.mkdir()
        train(folder, work, Training(corpus=str(corpus_file), seed=seed, dropout=0.1, **FEW))
        weights.append((folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_resumed_equals_undisturbed(gpt2_checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    """A run stopped after its first snapshot and called again ends with the same bytes."""
    whole = Path(shutil.copytree(gpt2_checkpoint, tmp_path / "whole"))
    cut = Path(shutil.copytree(gpt2_checkpoint, tmp_path / "cut"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    training = Training(corpus=str(corpus_file), dropout=0.1, **FEW)
    train(whole, tmp_path / "a", training)
    train(cut, tmp_path / "b", training)
    for step in (4,):  # as if killed between the first snapshot and the second
        shutil.rmtree(tmp_path / "b" / "snapshots" / f"checkpoint-{step}")
    shutil.rmtree(cut)
    shutil.copytree(gpt2_checkpoint, cut)
    train(cut, tmp_path / "b", training)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_torn_snapshot_is_not_resumed_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer writes its state last: a folder without it, or with half of it, is dropped."""
    from safetensors.numpy import save_file

    for step, state in ((2, '{"a": 1}'), (10, '{"a"'), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"w": np.zeros(2)}, folder / "model.safetensors")
        if state:
            (folder / "trainer_state.json").write_text(state)
    with monkeypatch.context() as patch:  # a helping process removes nothing under the first one's feet
        patch.setenv("RANK", "1")
        assert newest_snapshot(tmp_path) == str(tmp_path / "checkpoint-2")
    assert len(list(tmp_path.iterdir())) == 3
    assert newest_snapshot(tmp_path) == str(tmp_path / "checkpoint-2")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    (tmp_path / "checkpoint-4").mkdir()
    said: list[str] = []
    newest_snapshot(tmp_path, said.append)
    assert said == ["the snapshot at step 4 was still being written when the run ended; it is not needed"]
    assert newest_snapshot(tmp_path / "nothing") is None


@pytest.mark.parametrize(("file", "damaged"), [("optimizer.pt", (4,)), ("model.safetensors", (2, 4))])
def test_a_damaged_snapshot_is_left_out(
    student: Path,
    corpus_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    damaged: tuple[int, ...],
) -> None:
    """Cut short on disk: a line says so, and the run goes on from the older one, or from the start."""
    training = Training(corpus=str(corpus_file), **FEW)
    whole = train(student, tmp_path, training)
    for step in damaged:
        snapshot = tmp_path / "snapshots" / f"checkpoint-{step}" / file
        snapshot.write_bytes(snapshot.read_bytes()[:-9])
    capsys.readouterr()
    again = train(student, tmp_path, training)
    said = capsys.readouterr().err
    for step in damaged:
        assert f"the snapshot at step {step} is damaged and is left out" in said
    assert ("going on from the snapshot at step 2" in said) == (damaged == (4,))
    assert again["steps"] == whole["steps"] == 4


def test_a_loss_that_is_no_number_stops_with_the_step(
    student: Path, corpus_file: Path, tmp_path: Path
) -> None:
    """A run that diverges ends in one line naming the step and the learning rate."""
    training = Training(corpus=str(corpus_file), **{**FEW, "steps": 20}, lr=1e30, warmup=0.0)
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step [1-9].*lower --lr"):
        train(student, tmp_path, training)


def test_weights_that_are_no_numbers_are_refused(student: Path, corpus_file: Path, tmp_path: Path) -> None:
    """NaN weights are found before the first step."""
    from safetensors.torch import load_file, save_file

    weights = load_file(student / "model.safetensors")
    weights["transformer.h.0.ln_1.weight"][0] = math.nan
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"held-out loss is not a number"):
        train(student, tmp_path, Training(corpus=str(corpus_file), **FEW))


@pytest.mark.parametrize(
    ("changed", "teacher", "cause"),
    [
        ({"objective": "logit"}, True, "did you mean logits"),
        ({"objective": "logits"}, False, "needs a teacher"),
        ({"corpus": "/nowhere.txt"}, False, "no such file"),
        ({"window": 65}, False, "the model has 64 positions"),
        ({"tokens": 100}, False, "give one of the two"),
        ({"batch": 100_000}, False, r"--batch 100000: the corpus has \d+ blocks of 16 tokens"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    changed: dict[str, Any], teacher: bool, cause: str, student: Path, corpus_file: Path, tmp_path: Path
) -> None:
    """Unknown objective, no teacher, no corpus, no block: named before the first step."""
    training = Training(**{"corpus": str(corpus_file), **FEW, **changed})
    with pytest.raises(UserError, match=cause):
        train(student, tmp_path, training, student if teacher else None)


def test_other_vocabularies_are_refused(
    student: Path, corpus_file: Path, tmp_path: Path, make_checkpoint
) -> None:  # type: ignore[no-untyped-def]
    """Teacher and student must speak of the same tokens; both sizes are named."""
    config = json.loads((student / "config.json").read_text())
    other = make_checkpoint("gpt2")
    model = AutoModelForCausalLM.from_pretrained(other)
    model.resize_token_embeddings(300)
    model.save_pretrained(other)
    with pytest.raises(UserError, match=f"300 entries, the student's {config['vocab_size']}"):
        train(student, tmp_path, Training(objective="logits", corpus=str(corpus_file), **FEW), other)


@pytest.mark.parametrize("kind", ["pretrain", "distill --cache-teacher"])
def test_two_processes_give_the_curve_of_one(
    kind: str, gpt2_checkpoint: Path, corpus_file: Path, tmp_path: Path
) -> None:
    """`accelerate launch` with two CPU processes: the same losses within float noise at the same global batch.

    A teacher's cache is computed by the first process, and both read the rows that are theirs of it.
    """
    curves = []
    for launcher in (
        [],
        ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"],
    ):
        out = tmp_path / f"out{len(launcher)}"
        cache = f" {tmp_path / f'cache{len(launcher)}'}" if "cache" in kind else ""
        options = f"--layers 2 --corpus {corpus_file} --steps 6 --window 16 --batch 4 --lr 1e-3"
        options += f" --train {kind}{cache}"
        module = ["--module", "toolchain"] if launcher else ["-m", "toolchain"]
        done = subprocess.run(
            [
                sys.executable,
                *launcher,
                *module,
                "compress",
                str(gpt2_checkpoint),
                *options.split(),
                "--out",
                str(out),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        record = json.loads((out / "compression.json").read_text())["training"]
        curves.append([loss for _, loss in record["losses"]] + [record["perplexity"]["after"]])
    assert len(curves[0]) == 7
    np.testing.assert_allclose(curves[0], curves[1], rtol=2e-4)
    shards = [sorted(tmp_path.glob(f"cache{n}/*.npy")) for n in (0, len(launcher))]
    assert bool(shards[0]) == ("cache" in kind)
    assert [file.read_bytes() for file in shards[0]] == [file.read_bytes() for file in shards[1]]


def test_several_gpus_without_a_launcher_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs in one process: the Trainer is told of one, so that a step is as large as was said."""
    from transformers import TrainingArguments

    from toolchain.compress.trainer import _arguments, resolved

    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    assert _arguments(resolved(Training(**FEW)), 10, tmp_path)._n_gpu == 1


def test_pretrain_goes_on_from_torn_weights(
    tmp_path: Path, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the trained weights were written: the same call makes the folder anew and goes on."""
    from toolchain.compress import pretrain as module

    shape = tmp_path / "shape.json"
    small = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32, "vocab_size": 300}
    shape.write_text(json.dumps({"model_type": "gpt2", **small}))
    asked = Training(corpus=str(corpus_file), **FEW)

    def torn(model_dir: Path) -> None:
        (model_dir / "model.safetensors").write_bytes(b"torn")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_halve", torn)
        with pytest.raises(KeyboardInterrupt):
            module.pretrain(shape, tmp_path / "model", asked, half=True)
    said: list[str] = []
    module.pretrain(shape, tmp_path / "model", asked, half=True, say=said.append)
    assert said == ["going on with the unfinished run found here"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.float16
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="runs as one process"):
        module.pretrain(shape, tmp_path / "other", asked)


TINY = {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 32, "vocab_size": 300}


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({}, "has no 'model_type'; add one of gpt2"),
        ({"model_type": "gtp2"}, "unknown model_type 'gtp2': did you mean gpt2"),
        ({"model_type": ["gpt2"]}, "unknown model_type"),
        ({**TINY, "n_embd": 30, "n_head": 4}, "n_embd 30 is not a multiple of n_head 4"),
        ({**TINY, "n_embd": "wide"}, "n_embd"),
        ({**TINY, "vocab_size": 10}, "vocab_size 10 is less than the 257"),
        ({**TINY, "n_layer": 0}, "n_layer must be a positive whole number"),
        ({**TINY, "resid_pdrop": 7.0}, "builds no 'gpt2' model"),
        ({**TINY, "activation_function": "step"}, "unknown activation 'step'"),
    ],
)
def test_a_shape_that_cannot_be_built_names_its_key(
    shape: dict[str, Any], says: str, tmp_path: Path, corpus_file: Path, main: Callable[..., Any]
) -> None:
    """Exit 2 with one line, before a text is read or anything is written."""
    (tmp_path / "shape.json").write_text(json.dumps(shape))
    done = main("pretrain", tmp_path / "shape.json", "--corpus", corpus_file, "--out", tmp_path / "out")
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert done.err.startswith("toolchain: shape: ") and says in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["shape.json"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize("name", RANGES)
def test_a_setting_that_is_no_sensible_number_is_refused(name: str, value: float) -> None:
    """nan passes every bound of the command line, and infinity those that are open; neither is trained with."""
    refuse(Training())
    with pytest.raises(UserError, match=rf"^--{name.replace('_', '-')} \S+: must be a (number|share)"):
        refuse(Training(**{name: value}))


def test_every_float_of_a_training_has_a_range() -> None:
    """A setting that is added later is checked, too."""
    assert {name for name, kind in Training.__annotations__.items() if "float" in str(kind)} == set(RANGES)


def test_pretrain_from_a_shape(tmp_path: Path, corpus_file: Path, cli: Callable[..., Any]) -> None:
    """A model and tokenizer from nothing: opens in transformers, 16-bit, with the exact command in its card."""
    shape = tmp_path / "shape.json"
    shape.write_text(
        json.dumps(
            {
                "model_type": "gpt2",
                "n_layer": 2,
                "n_embd": 32,
                "n_head": 2,
                "n_positions": 64,
                "vocab_size": 300,
            }
        )
    )
    out = tmp_path / "model"
    done = cli("pretrain", shape, "--corpus", corpus_file, "--steps", 3, "--batch", 2, "--half", "--out", out)
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float16 and model.config.n_layer == 2
    assert f"toolchain pretrain {shape}" in (out / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_micro_batches_add_up_to_a_step(student: Path, corpus_file: Path, tmp_path: Path) -> None:
    """Four blocks a step, two at a time: the same losses and, to rounding, the same weights as four at once."""
    twin = Path(shutil.copytree(student, tmp_path / "twin"))
    asked = {**FEW, "batch": 4, "lr": 3e-3}
    whole = train(student, tmp_path / "a", Training(corpus=str(corpus_file), **asked))
    parts = train(twin, tmp_path / "b", Training(corpus=str(corpus_file), **asked, micro_batch=2))
    assert parts["tokens"] == whole["tokens"] and parts["micro_batch"] == 2
    np.testing.assert_allclose(np.array(parts["losses"]), np.array(whole["losses"]), rtol=1e-4)
    assert parts["perplexity"]["after"] == pytest.approx(whole["perplexity"]["after"], rel=1e-4)


def test_a_share_of_the_corpus_is_drawn_by_the_seed() -> None:
    """Blocks keep their order, none comes twice, as many as the share says; another seed draws others."""
    from toolchain.compress.train import _share

    blocks = np.arange(40).reshape(20, 2)
    drawn = _share(blocks, Training(share=0.25, seed=1))
    assert len(drawn) == 5 and (np.diff(drawn[:, 0]) > 0).all() and set(drawn[:, 0]) <= set(blocks[:, 0])
    assert not np.array_equal(drawn, _share(blocks, Training(share=0.25, seed=2)))
    np.testing.assert_array_equal(_share(blocks, Training(seed=1)), blocks)


def test_a_budget_in_passes(student: Path, corpus_file: Path, tmp_path: Path) -> None:
    """--epochs 2 of half the corpus is as many tokens as one pass over all of it, to a step."""
    asked = {key: value for key, value in FEW.items() if key != "steps"} | {"batch": 8}
    record = train(student, tmp_path, Training(corpus=str(corpus_file), **asked, epochs=2, share=0.5))
    assert record["tokens"] == 2 * record["corpus"]["tokens"] and record["epochs"] == 2


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"epochs": 1.0}, "--steps 4: --epochs 1.0 is a budget, too"),
        ({"share": 0.0}, "--share 0.0: must be"),
        ({"micro_batch": 3, "batch": 4}, "--micro-batch 3: 1 of them do not add up to --batch 4"),
    ],
)
def test_budgets_that_do_not_fit_are_refused(
    student: Path, corpus_file: Path, tmp_path: Path, asked: dict[str, Any], says: str
) -> None:
    """One line each, before a step is taken."""
    with pytest.raises(UserError, match=says):
        train(student, tmp_path, Training(corpus=str(corpus_file), **{**FEW, **asked}))
