import dataclasses
import errno
import hashlib
import json
import os
import random

import numpy as np
import pytest

from devices.errors import UserError
from toolchain.glue import classifier
from toolchain.glue.finetune import finetune
from toolchain.glue.methods import METHODS
from toolchain.glue.methods.method import Stage
from toolchain.glue.run import glue
from toolchain.glue.tasks import Row, load_task

WORDS = "the quick brown fox jumps over a lazy dog and does not mind it".split()  # noqa: SIM905 - a text
TOML = """\
name = "{name}"
metric = "{metric}"
problem = "{problem}"
{answers}

[columns]
text_a = "text"
label = "label"
"""


def write_task(
    folder, name="tone", metric="accuracy", problem="classification", answers='labels = ["no", "yes"]'
):
    """A task folder whose label is which of two words the text holds."""
    rng = random.Random(0)
    folder.mkdir()
    (folder / "task.toml").write_text(TOML.format(name=name, metric=metric, problem=problem, answers=answers))
    marks = (
        [("class", "yes"), ("function", "no")] if problem == "classification" else [("class", 5), ("work", 0)]
    )
    for split, rows in (("train", 160), ("dev", 40)):
        lines = ["text\tlabel"]
        for i in range(rows):
            mark, label = marks[i % 2]
            words = rng.choices(WORDS, k=rng.randint(1, 4))
            words.insert(rng.randint(0, len(words)), mark)
            lines.append(f"{' '.join(words)}\t{label}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return load_task(folder)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task that anything can learn."""
    return write_task(tmp_path_factory.mktemp("task") / "tone")


@pytest.fixture(scope="module")
def small(make_checkpoint):
    """Two small checkpoints, one of each family."""
    return {
        "gpt2": make_checkpoint("gpt2", n_layer=2),
        "llama": make_checkpoint("llama", num_hidden_layers=2),
    }


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def tuned(request, small, task, tmp_path_factory):
    """A fine-tuned folder with its record, what was said, and its base."""
    out, lines = tmp_path_factory.mktemp("tuned") / request.param, []
    base = small[request.param]
    record = finetune(base, task, out, epochs=4, lr=2e-3, say=lines.append)
    return out, record, lines, base


def test_a_separable_task_is_learnt(tuned, task):
    """The dev metric passes 0.9, the best epoch is what is kept, and the folder reproduces the figure."""
    out, record, lines, _ = tuned
    assert record["value"] == max(record["values"]) > 0.9
    assert len(record["values"]) == len(lines) == 4
    assert lines[0].startswith("tone: epoch 1 of 4, dev accuracy ")
    rows = task.rows("dev")
    logits = classifier.predict(classifier.load(out), classifier.encode(out, rows, record["max_tokens"]))
    assert np.mean(logits.argmax(-1) == [row.label for row in rows]) == record["value"]


def test_the_folder_says_what_it_is(tuned, task):
    """An HF classifier in float32 with padding and labels set, its tokenizer, and glue.json."""
    from safetensors.numpy import load_file

    from export.checkpoint import identity

    out, record, _, base = tuned
    assert json.loads((out / "glue.json").read_text()) == record
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert config["pad_token_id"] == config["eos_token_id"]
    assert config["id2label"] == {"0": "no", "1": "yes"}
    weights = load_file(out / "model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {"float32"}
    assert weights["score.weight"].shape == (2, 32)
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert not (out / "snapshots").exists()
    assert record["base"] == {"name": base.name, "sha256": identity(base)}
    wanted = {"task": "tone", "labels": ["no", "yes"], "metric": "accuracy", "max_tokens": 64, "rows": 160}
    assert wanted.items() <= record.items()
    assert record["compression"] is record["training"] is None


def test_padding_changes_nothing(tuned, task):
    """A row's logits are the same alone and beside a longer one."""
    out, record, _, _ = tuned
    model = classifier.load(out)
    rows = classifier.encode(out, task.rows("dev")[:8], record["max_tokens"])
    together = classifier.predict(model, rows, batch=8)
    alone = np.concatenate([classifier.predict(model, [row]) for row in rows])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_what_is_read_is_the_last_real_token(tuned):
    """The logits are the head on the last token's hidden state, computed here by hand."""
    import torch

    out, _, _, _ = tuned
    model = classifier.load(out)
    ids = classifier.encode(out, [Row("the fox", None, 0), Row("a lazy dog and the fox", None, 0)], 64)
    for row, logits in zip(ids, classifier.predict(model, ids), strict=True):
        with torch.inference_mode():
            hidden = model.base_model(torch.tensor([row])).last_hidden_state[0, -1]
            slow = (model.score.weight @ hidden).numpy()
        np.testing.assert_allclose(logits, slow, rtol=1e-4, atol=1e-4)


def test_lineage_is_carried_on(small, task, tmp_path):
    """How the base was made stands in glue.json, for the report."""
    import shutil

    base = tmp_path / "student"
    shutil.copytree(small["gpt2"], base)
    (base / "compression.json").write_text('{"schema": 1, "keep": [0, 2]}')
    (base / "training.json").write_text('{"tokens": 5}')
    record = finetune(base, task, tmp_path / "out", epochs=1, rows=16)
    assert record["compression"] == {"schema": 1, "keep": [0, 2]}
    assert record["training"] == {"tokens": 5}
    assert record["rows"] == 16


def weights(folder):
    """The weights' hash."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_seed_says_it_all(small, task, tmp_path):
    """The same seed gives the same weights, another one others."""
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        finetune(small["gpt2"], task, tmp_path / name, epochs=1, rows=16, seed=seed)
    assert weights(tmp_path / "one") == weights(tmp_path / "two") != weights(tmp_path / "three")


def test_a_regression_has_one_column(small, tmp_path):
    """Scores are regressed: one output, the mean of both correlations as metric."""
    task = write_task(tmp_path / "like", "like", "pearson_spearman", "regression", "range = [0, 5]")
    record = finetune(small["gpt2"], task, tmp_path / "out", epochs=3, lr=3e-3)
    assert record["value"] > 0.7
    assert json.loads((tmp_path / "out" / "config.json").read_text())["problem_type"] == "regression"


def test_a_pair_is_cut_on_its_longer_side(gpt2_checkpoint):
    """Over max_tokens the longer text loses its end; the shorter one stays whole."""
    end = classifier.separator(gpt2_checkpoint)
    short, long = "the fox", "a lazy dog and the quick brown fox does not mind it"
    [brief] = classifier.encode(gpt2_checkpoint, [Row(short, None, 0)], 64)
    [whole] = classifier.encode(gpt2_checkpoint, [Row(long, None, 0)], 64)
    first, second = classifier.encode(gpt2_checkpoint, [Row(short, long, 0), Row(long, short, 0)], 12)
    keep = 12 - 1 - len(brief)
    assert first == [*brief, end, *whole[:keep]]
    assert second == [*whole[:keep], end, *brief]


@pytest.mark.parametrize(
    "row", [Row("", None, 0), Row("", "", 0), Row("the fox", "", 0), Row("fox<|endoftext|>", None, 0)]
)
def test_no_row_is_empty_or_ends_in_padding(gpt2_checkpoint, row):
    """What looks like padding at the end would move what is read: it is left out."""
    end = classifier.separator(gpt2_checkpoint)
    [ids] = classifier.encode(gpt2_checkpoint, [row], 64)
    assert ids == [end] or ids[-1] != end


def replaced(loss):
    """Plain fine-tuning with another loss."""
    return dataclasses.replace(METHODS["finetune"], stages=(lambda setting: Stage(loss),))


def test_a_loss_that_is_no_number_stops_at_its_step(small, task, tmp_path, monkeypatch):
    """One line with the step, and nothing left that looks finished."""
    calls = []

    def spoiled(model, batch, moment):
        calls.append(1)
        return model(**batch).loss * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setitem(METHODS, "finetune", replaced(spoiled))
    with pytest.raises(
        UserError, match=r"task tone: the loss is nan at epoch 1, step 3; no epoch was .*lower --lr"
    ):
        finetune(small["gpt2"], task, tmp_path / "out", epochs=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["finetune", "annealing", "rail", "mate"])
def test_a_loss_that_is_no_number_keeps_the_last_good_epoch(name, small, task, tmp_path, monkeypatch):
    """Exit 2 with step and epoch; the same call goes on behind it and ends with an undisturbed run's bytes."""
    finetune(small["gpt2"], task, tmp_path / "teacher", epochs=1, rows=16)
    taught = {"method": name, "teacher": tmp_path / "teacher"} if name != "finetune" else {}
    settings = {"epochs": 3, "rows": 32, "batch": 8, "lr": 1e-3, **taught}
    finetune(small["gpt2"], task, tmp_path / "whole", **settings)
    good, calls = METHODS[name], []

    def spoiled(build):
        def built(setting):
            stage = build(setting)

            def loss(*args):
                calls.append(1)
                return stage.loss(*args) * (float("nan") if len(calls) == 11 else 1.0)

            return dataclasses.replace(stage, loss=loss)

        return built

    spec = dataclasses.replace(good, stages=tuple(map(spoiled, good.stages)))
    monkeypatch.setitem(METHODS, name, spec)
    with pytest.raises(
        UserError, match=r"the loss is nan at epoch 3, step .*the last good epoch is kept"
    ) as caught:
        finetune(small["gpt2"], task, tmp_path / "cut", **settings)
    assert str(tmp_path / ".cut.staging/unfinished/snapshots") in str(caught.value)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(UserError, match=r"of another request .*lr 0.001, now 0.002"):
        finetune(small["gpt2"], task, tmp_path / "cut", **{**settings, "lr": 2e-3})
    said, before = [], len(calls)
    record = finetune(small["gpt2"], task, tmp_path / "cut", say=said.append, **settings)
    assert len(calls) == before + 4  # the steps of the third epoch alone
    assert len(record["values"]) == 3 and sum("epoch" in line and "dev" in line for line in said) == 1
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"teacher", "whole", "cut"}


def test_an_interrupt_leaves_nothing(small, task, tmp_path, monkeypatch):
    """Ctrl-C during training leaves neither the folder nor its staging."""

    def interrupted(model, batch, moment):
        raise KeyboardInterrupt

    monkeypatch.setitem(METHODS, "finetune", replaced(interrupted))
    with pytest.raises(KeyboardInterrupt):
        finetune(small["gpt2"], task, tmp_path / "out", epochs=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", ["Error while serializing: I/O error: No space left on device", None])
def test_a_full_disk_is_one_line(small, task, tmp_path, main, monkeypatch, words):
    """In safetensors' own words or the system's: exit 2, what to do, and no folder left."""
    from safetensors import SafetensorError

    def full(*_):
        raise SafetensorError(words) if words else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("toolchain.glue.finetune.tune", full)
    done = main("glue", small["gpt2"], "--task", task.path, "--out", tmp_path / "out")
    assert done.code == 2 and done.err.count("\n") == 1
    assert "no space left on device; free some disk" in done.err
    assert not list(tmp_path.iterdir())


def test_another_account_can_read_a_classifier(tuned):
    """The weights have the mode that the umask gives, as every other file."""
    folder = tuned[0]
    assert (folder / "model.safetensors").stat().st_mode == (folder / "glue.json").stat().st_mode


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "finetun"}, "unknown method 'finetun': did you mean finetune"),
        ({"lr": float("nan")}, "--lr nan: must be a number above 0"),
        ({"lr": float("inf")}, "--lr inf: must be a number above 0"),
        ({"max_tokens": 65}, "has 64 positions, 65 tokens do not fit"),
    ],
)
def test_bad_settings_are_refused_before_anything_heavy(small, task, tmp_path, settings, words):
    """One line, nothing written."""
    with pytest.raises(UserError, match=words):
        finetune(small["gpt2"], task, tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_stays_without_force(small, task, tmp_path):
    """Several tasks: every --out is looked at before the first is trained."""
    (tmp_path / "out" / "tone").mkdir(parents=True)
    with pytest.raises(UserError, match="already exists"):
        glue(small["gpt2"], [str(task.path)], tmp_path / "out")


def test_a_finished_task_is_used_again(small, task, tmp_path, monkeypatch):
    """Several tasks, the second interrupted: the same call again trains only what is missing."""
    other = write_task(tmp_path / "other", name="other")
    tasks, out, real = [str(task.path), str(other.path)], tmp_path / "out", finetune
    settings = {"epochs": 1, "rows": 32}

    def interrupted(model, task, *args, **kwargs):
        if task.name == "other":
            raise KeyboardInterrupt
        return real(model, task, *args, **kwargs)

    monkeypatch.setattr("toolchain.glue.run.finetune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        glue(small["gpt2"], tasks, out, **settings)
    monkeypatch.undo()
    with pytest.raises(UserError, match="tone: already exists"):
        glue(small["gpt2"], tasks, out, **{**settings, "lr": 1e-4})
    before, said = (out / "tone" / "glue.json").stat().st_mtime_ns, []
    records = glue(small["gpt2"], tasks, out, say=said.append, **settings)
    assert [record["task"] for record in records] == ["tone", "other"]
    assert (out / "tone" / "glue.json").stat().st_mtime_ns == before
    assert "used again" in said[0] and said[1].startswith("other: epoch 1 of 1")


def test_a_task_named_twice_is_refused(small, task, tmp_path):
    """Before anything is trained."""
    with pytest.raises(UserError, match="tone is named twice"):
        glue(small["gpt2"], [str(task.path)] * 2, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_task_is_found_before_training_begins(small, task, tmp_path):
    """A misspelt second task stops the command before the first is trained."""
    with pytest.raises(UserError, match="did you mean docs-order"):
        glue(small["gpt2"], [str(task.path), "docs-ordr"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_end_of_text_is_refused(make_checkpoint, task, tmp_path):
    """Padding and pairs need an eos token; config.json must name one."""
    base = make_checkpoint("gpt2", n_layer=1)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((base / name).read_text())
        config.pop("eos_token_id", None)
        (base / name).write_text(json.dumps(config))
    with pytest.raises(UserError, match="names no eos_token_id"):
        finetune(base, task, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_command(cli, small, task, tmp_path):
    """`toolchain glue` writes OUT/TASK and ends with the figure; progress goes to stderr."""
    args = [
        "glue",
        small["gpt2"],
        "--task",
        task.path,
        "--out",
        tmp_path / "out",
        "--epochs",
        1,
        "--rows",
        32,
    ]
    done = cli(*args)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'out' / 'tone'}: accuracy 0.")
    assert done.stderr.splitlines()[0].startswith("tone: epoch 1 of 1, dev accuracy ")
    assert len(done.stdout.splitlines()) == len(done.stderr.splitlines()) == 1
    assert (tmp_path / "out" / "tone" / "glue.json").is_file()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--task", "tone"], "unknown task 'tone'"),
        (["--task", "sst2"], "pass --data"),
        (["--task", "docs-kind", "--epochs", "0"], "epochs"),
        (["--task", "docs-kind", "--rows", "-1"], "rows"),
        (["--task", "docs-kind", "--lr", "0"], "lr"),
        (["--task", "docs-kind", "--lr", "-inf"], "lr"),
        (["--task", "docs-kind", "--data", "nowhere"], "nowhere: no such folder"),
        (["--task", ","], "names no task"),
    ],
)
def test_bad_command_lines_are_one_line(tmp_path, capsys, args, words):
    """Exit 2 with one line; nothing written."""
    from toolchain.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["glue", "no-model", "--out", str(tmp_path / "out"), *args])
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert words in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())
