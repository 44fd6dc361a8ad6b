"""`toolchain glue --cache-teacher`: the same losses, one forward of the teacher a row, and what is refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from devices.errors import UserError
from toolchain.glue import cached as module
from toolchain.glue.classifier import load, pad
from toolchain.glue.finetune import encoded, finetune
from toolchain.glue.methods import METHODS, reading
from toolchain.glue.methods.method import Setting
from toolchain.glue.run import glue
from toolchain.glue.tasks import Task, load_task

ROWS = 24
FIXED = ("kd", "rail", "annealing", "pkd", "self-kd")  # the teacher is asked nothing but what can be kept
SHORT: dict[str, Any] = {"epochs": 3, "batch": 8, "lr": 1e-3, "rows": ROWS}
TOML = """\
name = "tone"
metric = "accuracy"
labels = ["no", "yes"]

[columns]
text_a = "text"
label = "label"
"""


def write_task(folder: Path, more: str = "") -> Task:
    """Rows of one to five words, 64 and `more` to train on; whether one is `class` is the label."""
    folder.mkdir()
    (folder / "task.toml").write_text(TOML)
    texts = [("the fox", "no"), ("a class", "yes"), ("jumps over a class of dog", "yes"), ("the", "no")]
    lines = "text\tlabel\n" + "".join(f"{text} {i % 7}\t{y}\n" for i in range(16) for text, y in texts)
    (folder / "train.tsv").write_text(lines + more)
    (folder / "dev.tsv").write_text(lines)
    return load_task(folder)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A task that anything can learn."""
    return write_task(tmp_path_factory.mktemp("task") / "tone")


@pytest.fixture(scope="module")
def student(make_checkpoint: Callable[..., Path]) -> Path:
    """Two layers; read only."""
    return make_checkpoint("gpt2", n_layer=2)


@pytest.fixture(scope="module")
def teacher(
    make_checkpoint: Callable[..., Path], task: Task, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A classifier of three layers."""
    out = tmp_path_factory.mktemp("teacher") / "tone"
    finetune(make_checkpoint("gpt2", n_layer=3, seed=5), task, out, epochs=1, lr=4e-3, batch=8)
    return out


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of few rows, asked of the teacher five at a time: boundaries everywhere."""
    monkeypatch.setattr(module, "SHARD_BYTES", 1 << 10)
    monkeypatch.setattr(module, "BATCH_ROWS", 5)


class Watched:
    """The losses of training and how many rows the teacher was asked about."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.losses: list[float] = []
        self.asked = 0
        run = reading._run

        def counted(model: Any, batch: Any, **how: bool) -> Any:
            if not any(parameter.requires_grad for parameter in model.parameters()):
                self.asked += len(batch["input_ids"])
            return run(model, batch, **how)

        monkeypatch.setattr(reading, "_run", counted)
        for name, spec in dict(METHODS).items():
            monkeypatch.setitem(METHODS, name, self._noted(spec))

    def _noted(self, spec: Any) -> Any:
        def build(stage: Any) -> Any:
            def built(setting: Any) -> Any:
                made = stage(setting)

                def loss(model: Any, batch: Any, moment: Any) -> torch.Tensor:
                    value = made.loss(model, batch, moment)
                    self.losses.append(value.item())
                    return value

                return dataclasses.replace(made, loss=loss)

            return built

        return dataclasses.replace(spec, stages=tuple(build(stage) for stage in spec.stages))


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in FIXED] + [("rail", {"layers": "concatenated"}), ("pkd", {"layers": "last"})],
)
def test_the_cache_trains_as_the_teacher_does(
    name: str,
    options: dict[str, str],
    student: Path,
    teacher: Path,
    task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Losses of all epochs and dev metrics are the live teacher's within float32 noise; a row is asked about once."""
    with_it = {"method": name, "teacher": teacher, "options": options, **SHORT}
    with monkeypatch.context() as patch:
        live = Watched(patch)
        record = finetune(student, task, tmp_path / "live", **with_it)
    kept = Watched(monkeypatch)
    cached = finetune(student, task, tmp_path / "cached", cache_teacher=str(tmp_path / "c"), **with_it)
    assert kept.losses == pytest.approx(live.losses, rel=1e-4, abs=1e-6)
    assert cached["values"] == record["values"]
    first_stage = 2 if name == "annealing" else 3
    assert (live.asked, kept.asked) == (first_stage * ROWS, ROWS)
    finetune(student, task, tmp_path / "again", cache_teacher=str(tmp_path / "c"), **{**with_it, "lr": 2e-3})
    assert kept.asked == ROWS


@pytest.mark.parametrize("name", ["mate", "combined"])
def test_what_a_generator_s_teacher_says_of_the_original_is_kept(
    name: str, student: Path, teacher: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers to perturbed texts are asked anew, those to the rows themselves once."""
    with_it = {"method": name, "teacher": teacher, **SHORT}
    with monkeypatch.context() as patch:
        live = Watched(patch)
        finetune(student, task, tmp_path / "live", **with_it)
    kept = Watched(monkeypatch)
    finetune(student, task, tmp_path / "cached", cache_teacher=str(tmp_path / "c"), **with_it)
    assert kept.losses == pytest.approx(live.losses, rel=1e-4, abs=1e-6)
    epochs = 2 if name == "combined" else 3
    assert (live.asked, kept.asked) == (2 * epochs * ROWS, (1 + epochs) * ROWS)


def test_bitwise_where_the_batches_are_alike(
    teacher: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept is the teacher's own answer to a batch: to the last bit where the same rows are asked together."""
    monkeypatch.setattr(module, "BATCH_ROWS", ROWS)
    monkeypatch.setattr(module, "SHARD_BYTES", 1 << 20)
    guide = load(teacher)
    examples = encoded(teacher, task, task.rows("train")[:ROWS], 64)
    hidden = METHODS["rail"].hidden(Setting(guide, guide, teacher, {}, 0))
    made = module.cached_rows(str(tmp_path / "c"), examples, guide, hidden, {}, lambda line: None)
    batch = pad([example["input_ids"] for example in examples], guide.config.pad_token_id)
    logits, states = reading.ask(guide, batch, hidden)
    assert states is not None
    for row in range(ROWS):
        assert torch.equal(torch.tensor(made[row]["logits"]), logits[row])
        assert torch.equal(torch.tensor(made[row]["hidden"]), states[row])


def test_another_teacher_data_or_length_is_refused(
    student: Path, teacher: Path, task: Task, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    """Each with what differs, before the first step; the cache stays as it was and nothing is written."""
    place = tmp_path / "c"
    with_it = {"method": "kd", "teacher": teacher, **SHORT, "epochs": 1, "cache_teacher": str(place)}
    finetune(student, task, tmp_path / "one", **with_it)
    before = {path: path.read_bytes() for path in place.iterdir()}
    other = tmp_path / "other"
    finetune(make_checkpoint("gpt2", n_layer=3, seed=6), task, other, epochs=1, rows=16)
    moved = write_task(tmp_path / "moved", "the fox class\tyes\n")
    for changes, on, says in (
        ({"teacher": other}, task, "another teacher"),
        ({}, moved, "another data"),
        ({"max_tokens": 20}, task, "max_tokens 64, now 20"),
        ({"rows": 16}, task, "another tokens"),
        ({"method": "rail"}, task, "hidden states None, now mean"),
    ):
        with pytest.raises(UserError, match=f"a cache of something else .*{says}"):
            finetune(student, on, tmp_path / "two", **{**with_it, **changes})
        assert not (tmp_path / "two").exists()
    assert {path: path.read_bytes() for path in place.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "says"), [("finetune", "method finetune asks no teacher"), ("self-kd", "makes its teacher anew")]
)
def test_no_teacher_no_cache(name: str, says: str, student: Path, task: Task, tmp_path: Path) -> None:
    """Refused with the reason before anything is loaded."""
    with pytest.raises(UserError, match=says):
        finetune(student, task, tmp_path / "out", method=name, cache_teacher="auto")
    assert not list(tmp_path.iterdir())


def test_seeds_share_a_cache_where_they_can(
    student: Path, teacher: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all rows one cache does for every seed; where the seed draws the rows, each has its own. The disk is said."""
    kept, said = Watched(monkeypatch), []
    settings = {
        "method": "kd",
        "teacher": teacher,
        "epochs": 1,
        "batch": 16,
        "cache_teacher": str(tmp_path / "c"),
    }
    glue(student, [str(task.path)], tmp_path / "all", seeds=(1, 2), say=said.append, **settings)
    assert kept.asked == 64
    sizes = [line for line in said if "the teacher's answers to 64 rows take " in line]
    assert len(sizes) == 1 and f"MB in {tmp_path / 'c' / 'tone'} (" in sizes[0]
    settings["cache_teacher"] = str(tmp_path / "drawn")
    glue(student, [str(task.path)], tmp_path / "few", seeds=(1, 2), rows=16, **settings)
    assert kept.asked == 64 + 2 * 16
    assert sorted(path.name for path in (tmp_path / "drawn/tone").iterdir()) == ["seed-1", "seed-2"]
    assert json.loads((tmp_path / "few/tone/seed-1/glue.json").read_text())["cached"] is True


def test_the_command_line_takes_a_flag_or_a_folder(
    student: Path, teacher: Path, task: Task, tmp_path: Path, main: Callable[..., Any]
) -> None:
    """Says the disk it takes; a damaged shard ends the command with exit 2 and one line that names it."""
    words = ["glue", student, "--task", task.path, "--method", "rail", "--teacher", teacher, "--rows", 16]
    words += ["--epochs", 1, "--batch", 8]
    done = main(*words, "--cache-teacher", "--out", tmp_path / "one")
    assert done.code == 0, done.err
    assert "the teacher's answers to 16 rows take " in done.err and "toolchain/teachers/" in done.err
    done = main(*words, "--cache-teacher", tmp_path / "c", "--out", tmp_path / "two")
    assert done.code == 0, done.err
    (tmp_path / "c/tone/00000.npy").write_bytes(b"")
    done = main(*words, "--cache-teacher", tmp_path / "c", "--out", tmp_path / "three")
    assert done.code == 2 and "00000.npy: damaged" in done.err.splitlines()[-1]
    assert not (tmp_path / "three/tone").exists()
    done = main(*words[:4], "--cache-teacher", "--out", tmp_path / "four")
    assert done.code == 2 and "method finetune asks no teacher" in done.err
