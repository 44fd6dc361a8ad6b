import json
import math

import numpy as np
import pytest

from devices.artifact import open_artifact
from devices.errors import UserError
from devices.text import encode_text, load_tokenizer
from export.build import export
from toolchain.cli.evaluate import figure
from toolchain.evaluate import evaluate
from toolchain.glue.finetune import finetune
from toolchain.glue.tasks import load_task
from toolchain.judge import judge

TASK = """\
name = "tone"
metric = "accuracy"
also = ["f1"]
labels = ["no", "yes"]

[columns]
text_a = "text"
label = "label"
"""


@pytest.fixture(scope="module")
def pair(make_checkpoint, tmp_path_factory):
    """A small decoder checkpoint and its fp32 artifact."""
    checkpoint = make_checkpoint("llama", num_hidden_layers=2)
    out = tmp_path_factory.mktemp("artifact") / "llama-fp32"
    export(checkpoint, out, "fp32")
    return checkpoint, out


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task of twenty rows."""
    folder = tmp_path_factory.mktemp("task") / "tone"
    folder.mkdir()
    (folder / "task.toml").write_text(TASK)
    rows = [
        f"the fox {'does' if i % 2 else 'jumps'} over {'a lazy ' * (i % 4)}dog\t{('no', 'yes')[i % 2]}"
        for i in range(20)
    ]
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    return load_task(folder)


@pytest.fixture(scope="module")
def classifiers(make_checkpoint, task, tmp_path_factory):
    """A classifier checkpoint and its fp32 artifact."""
    folder = tmp_path_factory.mktemp("classifier")
    finetune(make_checkpoint("gpt2", n_layer=2), task, folder / "tuned", epochs=1, lr=1e-3)
    export(folder / "tuned", folder / "artifact", "fp32")
    return folder / "tuned", folder / "artifact"


def by_hand(checkpoint, text, window, blocks):
    """Perplexity in plain PyTorch: cross-entropy of each window's tokens but the first."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = encode_text(load_tokenizer(checkpoint), text)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    total = count = 0
    for start in range(0, len(ids) - window + 1, window)[:blocks]:
        block = torch.tensor([ids[start : start + window]])
        with torch.no_grad():
            logits = model(block).logits[0, :-1].double()
        total += float(torch.nn.functional.cross_entropy(logits, block[0, 1:], reduction="sum"))
        count += window - 1
    return math.exp(total / count), count


@pytest.mark.parametrize(("window", "blocks"), [(64, None), (16, 5), (33, 2)])
def test_a_checkpoints_perplexity_is_what_torch_computes(pair, corpus_file, window, blocks):
    """Whole windows of the whole text, each but its first token, none added."""
    checkpoint, _ = pair
    found = evaluate(checkpoint, corpus=str(corpus_file), window=window, blocks=blocks)["quality"][
        "perplexity"
    ]
    value, tokens = by_hand(checkpoint, corpus_file.read_text(), window, blocks)
    assert found["value"] == pytest.approx(value, rel=1e-5)
    assert (found["tokens"], found["window"]) == (tokens, window)
    assert found["corpus"]["name"] == corpus_file.name


@pytest.mark.parametrize(("window", "stride"), [(64, 16), (24, 24), (16, 15)])
def test_a_sliding_window_is_what_torch_computes(pair, corpus_file, window, stride):
    """Checkpoint and artifact: Hugging Face's loop in float64, all of the text, each token once."""
    import torch
    from transformers import AutoModelForCausalLM

    text = corpus_file.read_text()[:2000]
    short = corpus_file.parent / f"short-{window}.txt"
    short.write_text(text)
    ids = torch.tensor([encode_text(load_tokenizer(pair[0]), text)])
    model = AutoModelForCausalLM.from_pretrained(pair[0]).double().eval()
    total = count = previous = 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + window, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - previous)] = -100
        scored = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(ids[:, begin:end], labels=labels).loss) * scored if scored else 0
        count, previous = count + scored, end
        if end == ids.shape[1]:
            break
    for path in pair:
        found = evaluate(path, corpus=str(short), window=window, stride=stride)["quality"]["perplexity"]
        assert found["value"] == pytest.approx(math.exp(total / count), rel=1e-4)
        assert (found["tokens"], found["window"], found["stride"]) == (count, window, stride)
        nll, tokens = total / count, ids.shape[1]
        assert found["word_perplexity"] == pytest.approx(math.exp(nll * tokens / len(text.split())), rel=1e-3)
        assert found["bits_per_byte"] == pytest.approx(
            nll * tokens / len(text.encode()) / math.log(2), rel=1e-4
        )


def test_words_are_those_of_the_windows(pair, corpus_file):
    """With a few windows only, words and bytes are counted in the text that they cover."""
    found = evaluate(pair[0], corpus=str(corpus_file), blocks=3)["quality"]["perplexity"]
    tokenizer = load_tokenizer(pair[0])
    text = corpus_file.read_text()
    covered = tokenizer.decode(encode_text(tokenizer, text)[: 3 * 64])
    assert text.startswith(covered)
    assert (found["words"], found["bytes"]) == (len(covered.split()), len(covered.encode()))
    assert found["stride"] is None


def test_results_with_and_without_a_stride_stand_beside_each_other(pair, corpus_file, tmp_path):
    """Two files, and two rows in the report."""
    from toolchain.report.join import rows
    from toolchain.report.lineage import students
    from toolchain.report.load import load

    for stride in (None, 64):
        evaluate(pair[0], corpus=str(corpus_file), blocks=2, stride=stride, out=tmp_path)
    results, _ = load(tmp_path)
    assert len(results) == 2
    made = rows(results, students(results))
    assert {row["stride"] for row in made} == {None, 64}
    assert all(row["word_perplexity"] and row["bits_per_byte"] for row in made)


def test_artifact_and_checkpoint_are_measured_alike(pair, corpus_file):
    """The same tokens in the same windows; fp32 within a thousandth."""
    made = [evaluate(path, corpus=str(corpus_file), blocks=6)["quality"]["perplexity"] for path in pair]
    values = [found.pop("value") for found in made]
    for name in ("word_perplexity", "bits_per_byte"):
        first, second = (found.pop(name) for found in made)
        assert first == pytest.approx(second, rel=1e-2)
    assert made[0] == made[1]
    assert made[0]["window"] == 64  # the model's positions, as they are fewer than 512
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_a_tasks_metrics_are_measured_alike(classifiers, task, main):
    """Checkpoint and artifact give the same figures on all dev rows, the task's own first, on logits that agree."""
    from sklearn.metrics import f1_score

    from toolchain.subject import open_subject

    made = [evaluate(path, task=str(task.path))["quality"] for path in classifiers]
    assert made[0] == made[1]
    assert made[0]["perplexity"] is None
    found = made[0]["task"]
    assert {**found, "value": None, "metrics": None} == {
        "name": "tone",
        "metric": "accuracy",
        "value": None,
        "metrics": None,
        "rows": 20,
    }
    assert list(found["metrics"]) == ["accuracy", "f1"] and found["metrics"]["accuracy"] == found["value"]
    logits = [open_subject(path).classify(task.rows("dev")) for path in classifiers]
    np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-3)
    slow = f1_score([row.label for row in task.rows("dev")], logits[0].argmax(-1), zero_division=0)
    assert found["metrics"]["f1"] == pytest.approx(slow)
    done = main("evaluate", classifiers[0], "--task", task.path)
    assert f"accuracy {found['value']:.3f}, f1 {slow:.3f} on 20 dev rows of tone" in done.out


def test_the_result_says_what_was_measured(pair, corpus_file, tmp_path):
    """Both kinds of subject carry the same keys, and the lineage that joins them."""
    from export.checkpoint import identity

    checkpoint, artifact = pair
    results = [evaluate(path, corpus=str(corpus_file), blocks=2, out=tmp_path / "results") for path in pair]
    first, second = (result["subject"] for result in results)
    assert set(first) == set(second)
    assert (first["type"], second["type"]) == ("checkpoint", "artifact")
    assert first["sha256"] == second["lineage"]["checkpoint"]["sha256"] == identity(checkpoint)
    assert first["parameters"] == second["parameters"]
    assert first["layers"] == second["layers"] == 2
    files = sorted((tmp_path / "results").iterdir())
    assert sorted(json.loads(file.read_text())["subject"]["type"] for file in files) == [
        "artifact",
        "checkpoint",
    ]
    assert [file.name for file in files if file.name.startswith(artifact.name)]
    evaluate(checkpoint, corpus=str(corpus_file), blocks=2, out=tmp_path / "results")
    assert sorted((tmp_path / "results").iterdir()) == files


def test_the_report_reads_the_results(pair, classifiers, corpus_file, task, tmp_path):
    """What evaluate writes is what `toolchain report` takes."""
    from toolchain.report.load import load

    evaluate(pair[0], corpus=str(corpus_file), blocks=2, out=tmp_path)
    evaluate(classifiers[1], task=str(task.path), out=tmp_path)
    results, _ = load(tmp_path)
    assert len(results) == 2


def test_a_byte_order_mark_is_no_text(pair, corpus_file, tmp_path):
    """The same text with a mark in front gives the same figure."""
    marked = tmp_path / "marked.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + corpus_file.read_bytes())
    values = [evaluate(pair[0], corpus=str(file), blocks=2)["quality"] for file in (corpus_file, marked)]
    assert values[0]["perplexity"]["value"] == values[1]["perplexity"]["value"]


def corpus(folder, data):
    """A text file of these bytes."""
    file = folder / "text.txt"
    file.write_bytes(data)
    return {"corpus": str(file)}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (lambda folder: {"corpus": str(folder / "none.txt")}, "no such text file"),
        (lambda folder: corpus(folder, b""), "holds no text"),
        (lambda folder: corpus(folder, b" \n\n"), "holds no text"),
        (lambda folder: corpus(folder, b"fine \xff\xfe"), "not UTF-8 at byte 5"),
        (lambda folder: corpus(folder, b"a few words"), "less than one window of 64"),
        (lambda folder: {**corpus(folder, b"words " * 99), "window": 65}, "has 64 positions"),
        (lambda folder: {**corpus(folder, b"words " * 99), "stride": 65}, "--stride 65"),
        (lambda folder: {**corpus(folder, b"words " * 99), "window": 8, "stride": 9}, "choose 1 to 8"),
        (lambda folder: {"task": "tone"}, "is a decoder"),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_what_cannot_be_measured_is_one_line(pair, tmp_path, settings, words, which):
    """Bad texts, windows and tasks are UserErrors for checkpoint and artifact alike; nothing is written."""
    with pytest.raises(UserError, match=words) as caught:
        evaluate(pair[which], out=tmp_path / "results", **settings(tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("which", [0, 1])
def test_a_classifier_is_asked_only_its_task(classifiers, task, tmp_path, which):
    """A corpus, an unknown task and other labels are refused."""
    with pytest.raises(UserError, match="perplexity is for decoders"):
        evaluate(classifiers[which], corpus="stdlib")
    with pytest.raises(UserError, match="leave --stride out"):
        evaluate(classifiers[which], stride=8)
    with pytest.raises(UserError, match="unknown task 'tone'"):
        evaluate(classifiers[which])
    other = tmp_path / "other"
    other.mkdir()
    (other / "task.toml").write_text(TASK.replace('"no", "yes"', '"yes", "no"'))
    with pytest.raises(UserError, match="was made for task tone with labels"):
        evaluate(classifiers[which], task=str(other))


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_what_is_no_model_is_one_line(tmp_path, name):
    """A folder that is not there or holds neither kind of model."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a checkpoint"):
        evaluate(tmp_path / name)


@pytest.mark.parametrize("place", ["file", "file/results"])
def test_a_place_that_cannot_be_written_is_known_before_measuring(pair, corpus_file, tmp_path, place):
    """--out is looked at first: no window is computed for a result that has no place."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        evaluate(pair[0], corpus=str(tmp_path / "none.txt"), out=tmp_path / place)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "not finite"), (12.345, "12.35"), (3.0123e7, "30,000,000"), (433210.0, "430,000")],
)
def test_perplexities_are_written_short(value, text):
    """Two decimals; beyond 100,000 two digits, and no powers of ten."""
    assert figure(value) == text


def test_the_command_prints_a_line_or_json(pair, corpus_file, main):
    """One plain line, or the result as JSON."""
    done = main("evaluate", pair[1], "--corpus", corpus_file, "--blocks", 2)
    assert done.code == 0, done.err
    assert done.out.startswith("llama-fp32: perplexity ")
    assert done.out.endswith(f"on {corpus_file.name} (126 tokens in 2 windows of 64)\n")
    assert " a word, " in done.out and " bits a byte " in done.out
    done = main("evaluate", pair[1], "--corpus", corpus_file, "--blocks", 2, "--stride", 32)
    assert done.out.endswith("(95 tokens in 2 windows of 64, 32 apart)\n"), done.err
    done = main("evaluate", pair[1], "--corpus", corpus_file, "--blocks", 2, "--json")
    assert json.loads(done.out)["quality"]["perplexity"]["blocks"] == 2


@pytest.mark.parametrize("args", [["--window", 1], ["--blocks", 0], ["--window", "many"], ["--stride", 0]])
def test_sizes_are_checked(pair, main, args):
    """Sizes that make no sense are refused before anything is loaded."""
    done = main("evaluate", pair[0], *args)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1


def test_a_judge_scores_as_evaluate_does(classifiers, task):
    """Both sides of the gate on a labelled task are what `evaluate` says of checkpoint and artifact."""
    checkpoint, artifact = classifiers
    found = judge(checkpoint, str(task.path), None)(open_artifact(artifact))
    for side, subject in (("pytorch", checkpoint), ("artifact", artifact)):
        assert found[side] == evaluate(subject, task=str(task.path))["quality"]["task"]["value"]
    assert (found["name"], found["metric"], found["rows"]) == ("tone", "accuracy", 20)
    assert found["agreement"] == 1.0


def test_an_export_is_held_to_its_task(classifiers, task, tmp_path, main):
    """`export --task`, or --data alone with the model's own task, puts both metrics into the manifest."""
    checkpoint, _ = classifiers
    for out, options in (("a", ["--task", task.path]), ("b", ["--data", task.path.parent])):
        done = main("export", checkpoint, "--out", tmp_path / out, *options, "--json")
        assert done.code == 0, done.err
        quality = json.loads(done.out)["quality"]
        assert quality["task"]["name"] == "tone" and quality["gates"]["metric_drop"] == 1.0
        assert abs(quality["task"]["artifact"] - quality["task"]["pytorch"]) <= 0.01
    done = main("export", checkpoint, "--out", tmp_path / "c", "--quality-text", task.path / "dev.tsv")
    assert done.code == 2 and "--quality-text is for a decoder" in done.err


def test_demo_names_the_shipped_teacher(main, tmp_path, monkeypatch):
    """`demo` works where a model is named, unless something here is called so."""
    monkeypatch.chdir(tmp_path)
    options = ("--corpus", "stdlib", "--window", "32", "--blocks", "1", "--out", tmp_path / "out")
    done = main("evaluate", "demo", *options)
    assert done.code == 0 and "teacher" in done.out, done.err
    (tmp_path / "demo").mkdir()
    done = main("evaluate", "demo", *options)
    assert done.code == 2 and done.err.startswith("toolchain: demo")
