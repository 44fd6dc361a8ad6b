import os
from pathlib import Path

import pytest

from devices.errors import UserError
from toolchain.glue.tasks import BUILT_IN, Row, load_task, names, parse_task, sample

DATA = Path(os.environ.get("TOOLCHAIN_DATA", "../shared/data")) / "glue"
TOML = """\
name = "tone"
metric = "accuracy"
labels = ["no", "yes"]

[columns]
text_a = "text"
label = "label"
"""


@pytest.fixture
def folder(tmp_path):
    """A good task folder to spoil."""
    folder = tmp_path / "tone"
    folder.mkdir()
    (folder / "task.toml").write_text(TOML)
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("text\tlabel\nfine\tyes\npoor\tno\n")
    return folder


def test_rows_come_with_class_indices_in_the_order_of_labels(folder):
    """A label is its place in `labels`."""
    assert load_task(folder).rows("dev") == [Row("fine", None, 1), Row("poor", None, 0)]


@pytest.mark.parametrize(
    "text", ['"', 'say "it', "it's", "\\t", "a  b ", "\u2028", "\x0b", "\x85", "é", "日", "\r!"]
)
def test_text_is_read_literally(folder, text):
    """Quotes, odd line breaks, spaces and backslashes are text; no row is lost to them."""
    data = f"text\tlabel\n{text}\tyes\nx\tno\n"
    (folder / "dev.tsv").write_bytes(data.encode())
    assert load_task(folder).rows("dev") == [Row(text, None, 1), Row("x", None, 0)]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbftext\tlabel\nfine\tyes\n",
        b"text\tlabel\r\nfine\tyes\r\n",
        b"text\tlabel\nfine\tyes",
        b"label\ttext\textra\nyes\tfine\t7\n",
    ],
)
def test_forms_of_the_same_file(folder, data):
    """A byte-order mark, Windows line ends, no last newline and another order of columns are the same."""
    (folder / "dev.tsv").write_bytes(data)
    assert load_task(folder).rows("dev") == [Row("fine", None, 1)]


def test_no_header_means_positions(folder):
    """Without a header the first line is a row."""
    (folder / "task.toml").write_text(
        TOML.replace('"text"', "1")
        .replace('label = "label"', "label = 0")
        .replace("[columns]", "header = false\n[columns]")
    )
    (folder / "dev.tsv").write_text("yes\tfine\nno\tpoor\n")
    assert load_task(folder).rows("dev") == [Row("fine", None, 1), Row("poor", None, 0)]


def test_a_test_split_needs_no_labels(folder):
    """What is to be submitted has texts only."""
    (folder / "test.tsv").write_text("index\ttext\n0\tfine\n")
    assert load_task(folder).rows("test") == [Row("fine", None, None)]


def test_a_regression_has_scores(folder):
    """Scores are floats within the range."""
    (folder / "task.toml").write_text(
        TOML.replace('labels = ["no", "yes"]', 'problem = "regression"\nrange = [0, 5]').replace(
            "accuracy", "pearson_spearman"
        )
    )
    (folder / "dev.tsv").write_text("text\tlabel\nfine\t4.75\npoor\t0\n")
    assert [row.label for row in load_task(folder).rows("dev")] == [4.75, 0.0]
    (folder / "dev.tsv").write_text("text\tlabel\nfine\t5.01\n")
    with pytest.raises(UserError, match=r"dev.tsv line 2: score 5.01 is outside 0 to 5"):
        load_task(folder).rows("dev")
    (folder / "dev.tsv").write_text("text\tlabel\nfine\tnan\n")
    with pytest.raises(UserError, match="line 2"):
        load_task(folder).rows("dev")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "dev.tsv: holds no rows"),
        (b"text\tlabel\n", "dev.tsv: holds no rows"),
        (b"sentence\tlabel\nfine\tyes\n", "line 1: no column 'text'; the header has sentence, label"),
        (b"text\ttext\tlabel\na\tb\tyes\n", "line 1: twice a column 'text'"),
        (b"text\tlabel\nfine\tyes\npoor\n", "line 3: 1 columns where 2 are expected"),
        (b"text\tlabel\nfine\tyes\tmore\n", "line 2: 3 columns where 2 are expected"),
        (b"text\tlabel\nfine\tyes\n\npoor\tno\n", "line 3: 1 columns"),
        (b"text\tlabel\nfine\tmaybe\n", "line 2: label 'maybe' is none of no, yes"),
        (b"text\tlabel\nfine\tYES\n", "line 2: label 'YES'"),
        (b"text\tlabel\nfine\t\n", "line 2: label ''"),
        (b"text\tlabel\nfine\tyes\n\xff\xfe\tno\n", "line 3: not UTF-8"),
        ("text\tlabel\nfine\tyes\n".encode("utf-16"), "line 1: not UTF-8"),
        ("text\tlabel\nfein\tyes\nschön\tno\n".encode("latin-1"), "line 3: not UTF-8"),
    ],
)
def test_bad_data_names_file_and_line(folder, data, words):
    """Whatever is wrong with a data file, one line says where."""
    (folder / "dev.tsv").write_bytes(data)
    with pytest.raises(UserError, match=r"dev\.tsv") as caught:
        load_task(folder).rows("dev")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(folder):
    """A task without its dev set says which file is missing."""
    (folder / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"dev\.tsv: no such file"):
        load_task(folder).rows("dev")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("metric", "metrc", "unknown key 'metrc': did you mean metric"),
        ("text_a", "text_1", "unknown column 'text_1': did you mean text_b or text_a"),
        ('"accuracy"', '"acc"', "unknown metric 'acc'"),
        ('"accuracy"', '"pearson_spearman"', "is for regression"),
        ('"accuracy"', "3", "'metric' is 3; it must be a text"),
        ('"tone"', '""', "'name' is ''"),
        ('"tone"', '"../up"', "would not do as a folder's"),
        ('name = "tone"', "", "no 'name'"),
        ('["no", "yes"]', '["no"]', "two or more different strings"),
        ('["no", "yes"]', '["no", "no"]', "two or more different strings"),
        ('["no", "yes"]', "[0, 1]", "two or more different strings"),
        ('labels = ["no", "yes"]', "", "no 'labels'"),
        ('label = "label"', "", "[columns] has no 'label'"),
        ('"text"', "0", "a name from the header"),
        ("[columns]", "header = 1\n[columns]", "'header' is 1; it must be true or false"),
        ("[columns]", "header = false\n[columns]", "a position from 0"),
        ("[columns]", '[files]\ndev = "../dev.tsv"\n[columns]', "a plain name"),
        ("[columns]", '[files]\nvalid = "dev.tsv"\n[columns]', "unknown split 'valid'"),
        ("[columns]", 'problem = "ranking"\n[columns]', "unknown problem 'ranking'"),
        ("[columns]", "[columns", "not valid TOML"),
    ],
)
def test_a_bad_description_names_file_and_key(folder, old, new, words):
    """Whatever is wrong with task.toml, one line says what, with near names for unknown ones."""
    file = folder / "task.toml"
    file.write_text(TOML.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load_task(folder)
    assert str(caught.value).startswith(f"{file}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_and_missing_data(tmp_path):
    """An unknown task is answered with the near ones; a built-in one says where its data should be."""
    with pytest.raises(UserError, match="unknown task 'sst': did you mean sst2"):
        load_task("sst", tmp_path)
    with pytest.raises(UserError, match="pass --data"):
        load_task("sst2")
    with pytest.raises(UserError, match="SST-2: no such folder"):
        load_task("sst2", tmp_path)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        load_task("sst2", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no task\.toml"):
        load_task(tmp_path)
    with pytest.raises(UserError, match="unknown split 'valid'"):
        load_task_in(tmp_path).rows("valid")


def load_task_in(tmp_path):
    """Any task."""
    (tmp_path / "task.toml").write_text(TOML)
    return load_task(tmp_path)


def test_a_folder_below_data_is_a_task_by_its_name(folder):
    """--data holds task folders; a task.toml there needs no entry of ours."""
    assert load_task("tone", folder.parent).path == folder


def test_every_built_in_description_is_valid():
    """What ships parses, and is called what its file is called."""
    for file in BUILT_IN.glob("*.toml"):
        assert parse_task(file, Path()).name == file.stem
    assert {"docs-kind", "docs-order", "sst2", "cola", "stsb", "wnli"} <= set(names())


def test_sample_is_seeded_and_keeps_the_order():
    """The same seed draws the same rows, in the file's order."""
    rows = [Row(str(i), None, 0) for i in range(100)]
    drawn = sample(rows, 10, seed=1)
    assert drawn == sample(rows, 10, seed=1) != sample(rows, 10, seed=2)
    assert drawn == sorted(drawn, key=lambda row: int(row.text_a))
    assert sample(rows, None, seed=1) == sample(rows, 1000, seed=1) == rows


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="shared data folder not there")
@pytest.mark.parametrize(
    ("name", "train", "dev"),
    [("sst2", 67349, 872), ("cola", 8551, 1043), ("stsb", 5749, 1500), ("wnli", 635, 71)],
)
def test_official_row_counts(name, train, dev):
    """GLUE's files are read without losing a row."""
    task = load_task(name, DATA)
    assert (len(task.rows("train")), len(task.rows("dev"))) == (train, dev)
    assert all(row.text_a for row in task.rows("dev"))
