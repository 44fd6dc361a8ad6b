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


PAIR = "sentence1\tsentence2"
PARSES = "index\tpromptID\tpairID\tgenre\ts1_binary\ts2_binary\ts1_parse\ts2_parse"
# The head of each official file: header (none in CoLA), a row, and what it should be read as.
OFFICIAL = {
    "cola": ("CoLA", "dev.tsv", "", 'gj04\t0\t*\tIt "is.', Row('It "is.', None, 0)),
    "sst2": ("SST-2", "dev.tsv", "sentence\tlabel", "a fine film \t1", Row("a fine film ", None, 1)),
    "mrpc": (
        "MRPC",
        "dev.tsv",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t70\t71\tHe said " so .\tSo he said .',
        Row('He said " so .', "So he said .", 1),
    ),
    "stsb": (
        "STS-B",
        "dev.tsv",
        f"index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\t{PAIR}\tscore",
        "0\tmain\tMSRvid\t2012\t1\tnone\tnone\tA man.\tA hat.\t4.750",
        Row("A man.", "A hat.", 4.75),
    ),
    "qqp": (
        "QQP",
        "dev.tsv",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "9\t1\t2\tWhy?\tHow?\t0",
        Row("Why?", "How?", 0),
    ),
    "mnli": (
        "MNLI",
        "dev_mismatched.tsv",
        f"{PARSES}\t{PAIR}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label",
        "0\t1\t1e\tslate\t( a )\t( b )\t(A)\t(B)\tOne.\tTwo.\tneutral\tentailment\tneutral\tneutral\tneutral\tneutral",
        Row("One.", "Two.", 1),
    ),
    "qnli": (
        "QNLI",
        "dev.tsv",
        "index\tquestion\tsentence\tlabel",
        "0\tWho?\tHe.\tnot_entailment",
        Row("Who?", "He.", 1),
    ),
    "rte": ("RTE", "dev.tsv", f"index\t{PAIR}\tlabel", "0\tA.\tB.\tentailment", Row("A.", "B.", 0)),
    "wnli": ("WNLI", "dev.tsv", f"index\t{PAIR}\tlabel", "0\tA.\tB.\t1", Row("A.", "B.", 1)),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_layout_of_each_task(tmp_path, name):
    """Headers, their absence, a byte-order mark, many columns and literal quotes, as GLUE's files have them."""
    folder, file, header, row, wanted = OFFICIAL[name]
    (tmp_path / folder).mkdir()
    (tmp_path / folder / file).write_text("\n".join([*[header] * bool(header), row, row]) + "\n", "utf-8")
    task = load_task(name, tmp_path)
    split = next(split for split, known in task.files.items() if known == file)
    assert task.rows(split) == [wanted, wanted]
    assert "2 rows, the official file has" in task.deviation(split, 2)


@pytest.mark.parametrize(
    ("name", "folder", "file", "data", "wanted"),
    [
        ("cola", "CoLA", "test.tsv", "index\tsentence\n0\tHi.\n", Row("Hi.", None, None)),
        ("sst2", "SST-2", "test.tsv", "index\tsentence\n0\tHi.\n", Row("Hi.", None, None)),
        (
            "mrpc",
            "MRPC",
            "test.tsv",
            "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tA\tB\n",
            Row("A", "B", None),
        ),
        ("qqp", "QQP", "test.tsv", "id\tquestion1\tquestion2\n0\tA\tB\n", Row("A", "B", None)),
        (
            "mnli",
            "MNLI",
            "test_mismatched.tsv",
            f"{PARSES}\t{PAIR}\n0\t1\t2\t3\t4\t5\t6\t7\tA\tB\n",
            Row("A", "B", None),
        ),
        ("mnli", "diagnostic", "diagnostic.tsv", f"index\t{PAIR}\n0\tA\tB\n", Row("A", "B", None)),
        ("rte", "RTE", "test.tsv", f"index\t{PAIR}\n0\tA\tB\n", Row("A", "B", None)),
    ],
)
def test_official_test_files_have_other_columns(tmp_path, name, folder, file, data, wanted):
    """An index and the texts; CoLA's has a header where its train file has none."""
    for each in {folder, {"mnli": "MNLI"}.get(name, folder)}:
        (tmp_path / each).mkdir()
    (tmp_path / folder / file).write_text(data)
    task = load_task(name, tmp_path)
    split = next(split for split, known in task.files.items() if known == file)
    assert task.rows(split) == [wanted]


def test_a_question_cut_by_a_newline_is_one_row_again(tmp_path):
    """QQP's files hold such: parts that make a row are joined, and what makes none is left out, not misread."""
    (tmp_path / "QQP").mkdir()
    lines = [
        OFFICIAL["qqp"][2],
        "1\t1\t2\tWhy?\tHow?\t0",
        '2\t1\t2\t"Was he',
        'real?"\tWas he?\t1',
        "3\t5\tlost",
        "4\t1\t2\tWho?\tWhen?\t1",
        "5\t1\t2\tNo\tlabel\t",
        "6\t7",
    ]
    (tmp_path / "QQP" / "train.tsv").write_text("\n".join(lines) + "\n")
    rows = load_task("qqp", tmp_path).rows("train")
    assert rows == [Row("Why?", "How?", 0), Row('"Was he real?"', "Was he?", 1), Row("Who?", "When?", 1)]


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
        ("[columns]", 'also = ["f2"]\n[columns]', "unknown metric 'f2': did you mean f1"),
        ("[columns]", 'also = ["pearson"]\n[columns]', "metric 'pearson' is for regression"),
        ("[columns]", "also = [1]\n[columns]", "unknown metric '1'"),
        ("[columns]", "joined = 1\n[columns]", "'joined' is 1; it must be true or false"),
        ("[columns]", "[test]\nlabel = 1\n[columns]", "unknown key of [test] 'label'"),
        ("[columns]", "[test]\nheader = false\n[columns]", "column 'text_a' is 'text'"),
        ("[columns]", "[rows]\ndev = 0\n[columns]", "rows of dev is 0; it must be a count"),
        ("[columns]", "[rows]\nvalid = 5\n[columns]", "unknown split 'valid'"),
        ("[columns]", '[submission]\ntest = "../up.tsv"\n[columns]', "must be a plain name"),
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


def test_unknown_names_and_missing_data(tmp_path, monkeypatch):
    """An unknown task is answered with the near ones; a built-in one says where its data should be."""
    with pytest.raises(UserError, match="unknown task 'sst': did you mean sst2"):
        load_task("sst", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
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
    nine = {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}
    assert {"docs-kind", "docs-order"} | nine == set(names())


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
    assert task.deviation("train", train) is task.deviation("dev", dev) is None


HUB_README = """\
---
configs:
- config_name: {name}
  data_files:
{files}
---
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`hub(name, {split: columns})`: a folder in the hub's layout in place of the hub's GLUE, caches of its own."""
    import datasets

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("toolchain.glue.hub.HUB", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")

    def make(name, splits):
        lines = []
        for split, columns in splits.items():
            file = tmp_path / "hub" / name / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(columns).to_parquet(file)
            lines.append(f"  - split: {split}\n    path: {name}/{split}-*")
        (tmp_path / "hub" / "README.md").write_text(HUB_README.format(name=name, files="\n".join(lines)))

    return make


def test_the_hub_gives_what_the_official_files_do(hub):
    """Its rows, written once as official files: labels as there, a tab or newline in a text no end of it."""
    columns = {"question": ["Who?", "a\tb"], "sentence": ["He.", "c\nd"], "idx": [0, 1]}
    labelled = {**columns, "label": [1, 0]}
    hub("qnli", {"train": labelled, "validation": labelled, "test": {**columns, "label": [-1, -1]}})
    task = load_task("qnli")
    assert task.rows("dev") == [Row("Who?", "He.", 1), Row("a b", "c d", 0)]
    assert task.rows("test") == [Row("Who?", "He.", None), Row("a b", "c d", None)]
    assert (task.path / "dev.tsv").read_text().startswith("question\tsentence\tlabel\nWho?\tHe.\tnot_entail")


def test_the_hub_is_asked_once(hub, monkeypatch):
    """What was fetched is read from the cache; CoLA has no header there either, and four columns."""
    columns = {"sentence": ["Hi.", "Hu hi."], "idx": [0, 1]}
    hub("cola", {split: {**columns, "label": [1, 0]} for split in ("train", "validation", "test")})
    first = load_task("cola")
    monkeypatch.setattr("datasets.load_dataset", None)
    assert (
        load_task("cola").rows("dev") == first.rows("train") == [Row("Hi.", None, 1), Row("Hu hi.", None, 0)]
    )
    assert first.rows("test")[1] == Row("Hu hi.", None, None)


def test_a_regression_and_further_sets_come_from_the_hub(tmp_path, monkeypatch):
    """Scores are written so that they are read again; MNLI's five sets are found by their names there."""
    asked = []

    def load(name, config, split):
        asked.append(f"{config} {split}")
        texts = {"sentence1": "A", "sentence2": "B", "premise": "A", "hypothesis": "B"}
        return [{**texts, "label": 2 if config == "mnli" else 4.199999809265137}]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("datasets.load_dataset", load)
    assert load_task("stsb").rows("dev") == [Row("A", "B", 4.2)]
    asked.clear()
    mnli = load_task("mnli")
    assert mnli.rows("dev_mismatched") == [Row("A", "B", 2)] and mnli.rows("test_ax") == [Row("A", "B", None)]
    sets = [f"mnli {kind}_{side}matched" for kind in ("validation", "test") for side in ("", "mis")]
    assert sorted(asked) == sorted(["mnli train", *sets, "ax test"])


def test_a_hub_out_of_reach_is_one_line(tmp_path, monkeypatch):
    """What failed, and what to do instead; nothing stays that looks like data."""

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'nyu-mll/glue'\non the Hub (offline)")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(
        UserError, match=r"Couldn't reach 'nyu-mll/glue' on the Hub.*; pass --data with"
    ) as caught:
        load_task("rte")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.tsv"))
