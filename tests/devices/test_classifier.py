"""The classifier: rows of any length, in any company, in the order given."""

import json

import numpy as np
import pytest

from devices.artifact import seal
from devices.errors import UserError
from devices.runtime import Classifier

ROWS = [
    ("the cat", None),
    ("a class, a function", "on the mat"),
    ("", None),
    ("日本語も", None),
    ("a " * 99, "mat"),
]


@pytest.fixture(scope="module")
def classifier(classifier_folder):
    """One classifier for the file."""
    return Classifier(classifier_folder, threads=1)


@pytest.mark.parametrize("batch", [1, 2, 3, 32])
def test_a_rows_answer_does_not_depend_on_its_batch(classifier, batch):
    """Bucketing and padding change neither answers nor their order."""
    alone = np.concatenate([classifier.predict([row]) for row in ROWS])
    np.testing.assert_allclose(classifier.predict(ROWS, batch), alone, atol=1e-4)


def test_rows_never_exceed_the_positions(classifier):
    """A text longer than the model is cut to it."""
    assert max(map(len, classifier.encode(ROWS))) == classifier.artifact.model["positions"]


@pytest.mark.parametrize("where", ["task", "lineage"])
def test_rows_are_cut_as_in_training(classifier_folder, tmp_path, where):
    """Where the manifest says how many tokens training kept, the runtime keeps as many."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in classifier_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    (manifest["task"] if where == "task" else manifest["lineage"].setdefault("glue", {}))["max_tokens"] = 5
    seal(folder, {key: value for key, value in manifest.items() if key not in ("schema", "files")})
    assert max(map(len, Classifier(folder, threads=1).encode(ROWS))) == 5


@pytest.mark.parametrize("rows", [[], [[]], [[1], []]])
def test_no_rows_and_empty_rows_are_one_line(classifier, rows):
    """There must be something to read."""
    with pytest.raises(UserError, match="at least one token per row"):
        classifier.predict_ids(rows)


def test_a_decoder_is_no_classifier(decoder_folder):
    """An artifact of the other kind is refused by its kind."""
    with pytest.raises(UserError, match="is a decoder"):
        Classifier(decoder_folder)
