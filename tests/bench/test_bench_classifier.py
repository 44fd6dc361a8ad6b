"""A classifier is benchmarked on its own workload, and its metric comes from its task's dev rows."""

import json

import pytest

from bench.run import bench
from bench.settings import TaskRows
from devices.errors import UserError
from export.build import export
from toolchain.evaluate import evaluate
from toolchain.glue.finetune import finetune
from toolchain.glue.tasks import load_task

TASK = """\
name = "tone"
metric = "accuracy"
labels = ["no", "yes"]

[columns]
text_a = "text"
text_b = "other"
label = "label"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a task of 24 pairs."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "tone").mkdir()
    (folder / "tone" / "task.toml").write_text(TASK)
    rows = [
        f"the fox {'does' if i % 2 else 'jumps'}\tover {'a lazy ' * (i % 4)}dog\t{('no', 'yes')[i % 2]}"
        for i in range(24)
    ]
    for split in ("train", "dev"):
        (folder / "tone" / f"{split}.tsv").write_text("\n".join(["text\tother\tlabel", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def classifier(make_checkpoint, data, tmp_path_factory):
    """An int8 artifact of a classifier tuned on that task."""
    folder = tmp_path_factory.mktemp("classifier")
    finetune(make_checkpoint("gpt2", n_layer=2), load_task("tone", data), folder / "tuned", epochs=1, lr=1e-3)
    export(folder / "tuned", folder / "tone-int8", "int8", parity=False)
    return folder / "tone-int8"


def test_speed_and_metric_of_a_classifier(classifier, data, cli, tmp_path):
    """Time per sentence and the task's metric, the one that evaluate gives; nothing about tokens."""
    out = tmp_path / "out"
    done = cli("bench", classifier, "--task", "tone", "--data", data, "--rounds", 2, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "tone-int8--local--classify.json").read_text())
    assert json.loads(done.stdout) == [result]
    assert len(result["sentence_s"]["samples"]) == 2 * result["workload"]["passes"]
    assert result["first_token_s"] is None and result["token_s"] is None
    evaluated = evaluate(classifier, task="tone", data=data)["quality"]["task"]
    assert result["quality"] == {"perplexity": None, "task": evaluated}


def test_without_a_task_sentences_are_made_up(classifier, tmp_path):
    """Speed alone needs no data."""
    (result,) = bench([classifier], tmp_path / "out", rounds=1, progress=False)
    assert result["workload"]["name"] == "classify" and result["sentence_s"]["median"] > 0
    assert result["quality"] == {"perplexity": None, "task": None}


def test_a_workload_for_decoders_is_never_swapped_in_silence(classifier, artifacts, tmp_path):
    """Named for classifiers alone it is refused; beside a decoder, a line says what they run in its place."""
    with pytest.raises(UserError, match="--workload chat: is for decoders"):
        bench([classifier], tmp_path / "out", rounds=1, workload="chat", progress=False)
    said = []
    bench(
        [classifier, artifacts[0]],
        tmp_path / "out",
        rounds=1,
        threads=1,
        workload="chat",
        say=said.append,
        progress=False,
    )
    assert [line for line in said if line.endswith(" is a classifier: classify in place of chat")]


@pytest.mark.parametrize(
    "wrong", [{"task": TaskRows("other", "accuracy", [("a", None)], len)}, {"corpus": "text"}]
)
def test_what_a_classifier_cannot_be_asked_is_one_line(classifier, tmp_path, corpus_file, wrong):
    """Another task's rows and a text to predict are refused before anything is measured."""
    if "corpus" in wrong:
        wrong = {"corpus": corpus_file}
    with pytest.raises(UserError, match=r"--task|--corpus"):
        bench([classifier], tmp_path / "out", rounds=1, progress=False, **wrong)
    assert not (tmp_path / "out").exists()
