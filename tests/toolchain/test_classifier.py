"""A decoder that classifies: which token is read, how rows are cut and batched, and what a regression learns."""

import random

import numpy as np
import pytest

from toolchain.glue import classifier
from toolchain.glue.finetune import encoded, finetune, new_classifier
from toolchain.glue.rows import Row
from toolchain.glue.tasks import load_task

WORDS = "the quick brown fox jumps over a lazy dog and does not mind it".split()  # noqa: SIM905 - a text


@pytest.fixture(scope="module")
def base(make_checkpoint):
    """A small decoder that has no padding token."""
    return make_checkpoint("gpt2", n_layer=2)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Pairs with scores, as STS-B, of very different lengths."""
    folder, rng = tmp_path_factory.mktemp("data") / "like", random.Random(0)
    folder.mkdir()
    (folder / "task.toml").write_text(
        'name = "like"\nproblem = "regression"\nmetric = "pearson"\nrange = [0, 5]\n'
        '[columns]\ntext_a = "a"\ntext_b = "b"\nlabel = "score"\n'
    )
    for split, count in (("train", 256), ("dev", 48)):
        rows = [
            f"{' '.join(rng.choices(WORDS, k=rng.choice([1, 2, 12])))}\t{rng.choice(WORDS)}\t{rng.uniform(0, 5):.3f}"
            for _ in range(count)
        ]
        (folder / f"{split}.tsv").write_text("\n".join(["a\tb\tscore", *rows]) + "\n")
    return load_task(folder)


@pytest.fixture(scope="module")
def model(base, task):
    """A classifier with a fresh head."""
    return new_classifier(base, task, 0).eval()


def test_of_a_pair_the_last_real_token_is_read(base, model):
    """Neither padding nor the separator between the texts, which is the same id, moves what is read."""
    import torch

    ids = classifier.encode(base, [Row("the fox", "a dog", 0), Row("a lazy dog and the fox", "it", 0)], 64)
    separator = classifier.separator(base)
    assert [row.count(separator) for row in ids] == [1, 1] and len(ids[0]) != len(ids[1])
    for row, logits in zip(ids, classifier.predict(model, ids), strict=True):
        with torch.inference_mode():
            hidden = model.base_model(torch.tensor([row])).last_hidden_state[0, -1]
            slow = (model.score.weight @ hidden).numpy()
        np.testing.assert_allclose(logits, slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_predictions_come_in_the_order_of_the_rows(base, model, task, batch):
    """Rows of like length run together, and each gets its own logits back."""
    ids = classifier.encode(base, task.rows("dev"), 64)
    alone = np.concatenate([classifier.predict(model, [row]) for row in ids])
    np.testing.assert_allclose(classifier.predict(model, ids, batch), alone, rtol=1e-4, atol=1e-4)


def share_of_padding(batches):
    """Positions that are padding, of all."""
    return 1 - sum(map(sum, batches)) / sum(len(batch) * max(batch) for batch in batches)


@pytest.fixture
def padded(monkeypatch):
    """The lengths of the rows of each batch, as they are padded."""
    batches, real = [], classifier.pad

    def counted(rows, pad_id):
        batches.append([len(row) for row in rows])
        return real(rows, pad_id)

    monkeypatch.setattr(classifier, "pad", counted)
    return batches


def test_evaluation_pads_little(base, model, task, padded):
    """Buckets of like length: in the order of the file, half of what is computed would be padding."""
    ids = classifier.encode(base, task.rows("dev"), 64)
    classifier.predict(model, ids, batch=8)
    lengths = [len(row) for row in ids]
    as_they_come = [lengths[i : i + 8] for i in range(0, len(lengths), 8)]
    assert share_of_padding(padded) < 0.2 < 0.4 < share_of_padding(as_they_come)


def test_training_pads_little(base, task, tmp_path, padded):
    """So does training, whose batches are drawn by length and in another order each epoch."""
    finetune(base, task, tmp_path / "out", epochs=2, batch=8)
    train = [batch for batch in padded if len(batch) == 8]
    assert len(train) == 2 * 256 // 8  # evaluation takes 16 at once
    assert share_of_padding(train) < 0.2
    assert max(map(max, padded)) < 64  # padded to the longest of a batch, not to all there is room for


@pytest.mark.parametrize(
    ("lengths", "kept"),
    [((3, 12), (3, 6)), ((12, 3), (6, 3)), ((12, 12), (5, 4)), ((4, 5), (4, 5)), ((9, 1), (8, 1))],
)
def test_the_longer_side_is_cut(base, lengths, kept):
    """To 10 tokens with the separator: the shorter side stays whole, of two long ones the second loses more."""
    a, b = ("%" * n for n in lengths)  # a mark that the tokenizer never joins: a token each
    [ids] = classifier.encode(base, [Row(a, b, 0)], 10)
    at = ids.index(classifier.separator(base))
    assert (at, len(ids) - at - 1) == kept


def test_a_regression_learns_the_scores_as_they_stand(base, task):
    """Targets are not scaled: what the model gives is a score, which a submission needs."""
    rows = task.rows("train")
    examples = encoded(base, task, rows, 64)
    assert sorted(example["labels"] for example in examples) == sorted(row.label for row in rows)
    assert max(row.label for row in rows) > 4
