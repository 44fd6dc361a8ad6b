import random

import pytest

from devices.errors import UserError
from toolchain.corpus import stdlib
from toolchain.glue import docs_tasks
from toolchain.glue.docs_tasks import make_tasks, opening, places, swap
from toolchain.glue.tasks import load_task, sample


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Both tasks, made once."""
    out = tmp_path_factory.mktemp("docs") / "tasks"
    return {folder.name: load_task(folder) for folder in make_tasks(out, train_rows=400, dev_rows=1000)}


def test_both_are_made_and_balanced(tasks):
    """Half of each split is one label; train has the rows asked for, dev enough to mean something."""
    assert set(tasks) == {"docs-kind", "docs-order"}
    for task in tasks.values():
        for split, least in (("train", 400), ("dev", 200)):
            labels = [row.label for row in task.rows(split)]
            assert len(labels) >= least
            assert sum(labels) * 2 == len(labels)


def test_no_text_stands_twice_or_in_both_splits(tasks):
    """A row's text is in one split, once, under one label."""
    for task in tasks.values():
        texts = [row.text_a for split in ("train", "dev") for row in task.rows(split)]
        assert len(texts) == len(set(texts))


def test_dev_rows_come_only_from_heldout_modules(tasks):
    """What the corpus trains on is never asked in dev, and the label is what the syntax tree says."""
    kinds = {}
    for doc in stdlib.documents():
        kinds.setdefault(opening(stdlib.sentences(doc.text)), set()).add(
            (doc.kind, stdlib.is_heldout(doc.module))
        )
    task = tasks["docs-kind"]
    for split, heldout in (("train", False), ("dev", True)):
        for row in task.rows(split):
            found = {pair for pair in kinds[row.text_a] if pair[0] in ("class", "function")}
            assert found == {(task.labels[row.label], heldout)}


def test_kept_sentences_stand_in_the_documentation_and_swapped_ones_do_not(tasks):
    """`kept` is literal text of held-out modules; `swapped` is one exchange of neighbours away from it."""
    heldout = {
        sentence
        for doc in stdlib.documents()
        if stdlib.is_heldout(doc.module)
        for sentence in stdlib.sentences(doc.text)
    }
    bags = {tuple(sorted(sentence.split())) for sentence in heldout}
    for row in tasks["docs-order"].rows("dev"):
        assert 6 <= len(row.text_a.split()) <= 25
        assert tuple(sorted(row.text_a.split())) in bags
        if row.label == 0:
            assert row.text_a in heldout


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    """Made twice, the files are equal to the byte; another seed draws other rows."""

    def made(name, seed):
        folders = make_tasks(tmp_path / name, train_rows=20, dev_rows=10, seed=seed)
        return [file.read_bytes() for folder in folders for file in sorted(folder.iterdir())]

    assert made("one", 0) == made("two", 0) != made("three", 1)


def test_the_tasks_can_be_named_without_data(tmp_path, monkeypatch, tasks):
    """`docs-kind` is made on first use in the user's cache, and found there the second time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = load_task("docs-kind")
    assert tmp_path in first.path.parents
    monkeypatch.setattr(docs_tasks, "make_tasks", None)
    assert load_task("docs-order").path.parent == first.path.parent


def test_dev_rows_do_not_depend_on_train_rows(tmp_path, tasks):
    """Models tuned on fewer rows are still asked the same questions."""
    for folder in make_tasks(tmp_path / "fewer", train_rows=20, dev_rows=1000):
        assert load_task(folder).rows("dev") == tasks[folder.name].rows("dev")


@pytest.mark.parametrize("rows", [0, 1, -5])
def test_too_few_rows_are_refused(tmp_path, rows):
    """A task needs a row of each label."""
    with pytest.raises(UserError, match="at least 2"):
        make_tasks(tmp_path / "out", train_rows=rows, dev_rows=10)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused_without_force(tmp_path):
    """Nothing is overwritten unasked."""
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="already exists"):
        make_tasks(tmp_path / "out", train_rows=4, dev_rows=4)


def test_opening_takes_whole_sentences_within_the_bound():
    """Sentences while they fit into 40 words; a longer first one is cut; under three words is nothing."""
    assert opening(["One two three.", "Four."]) == "One two three. Four."
    assert opening(["a b c", " ".join(["x"] * 38)]) == "a b c"
    assert opening([" ".join(["x"] * 60)]).split() == ["x"] * 40
    assert opening(["Too short"]) == opening([]) == ""


def test_a_swap_exchanges_two_different_plain_neighbours_inside():
    """First and last word stay, as do words with marks; equal neighbours are no swap."""
    words = ["Return", "the", "the", "file,", "if", "it", "is", "open."]
    assert places(words) == [4, 5]
    swapped = {swap(" ".join(words), random.Random(seed)) for seed in range(20)}
    assert swapped == {"Return the the file, it if is open.", "Return the the file, if is it open."}


@pytest.mark.parametrize(
    "text", ["too few words here", ">>> f(1) == g(2) and x[0] is y[1]", " ".join(["word"] * 26)]
)
def test_what_is_no_sentence_has_no_place_to_swap(text):
    """Short, long and code-like lines are left out."""
    assert places(text.split()) == []


def test_rows_of_a_made_task_can_be_sampled(tasks):
    """The training rows asked for with --rows are a seeded draw."""
    rows = tasks["docs-order"].rows("train")
    assert len(sample(rows, 50, seed=0)) == 50
