"""Fine-tuning by every method, with a deeper and wider teacher: what is learnt, recorded and refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from devices.errors import UserError
from export.checkpoint import identity, read_header
from toolchain.glue.classifier import load, pad
from toolchain.glue.finetune import finetune, request
from toolchain.glue.methods import METHODS
from toolchain.glue.methods.losses import hard
from toolchain.glue.methods.method import Moment, Setting, Stage, resolve
from toolchain.glue.methods.reading import answer, answer_embedded, answer_with_layers
from toolchain.glue.tasks import load_task

TAUGHT = [name for name, method in METHODS.items() if method.teacher == "needed"]
ROWS = [("the fox", "no"), ("a class", "yes"), ("jumps over a class of dog", "yes"), ("the", "no")]
TOML = """\
name = "{name}"
metric = "{metric}"
problem = "{problem}"
{answers}
[columns]
text_a = "text"
label = "label"
"""


def write_task(folder: Path, name: str = "tone", labels: str = '["no", "yes"]', scores: bool = False):
    """A task folder: whether a text has the word class in it, as a label or as a score."""
    folder.mkdir(parents=True)
    answers = "range = [0, 5]" if scores else f"labels = {labels}"
    problem, metric = ("regression", "pearson_spearman") if scores else ("classification", "accuracy")
    (folder / "task.toml").write_text(TOML.format(name=name, metric=metric, problem=problem, answers=answers))
    scale = {"no": 0, "yes": 5}
    rows = [(f"{text} {i % 7}", scale[y] if scores else y) for i in range(16) for text, y in ROWS]
    lines = "".join(f"{text}\t{y}\n" for text, y in rows)
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("text\tlabel\n" + lines)
    return load_task(folder)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task that anything can learn."""
    return write_task(tmp_path_factory.mktemp("task") / "tone")


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """The same as a regression."""
    return write_task(tmp_path_factory.mktemp("task") / "scores", "scores", scores=True)


@pytest.fixture(scope="module")
def student(make_checkpoint):
    """Two layers of width 32."""
    return make_checkpoint("gpt2", n_layer=2)


@pytest.fixture(scope="module")
def made(make_checkpoint, task, scores, tmp_path_factory):
    """The --out of a teacher's fine-tuning: 3 layers of width 48, on both tasks."""
    base, out = make_checkpoint("gpt2", n_layer=3, n_embd=48), tmp_path_factory.mktemp("made") / "out"
    for each in (task, scores):
        finetune(base, each, out / each.name, epochs=3, lr=4e-3)
    return out


@pytest.fixture(scope="module")
def teacher(made):
    """The teacher for the task with labels."""
    return made / "tone"


def weights(folder: Path) -> bytes:
    """The weights as they lie on disk."""
    return (folder / "model.safetensors").read_bytes()


def setting(student: Path, teacher: Path, name: str, **options: object) -> Setting:
    """What a stage is built from; the teacher's own copy is the student, so that both are classifiers."""
    torch.manual_seed(0)
    network = load(teacher).requires_grad_(False)
    return Setting(load(student), network, student, resolve(name, METHODS[name], options), 0)


def rows_for(here: Setting) -> dict[str, torch.Tensor]:
    """A row of six tokens and one of one."""
    ids = pad([[5, 6, 7, 8, 9, 10], [5]], here.student.config.pad_token_id)
    return {**ids, "labels": torch.tensor([0, 1])}


VARIANTS = [(name, {}) for name in METHODS] + [
    ("rail", {"layers": "concatenated"}),
    ("pkd", {"layers": "last", "width": "16"}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_every_method_learns(name, options, student, teacher, task, tmp_path):
    """The dev metric passes 0.9, glue.json says how it was made, and nothing but the classifier is left."""
    given, out, lines = teacher if name in TAUGHT else None, tmp_path / "out", []
    settings = {"method": name, "options": options, "teacher": given, "epochs": 3, "lr": 4e-3}
    record = finetune(student, task, out, say=lines.append, **settings)
    assert record["value"] == max(record["values"]) > 0.9
    mine = [line for line in lines if not line.startswith("teacher: ")]
    assert [line.split(",")[0] for line in mine] == [f"tone: epoch {i} of 3" for i in (1, 2, 3)]
    assert record["options"] == (resolve(name, METHODS[name], options) or None)
    assert record["teacher"] == (given and {"name": "tone", "sha256": identity(teacher)})
    assert json.loads((out / "glue.json").read_text()) == record
    assert (record["own_teacher"] is None) == (name != "self-kd")
    assert {path.name for path in out.iterdir()} == {path.name for path in teacher.iterdir()}
    assert set(read_header(out / "model.safetensors")) == {
        name for name in read_header(teacher / "model.safetensors") if ".h.2." not in name
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_says_it_all(name, student, teacher, task, tmp_path):
    """The same seed gives the same weights, another one others."""
    settings = {"method": name, "teacher": teacher if name in TAUGHT else None, "rows": 16, "batch": 8}
    for out, seed in (("one", 0), ("two", 0), ("three", 1)):
        finetune(student, task, tmp_path / out, seed=seed, epochs=len(METHODS[name].stages), **settings)
    assert weights(tmp_path / "one") == weights(tmp_path / "two") != weights(tmp_path / "three")


@pytest.mark.parametrize("name", ["finetune", "self-kd", *TAUGHT])
def test_scores_are_learnt(name, student, made, scores, tmp_path):
    """A regression: squared errors to the labels and to the teacher's scores."""
    given = made if name in TAUGHT else None
    epochs = 3 * len(METHODS[name].stages)
    record = finetune(student, scores, tmp_path / "out", method=name, teacher=given, epochs=epochs, lr=4e-3)
    assert record["value"] > 0.7
    if given:
        assert record["teacher"]["sha256"] == identity(made / "scores")


def test_methods_differ(student, teacher, task, tmp_path):
    """No two have the same gradient on the same rows: each does what the others do not. self-kd's loss is kd's."""
    out, found = tmp_path / "small", set()
    finetune(student, task, out, epochs=1, rows=16)
    variants = [(name, options) for name, options in VARIANTS if name != "self-kd"]
    for name, options in variants:
        here = setting(out, teacher, name, **options)
        batch = rows_for(here)
        METHODS[name].stages[0](here).loss(here.student, batch, Moment(0, 20, 0)).backward()
        found.add(here.student.get_input_embeddings().weight.grad.double().abs().sum().item())
    assert len(found) == len(variants)


def test_self_kd_takes_a_teacher_of_its_own_shape_or_makes_one(student, task, tmp_path):
    """A given copy of the student is used; it then is what the one made here would have been."""
    settings = {"epochs": 2, "rows": 32, "lr": 1e-3}
    finetune(student, task, tmp_path / "first", **settings)
    given = finetune(
        student, task, tmp_path / "given", method="self-kd", teacher=tmp_path / "first", **settings
    )
    own = finetune(student, task, tmp_path / "own", method="self-kd", **settings)
    assert given["own_teacher"] is None and own["teacher"] is None
    assert own["own_teacher"]["sha256"] == given["teacher"]["sha256"] == identity(tmp_path / "first")
    assert weights(tmp_path / "given") == weights(tmp_path / "own")


def test_a_request_knows_teacher_and_options(student, made, teacher, task):
    """What makes another classifier is another request; a default that is spelt out is not."""
    schedule = {"epochs": 2, "batch": 16, "lr": 1e-3, "seed": 0}

    def asked(method="kd", **more):
        return request(student, task, method, schedule, None, None, **{"teacher": teacher, **more})

    assert asked() == asked(options={"alpha": "0.5"}) == asked(options={}) == asked(teacher=made)
    assert asked() != asked(options={"alpha": "0.6"}) and asked() != asked("self-kd")
    assert asked()["max_tokens"] == 64
    assert asked("self-kd") != asked("self-kd", teacher=None)


def test_the_best_epoch_of_all_stages_is_kept(student, teacher, task, tmp_path, monkeypatch):
    """Where the second stage only does harm, the first stage's best epoch is what lies in the folder."""
    spoil = Stage(lambda model, batch, moment: hard(answer(model, batch), torch.zeros_like(batch["labels"])))
    good = METHODS["annealing"]
    monkeypatch.setitem(
        METHODS, "annealing", dataclasses.replace(good, stages=(good.stages[0], lambda _: spoil))
    )
    record = finetune(student, task, tmp_path / "out", method="annealing", teacher=teacher, epochs=4, lr=1e-2)
    assert len(record["values"]) == 4 and max(record["values"][:3]) > record["values"][3]
    network, rows = load(tmp_path / "out"), task.rows("dev")
    from toolchain.glue.classifier import encode, predict

    found = predict(network, encode(tmp_path / "out", rows, 64)).argmax(-1)
    assert sum(f == row.label for f, row in zip(found, rows, strict=True)) / len(rows) == record["value"]


def test_a_loss_that_is_no_number_names_its_epoch_and_step(student, teacher, task, tmp_path, monkeypatch):
    """In a second stage, too; what is left is an unfinished run, with the epochs before it."""
    good = METHODS["annealing"]
    bad = Stage(lambda model, batch, moment: answer(model, batch).sum() * float("nan"))
    monkeypatch.setitem(
        METHODS, "annealing", dataclasses.replace(good, stages=(good.stages[0], lambda _: bad))
    )
    with pytest.raises(
        UserError,
        match=r"task tone: the loss is nan at epoch 3, step 1; the last good epoch is kept .*lower --lr",
    ):
        finetune(student, task, tmp_path / "out", method="annealing", teacher=teacher)
    assert [path.name for path in tmp_path.iterdir()] == [".out.staging"]


@pytest.mark.parametrize("name", TAUGHT)
def test_the_teacher_stays_as_it_is(name, student, teacher, task, tmp_path):
    """Its folder and its weights in memory; a loss has no gradient there."""
    out = tmp_path / "small"
    finetune(student, task, out, epochs=1, rows=16)
    here = setting(out, teacher, name)
    before = {key: value.clone() for key, value in here.guide.state_dict().items()}
    batch = rows_for(here)
    for build in METHODS[name].stages:
        stage = build(here)
        here.student.train()
        loss = stage.loss(here.student, batch, Moment(0, 20, 0))
        loss.backward()
        assert torch.isfinite(loss) and here.student.training
    assert all(parameter.grad is None for parameter in here.guide.parameters())
    assert all(torch.equal(value, before[key]) for key, value in here.guide.state_dict().items())


@pytest.mark.parametrize("name", TAUGHT)
def test_bf16_has_a_gradient(name, student, teacher, task, tmp_path):
    """Under bf16 autocast, as on a GPU, with a row of one token and one of five: finite loss and gradients."""
    out = tmp_path / "small"
    finetune(student, task, out, epochs=1, rows=16)
    here = setting(out, teacher, name)
    batch = rows_for(here)
    stage = METHODS[name].stages[0](here)
    with torch.autocast("cpu", torch.bfloat16):
        loss = stage.loss(here.student, batch, Moment(0, 20, 0))
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in here.student.parameters() if p.grad is not None)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_readings_agree(family, make_checkpoint, task, tmp_path):
    """Ids and their embeddings give the same logits, padded or alone; there is a hidden state for each layer."""
    depth = {"gpt2": {"n_layer": 2}, "llama": {"num_hidden_layers": 2}}[family]
    finetune(make_checkpoint(family, **depth), task, tmp_path / "out", epochs=1, rows=16)
    model = load(tmp_path / "out")
    batch = pad([[5, 6, 7, 8], [9]], model.config.pad_token_id)
    with torch.no_grad():
        logits, layers = answer_with_layers(model, batch)
        embeds = model.get_input_embeddings()(batch["input_ids"])
        torch.testing.assert_close(answer_embedded(model, embeds, batch["attention_mask"]), logits)
        torch.testing.assert_close(answer(model, batch), logits)
        torch.testing.assert_close(answer(model, pad([[9]], 0)), logits[1:], rtol=1e-4, atol=1e-4)
    assert len(layers) == 3


def change(folder: Path, out: Path, **config: object) -> Path:
    """A copy of a checkpoint with another config."""
    shutil.copytree(folder, out)
    whole = json.loads((out / "config.json").read_text()) | config
    (out / "config.json").write_text(json.dumps(whole))
    return out


def refused(student: Path, task: object, tmp_path: Path, **settings: object) -> str:
    """The one line with which a fine-tuning is refused; nothing is written."""
    with pytest.raises(UserError) as caught:
        finetune(student, task, tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists() and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", TAUGHT)
def test_a_method_without_its_teacher_is_refused(name, student, task, tmp_path):
    """It says what to pass."""
    assert "pass --teacher with a classifier for tone" in refused(student, task, tmp_path, method=name)


@pytest.mark.parametrize("name", ["finetune", "label-smoothing", "tf-reg"])
def test_a_method_that_takes_no_teacher_is_refused_with_one(name, student, teacher, task, tmp_path):
    """It names those that do."""
    said = refused(student, task, tmp_path, method=name, teacher=teacher)
    assert f"method {name}: takes no teacher; leave --teacher out or choose self-kd, kd" in said


@pytest.mark.parametrize("name", ["label-smoothing", "tf-reg"])
def test_smoothing_a_score_is_refused(name, student, scores, tmp_path):
    """With the reason."""
    assert "a score has none; use finetune" in refused(student, scores, tmp_path, method=name)


def test_teachers_that_cannot_teach_are_refused(
    student, teacher, made, task, scores, tmp_path, make_checkpoint
):
    """No folder, no head, another task, other labels, a score, fewer positions, another padding: one line each."""

    def said(other, of=task, **more):
        return refused(student, of, tmp_path, method="kd", teacher=other, **more)

    assert "no such folder" in said(tmp_path / "nowhere")
    assert "has no classification head" in said(student)
    assert "was fine-tuned on tone; take a teacher for scores" in said(teacher, scores)
    moods = write_task(tmp_path / "moods", labels='["bad", "good"]')
    (tmp_path / "moods" / "train.tsv").write_text("text\tlabel\nthe fox\tbad\na dog\tgood\n")
    assert "its labels are no, yes, those of tone bad, good" in said(teacher, moods)
    assert "those of tone no, yes" in said(
        change(teacher, tmp_path / "turned", id2label={"0": "yes", "1": "no"})
    )
    number = change(made / "scores", tmp_path / "number")
    (number / "glue.json").unlink()
    assert "its labels are score" in said(number)
    bare = change(teacher, tmp_path / "bare")
    (bare / "glue.json").unlink()
    assert "tells 2 labels apart, scores has a score" in said(bare, scores)
    assert "pads with None" in said(change(teacher, tmp_path / "unpadded", pad_token_id=None))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    assert "not valid JSON" in said(tmp_path / "broken")
    short = make_checkpoint("gpt2", n_layer=2, n_positions=16)
    finetune(short, task, tmp_path / "short", epochs=1, rows=16)
    assert "has 16 positions, 20 tokens do not fit" in said(tmp_path / "short", max_tokens=20)


def test_another_tokenizer_is_refused_with_the_reason(student, teacher, task, tmp_path):
    """The same ids would be other words; settings of padding and truncation do not matter."""
    other = change(teacher, tmp_path / "other")
    words = json.loads((other / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(words))
    said = refused(student, task, tmp_path, method="kd", teacher=other)
    assert "its tokenizer differs" in said and "the same ids would be other words" in said
    same = change(teacher, tmp_path / "same")
    words = json.loads((same / "tokenizer.json").read_text())
    words["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (same / "tokenizer.json").write_text(json.dumps(words, indent=1))
    request(student, task, "kd", {"epochs": 1, "batch": 8, "lr": 1e-3, "seed": 0}, None, None, teacher=same)


@pytest.mark.parametrize("name", ["rail", "pkd"])
def test_a_student_deeper_than_its_teacher_is_refused(name, teacher, task, tmp_path, make_checkpoint):
    """Where layers are matched; alike depths are fine, and kd does not care."""
    deep, alike = make_checkpoint("gpt2", n_layer=4), make_checkpoint("gpt2", n_layer=3)
    said = refused(deep, task, tmp_path, method=name, teacher=teacher)
    assert "the student has 4 of them, the teacher 3; take a deeper teacher" in said
    schedule = {"epochs": 1, "batch": 8, "lr": 1e-3, "seed": 0}
    request(deep, task, "kd", schedule, None, None, teacher=teacher)
    request(alike, task, name, schedule, None, None, teacher=teacher)


def test_patient_kd_of_one_layer_is_refused(teacher, task, tmp_path, make_checkpoint):
    """There is no layer below the last."""
    assert "the student has one layer; use kd" in refused(
        make_checkpoint("gpt2", n_layer=1), task, tmp_path, method="pkd", teacher=teacher
    )


@pytest.mark.parametrize("name", ["mate", "combined"])
def test_a_generator_needs_a_language_model(name, task, tmp_path, make_checkpoint):
    """An untied classifier as base has lost its head."""
    base = make_checkpoint("llama", num_hidden_layers=2, tie_word_embeddings=False)
    finetune(base, task, tmp_path / "classifier", epochs=1, rows=16)
    said = refused(
        tmp_path / "classifier", task, tmp_path, method=name, teacher=tmp_path / "classifier", epochs=2
    )
    assert "this one has no LM head" in said


def test_an_out_folder_of_several_seeds_is_a_teacher(student, teacher, task, tmp_path):
    """The classifier of the same task and seed in it."""
    shutil.copytree(teacher, tmp_path / "out" / "tone" / "seed-3")
    record = finetune(
        student, task, tmp_path / "new", method="kd", teacher=tmp_path / "out", seed=3, epochs=1, rows=16
    )
    assert record["teacher"]["name"] == "seed-3"
    said = refused(student, task, tmp_path / "x", method="kd", teacher=tmp_path / "out")
    assert "has tone by seeds 3, not 0; ask for those with --seeds" in said


def test_the_registry_loads_no_torch():
    """`toolchain list` answers in a blink."""
    import subprocess
    import sys

    code = "import sys; from toolchain.glue.methods import METHODS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
