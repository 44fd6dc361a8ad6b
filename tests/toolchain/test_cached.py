"""The cached teacher: what it holds, that runs read the right rows of it, and what refuses it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from devices.errors import UserError
from toolchain.compress import cached as module
from toolchain.compress.cached import cached_teacher, describe_cache
from toolchain.compress.objectives import OBJECTIVES
from toolchain.compress.train import train
from toolchain.compress.trainer import Training, resolved

FEW: dict[str, Any] = {"steps": 4, "window": 16, "batch": 2, "heldout_blocks": 4, "snapshot_every": 2}


@pytest.fixture(scope="session")
def teacher(make_checkpoint: Callable[..., Path]) -> Path:
    """Another GPT-2 with the same tokenizer; read only."""
    return make_checkpoint("gpt2", seed=5)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of three blocks, asked of the teacher two at a time: boundaries everywhere."""
    monkeypatch.setattr(module, "SHARD_TOKENS", 3 * 16)
    monkeypatch.setattr(module, "BATCH_TOKENS", 2 * 16)


def blocks(count: int = 7) -> np.ndarray:
    """Random packed blocks."""
    return np.random.default_rng(0).integers(0, 300, (count, 16))


def about(of: np.ndarray, **changes: Any) -> dict[str, Any]:
    """What a small cache of them is of."""
    return describe_cache(of, "a" * 64, "b" * 64, "c" * 64, 400, 5, 2.0) | changes


def silent(line: str) -> None:
    """Nobody listens."""


def test_the_cache_holds_the_teacher_s_own_numbers(teacher: Path, tmp_path: Path) -> None:
    """Every block's ids are the teacher's most probable tokens, values their softened log-probabilities."""
    model, of, said = AutoModelForCausalLM.from_pretrained(teacher).eval(), blocks(), []
    made = cached_teacher(str(tmp_path / "c"), about(of), of, lambda: model, said.append)
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.from_numpy(of)).logits / 2.0, -1)
    for i in (6, 0, 3, 2, 5, 1, 4):
        ids, values = made[i]
        top = expected[i].topk(5)
        assert ids.dtype == np.int64 and np.array_equal(ids, top.indices.numpy())
        np.testing.assert_allclose(values[:, :5], top.values.numpy(), atol=4e-3)
        np.testing.assert_allclose(np.exp(values.astype(float)).sum(-1), 1.0, atol=4e-3)
    files = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert files == ["00000.npy", "00001.npy", "00002.npy", "index.json"]
    size = sum(shard.nbytes for shard in made.kept.shards)
    assert size == 7 * 16 * (5 * 2 + 6 * 2)
    assert f"take {size / 1e6:,.1f} MB in {tmp_path / 'c'} (" in said[0]


def test_a_stopped_computation_goes_on_with_the_missing_shards(teacher: Path, tmp_path: Path) -> None:
    """Interrupted in the third shard: the next call asks for that one alone, and a third call for none."""
    model, of, asked = AutoModelForCausalLM.from_pretrained(teacher).eval(), blocks(), []

    class Asked:
        device = model.device

        def __init__(self, stop: int) -> None:
            self.stop = stop

        def __call__(self, ids: torch.Tensor, **how: Any) -> Any:
            if len(asked) == self.stop:
                raise KeyboardInterrupt
            asked.append(len(ids))
            return model(ids, **how)

    with pytest.raises(KeyboardInterrupt):
        cached_teacher(str(tmp_path), about(of), of, lambda: Asked(4), silent)  # type: ignore[arg-type,return-value]
    assert asked == [2, 1, 2, 1]
    made = cached_teacher(str(tmp_path), about(of), of, lambda: Asked(99), silent)  # type: ignore[arg-type,return-value]
    assert asked == [2, 1, 2, 1, 1]
    again = cached_teacher(str(tmp_path), about(of), of, lambda: pytest.fail("asked again"), silent)
    assert all(
        np.array_equal(one, other) for one, other in zip(made.kept.shards, again.kept.shards, strict=True)
    )
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teacher": {"sha256": "d" * 64}}, r"\(another teacher\)"),
        ({"corpus": {"sha256": "d" * 64}}, r"\(another corpus\)"),
        ({"tokenizer": {"sha256": "d" * 64}}, r"\(another tokenizer\)"),
        ({"window": 8}, r"\(window 16, now 8\)"),
        ({"top": 6}, r"\(top 5, now 6\)"),
        ({"temperature": 1.0}, r"\(temperature 2.0, now 1.0\); give --temperature 2.0 as it has"),
        ({"top": 400}, "--cache-top 400: the vocabulary has 400"),
    ],
)
def test_a_cache_of_something_else_is_refused(
    changes: dict[str, Any], says: str, teacher: Path, tmp_path: Path
) -> None:
    """A named folder says what differs; nothing in it is touched."""
    of = blocks()
    cached_teacher(
        str(tmp_path), about(of), of, lambda: AutoModelForCausalLM.from_pretrained(teacher), silent
    )
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=says):
        cached_teacher(str(tmp_path), about(of, **changes), of, lambda: pytest.fail("asked"), silent)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_damage_is_found_and_mended_by_removing_the_shard(teacher: Path, tmp_path: Path) -> None:
    """One bit of one shard: refused by name; removed, that shard alone is computed again."""
    of, model = blocks(), AutoModelForCausalLM.from_pretrained(teacher).eval()
    cached_teacher(str(tmp_path), about(of), of, lambda: model, silent)
    file = tmp_path / "00001.npy"
    whole = file.read_bytes()
    for damaged in (whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], whole[:-100], b""):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"00001.npy: damaged.*remove it"):
            cached_teacher(str(tmp_path), about(of), of, lambda: pytest.fail("asked"), silent)
    file.unlink()
    cached_teacher(str(tmp_path), about(of), of, lambda: model, silent)
    assert file.read_bytes() == whole


def test_folders_and_disks_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone else's folder, a torn index, a disk with less than is needed: one line, before the teacher is loaded."""
    of = blocks()

    def refused(says: str) -> None:
        with pytest.raises(UserError, match=says):
            cached_teacher(str(tmp_path / "c"), about(of), of, lambda: pytest.fail("asked"), silent)

    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        refused(r"take 0.0 MB, and 0.0 MB are free; lower --cache-top")
    assert not (tmp_path / "c").exists()
    (tmp_path / "c").mkdir()
    (tmp_path / "c/thesis.tex").write_text("mine")
    refused("holds something that is no teacher's cache")
    (tmp_path / "c/index.json").write_text("{")
    refused("not valid JSON")
    (tmp_path / "c/index.json").write_text("{}")
    refused("a cache of something else")


@pytest.mark.parametrize("name", [name for name, made in OBJECTIVES.items() if not made.needs_all])
def test_training_from_the_cache_is_training_from_the_teacher(
    name: str, gpt2_checkpoint: Path, teacher: Path, corpus_file: Path, tmp_path: Path
) -> None:
    """With nearly all of the vocabulary kept, blocks shuffled and a resume between: the teacher's own losses."""
    losses = []
    for place, top in ((None, None), (str(tmp_path / "c"), 399)):
        asked = Training(objective=name, corpus=str(corpus_file), **FEW, cache_teacher=place, cache_top=top)
        folder, work = tmp_path / f"s{top}", tmp_path / f"w{top}"
        for _ in range(2 if place else 1):
            shutil.copytree(gpt2_checkpoint, folder, dirs_exist_ok=True)
            record = train(folder, work, asked, teacher)
            shutil.rmtree(work / "snapshots/checkpoint-4")  # the second call goes on from step 2
        losses.append([loss for _, loss in record["losses"]])
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)


def test_a_resumed_cached_run_ends_with_the_same_bytes(
    gpt2_checkpoint: Path, teacher: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a snapshot and called again, from the cache in its default place, made once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = Training(objective="logits", corpus=str(corpus_file), cache_teacher="auto", **FEW)
    folders = [Path(shutil.copytree(gpt2_checkpoint, tmp_path / name)) for name in ("whole", "cut")]
    for folder in folders:
        record = train(folder, tmp_path / f"{folder.name}-work", asked, teacher)
        assert record["cache_top"] == 32 and record["cache_hours"] >= 0
    shutil.rmtree(tmp_path / "cut-work/snapshots/checkpoint-4")
    shutil.copytree(gpt2_checkpoint, folders[1], dirs_exist_ok=True)
    train(folders[1], tmp_path / "cut-work", asked, teacher)
    one, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == other
    assert len(list((tmp_path / "cache/toolchain/teachers").iterdir())) == 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"objective": "taid", "cache_teacher": "auto"}, "'taid' mixes both models' logits over the whole"),
        ({"objective": "distilgpt2", "cache_teacher": "auto"}, "last hidden state, which the cache does not"),
        ({"objective": "logits", "cache_top": 8}, "--cache-top 8: caches nothing alone"),
    ],
)
def test_what_cannot_be_cached_is_refused_with_the_reason(changed: dict[str, Any], says: str) -> None:
    """Objectives that need every logit, and a size without a cache."""
    with pytest.raises(UserError, match=says):
        resolved(Training(**changed))


def test_the_command_line_takes_a_flag_or_a_folder(
    gpt2_checkpoint: Path, corpus_file: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    """Says the disk it takes; a damaged shard ends the command with exit 2 and one line."""
    words = ["compress", gpt2_checkpoint, "--layers", 2, "--train", "distill", "--corpus", corpus_file]
    words += ["--steps", 2, "--batch", 2, "--window", 16]
    done = main(*words, "--out", tmp_path / "one", "--cache-teacher", tmp_path / "cache")
    assert done.code == 0, done.err
    assert f"MB in {tmp_path / 'cache'} (" in done.err
    made = json.loads((tmp_path / "one/compression.json").read_text())
    assert made["training"]["cache_teacher"] == str(tmp_path / "cache")
    done = main(*words, "--cache-teacher", "--out", tmp_path / "two")
    assert done.code == 0 and "toolchain/teachers/" in done.err
    (tmp_path / "cache/00000.npy").write_bytes(b"")
    done = main(*words, "--out", tmp_path / "three", "--cache-teacher", tmp_path / "cache")
    assert done.code == 2 and "00000.npy: damaged" in done.err.splitlines()[-1]
    assert not (tmp_path / "three").exists()
    done = main(*words[:5], "pretrain", "--out", tmp_path / "four", "--cache-teacher")
    assert done.code == 2 and "pretrain asks no teacher" in done.err


@pytest.mark.parametrize(
    ("place", "more", "says"),
    [
        ("mine", [], "holds something that is no teacher's cache"),
        ("file", [], "is a file, and --cache-teacher names a folder"),
        ("cold", [], "(temperature 1.0, now 2.0); give --temperature 1.0 as it has, name another folder"),
        ("none", ["--cache-top", 400], "--cache-top 400: the vocabulary has 400; keep fewer"),
    ],
)
def test_a_cache_that_cannot_be_used_is_known_before_anything_is_said(
    gpt2_checkpoint: Path, corpus_file: Path, tmp_path: Path, main: Callable[..., Any], place, more, says
) -> None:
    """The refusal is the only line: no plan was printed for what cannot run."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("mine")
    (tmp_path / "cold").mkdir()
    index = {"about": about(blocks(), temperature=1.0, top=32), "seconds": 0.0, "shards": {}}
    (tmp_path / "cold/index.json").write_text(json.dumps(index))
    words = ["compress", gpt2_checkpoint, "--layers", 2, "--train", "distill", "--corpus", corpus_file]
    done = main(*words, "--out", tmp_path / "out", "--cache-teacher", tmp_path / place, *more)
    assert done.code == 2 and says in done.err and len(done.err.splitlines()) == 1, done.err


def test_a_file_is_no_folder_for_a_cache(tmp_path: Path) -> None:
    """A cache that names a file is refused as that, before anything is said or asked."""
    (tmp_path / "file").write_text("x")
    of, said = blocks(), []
    with pytest.raises(UserError, match="is a file, and --cache-teacher names a folder"):
        cached_teacher(str(tmp_path / "file"), about(of), of, lambda: pytest.fail("asked"), said.append)
    assert not said


def test_a_budget_below_the_cache_is_said(
    teacher: Path,
    gpt2_checkpoint: Path,
    corpus_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run that sees a part of what the cache is of says which --share would cache that part alone."""
    student = Path(shutil.copytree(gpt2_checkpoint, tmp_path / "student"))
    training = Training(objective="logits", corpus=str(corpus_file), cache_teacher=str(tmp_path / "c"), **FEW)
    record = train(student, tmp_path, training, teacher)
    assert "this run sees 128, and the cache is of all; --share" in capsys.readouterr().err
    assert record["cache_hours"] >= 0
