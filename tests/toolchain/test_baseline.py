import pytest

from toolchain.glue.baseline import baseline
from toolchain.glue.tasks import load_task

TOML = """\
name = "order"
metric = "{metric}"
problem = "{problem}"
{labels}
[columns]
text_a = "a"
text_b = "b"
label = "y"
"""


def make(folder, rows, metric="accuracy", problem="classification", labels='labels = ["0", "1"]'):
    """A task of pairs, the same rows in train and dev."""
    (folder / "task.toml").write_text(TOML.format(metric=metric, problem=problem, labels=labels))
    text = "a\tb\ty\n" + "".join(f"{a}\t{b}\t{y}\n" for a, b, y in rows)
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text(text)
    return load_task(folder)


def test_ngrams_see_word_order(tmp_path):
    """A label that only the order of words gives away is learnt, which single words could not."""
    rows = [("x y", "pad", 1), ("y x", "pad", 0)] * 20
    assert baseline(make(tmp_path, rows))["value"] == 1.0


def test_a_task_without_signal_is_worth_the_majority(tmp_path):
    """Where text says nothing, the baseline is the larger class's share."""
    found = baseline(make(tmp_path, [("same", "text", y) for y in (1, 1, 1, 0)] * 10))
    assert found == {"name": "n-grams", "metric": "accuracy", "value": 0.75, "rows": 40}


def test_a_regression_has_a_baseline(tmp_path):
    """Scores are regressed on the same counts."""
    rows = [("good", "film", 4.0), ("bad", "film", 1.0), ("fair", "film", 2.5)] * 5
    task = make(tmp_path, rows, "pearson_spearman", "regression", "range = [0, 5]")
    assert baseline(task)["value"] > 0.99


@pytest.mark.parametrize("rows", [None, 10])
def test_it_is_deterministic(tmp_path, rows):
    """The same rows and seed give the same figure."""
    task = make(tmp_path, [(f"w{i} w{i % 3}", "z", i % 2) for i in range(40)])
    assert baseline(task, rows=rows, seed=3) == baseline(task, rows=rows, seed=3)
