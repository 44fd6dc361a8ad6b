"""`toolchain glue` over tasks and seeds: its folders, its summary, exported files and submissions."""

import json
import random

import numpy as np
import pytest

from devices.errors import UserError
from toolchain.evaluate import evaluate
from toolchain.glue import run, scores, summary
from toolchain.glue.finetune import finetune
from toolchain.glue.run import glue
from toolchain.glue.submit import answer, submit
from toolchain.glue.tasks import load_task

WORDS = "the quick brown fox jumps over a lazy dog and does not mind it".split()  # noqa: SIM905 - a text
MNLI = ("entailment", "neutral", "contradiction")
QUICK = {"epochs": 1, "rows": 8, "lr": 1e-3}


def texts(rng):
    """A few words."""
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """MRPC, STS-B, WNLI and MNLI in GLUE's layout, a few rows each, MNLI with its diagnostic set."""
    root, rng = tmp_path_factory.mktemp("data"), random.Random(0)

    def write(folder, name, header, rows):
        (root / folder).mkdir(exist_ok=True)
        lines = [header, *("\t".join(map(str, row)) for row in rows)]
        (root / folder / name).write_text("\n".join(lines) + "\n", "utf-8")

    def pairs(count, labels=None):
        for i in range(count):
            yield [i, texts(rng), texts(rng), *([labels[i % len(labels)]] if labels else [])]

    for split, count in (("train", 16), ("dev", 12)):
        mrpc = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        write("MRPC", f"{split}.tsv", mrpc, ([r[3], 1, 2, *r[1:3]] for r in pairs(count, [0, 1, 1])))
        both = "index\tsentence1\tsentence2"
        write("STS-B", f"{split}.tsv", f"{both}\tscore", pairs(count, [0.0, 2.5, 5.0]))
        write("WNLI", f"{split}.tsv", f"{both}\tlabel", pairs(count, [0, 1]))
        sets = {"train": ["train"], "dev": ["dev_matched", "dev_mismatched"]}[split]
        for name in sets:
            write("MNLI", f"{name}.tsv", f"{both}\tgold_label", pairs(count, MNLI))
    for folder, name in (
        *(("STS-B", "test"), ("WNLI", "test")),
        *(("MNLI", "test_matched"), ("MNLI", "test_mismatched"), ("diagnostic", "diagnostic")),
    ):
        write(folder, f"{name}.tsv", both, pairs(5))
    return root


@pytest.fixture(scope="module")
def base(make_checkpoint):
    """A small decoder."""
    return make_checkpoint("gpt2", n_layer=1)


@pytest.fixture(scope="module")
def seeded(base, data, tmp_path_factory):
    """MRPC with three seeds and its exported files; the folder, and what was said."""
    out, said = tmp_path_factory.mktemp("seeded") / "out", []
    glue(base, ["mrpc"], out, data, seeds=(1, 2, 3), recipe="fp32", say=said.append, **QUICK)
    return out, said


def read(out):
    """The summary in `out`."""
    return json.loads((out / "glue.json").read_text())


def test_each_seed_has_its_folder_and_the_summary_their_spread(seeded, data):
    """OUT/TASK/seed-N are classifiers; mean and sample deviation are those of their own figures."""
    out, said = seeded
    records = [json.loads((out / f"mrpc/seed-{n}/glue.json").read_text()) for n in (1, 2, 3)]
    assert [record["seed"] for record in records] == [1, 2, 3]
    entry = read(out)["tasks"]["mrpc"]
    assert [run["folder"] for run in entry["runs"]] == [f"mrpc/seed-{n}" for n in (1, 2, 3)]
    first, second = entry["figures"]
    values = [record["value"] for record in records]
    assert (first["metric"], second["metric"], first["rows"]) == ("f1", "accuracy", 12)
    assert first["pytorch"]["values"] == pytest.approx(values)
    assert first["pytorch"]["mean"] == pytest.approx(np.mean(values))
    assert first["pytorch"]["spread"] == pytest.approx(np.std(values, ddof=1))
    assert any("2 of 3 seeds" in line for line in said) and said[0].startswith("mrpc: ")
    assert "8 rows, the official" not in said[0] and "16 rows, the official file has 3,668" in said[0]


def test_the_exported_file_is_what_is_measured(seeded, data):
    """Its figures are `toolchain evaluate`'s of the artifact, and stand beside the checkpoint's."""
    out, _ = seeded
    for one in read(out)["tasks"]["mrpc"]["runs"]:
        found = evaluate(out / one["artifact"]["folder"], data=data)
        assert found["subject"]["sha256"] == one["artifact"]["sha256"]
        assert found["quality"]["task"]["value"] == one["artifact"]["dev"]["dev"]["f1"]
        assert one["artifact"]["folder"] == f"{one['folder']}-fp32"


def test_the_exported_files_figures_come_from_the_device_code(base, data, tmp_path, monkeypatch):
    """What ONNX Runtime's classifier answers is what counts, not the checkpoint's predictions."""
    from devices.classifier import Classifier
    from export.gates import REPORT_ONLY

    real = Classifier.predict
    monkeypatch.setattr("export.verify.default_gates", lambda _: REPORT_ONLY)
    monkeypatch.setattr(Classifier, "predict", lambda self, rows: real(self, rows)[:, ::-1])
    glue(base, ["mrpc"], tmp_path / "out", data, recipe="fp32", **QUICK)
    figure = read(tmp_path / "out")["tasks"]["mrpc"]["figures"][
        1
    ]  # accuracy; no share of 12 rows of 0, 1, 1 is half
    assert figure["pytorch"]["mean"] != 0.5
    assert figure["artifact"]["mean"] == pytest.approx(1 - figure["pytorch"]["mean"])


def test_an_exported_file_without_figures_is_measured(base, data, tmp_path):
    """One that an interrupted call left behind is not made again."""
    out = tmp_path / "out"
    glue(base, ["mrpc"], out, data, recipe="fp32", **QUICK)
    before, made = read(out), (out / "mrpc-fp32" / "manifest.json").stat().st_mtime_ns
    (out / "glue.json").unlink()
    glue(base, ["mrpc"], out, data, recipe="fp32", **QUICK)
    assert read(out) == before
    assert (out / "mrpc-fp32" / "manifest.json").stat().st_mtime_ns == made


def never(*_, **__):
    """For what must not happen again."""
    raise AssertionError("this was done before")


def test_finished_seeds_and_files_are_used_again(seeded, base, data, monkeypatch):
    """The same call again trains, exports and measures nothing; its summary is the same."""
    out, _ = seeded
    before = read(out)
    monkeypatch.setattr(run, "finetune", never)
    monkeypatch.setattr(scores, "measure", never)
    monkeypatch.setattr(scores, "exported", never)
    glue(base, ["mrpc"], out, data, seeds=(1, 2, 3), recipe="fp32", **QUICK)
    assert read(out) == before


def test_an_interrupt_leaves_the_seeds_that_are_done(base, data, tmp_path, monkeypatch):
    """Early figures are in glue.json while later seeds run; the same call goes on behind them."""
    out, trained, stop = tmp_path / "out", [], [7]

    def counted(model, task, folder, **settings):
        if settings["seed"] in stop:
            raise KeyboardInterrupt
        trained.append(settings["seed"])
        return finetune(model, task, folder, **settings)

    monkeypatch.setattr(run, "finetune", counted)
    with pytest.raises(KeyboardInterrupt):
        glue(base, ["wnli"], out, data, seeds=(5, 7), **QUICK)
    entry = read(out)["tasks"]["wnli"]
    assert [one["seed"] for one in entry["runs"]] == [5] and entry["seeds"] == [5, 7]
    stop.clear()
    records = glue(base, ["wnli"], out, data, seeds=(5, 7), **QUICK)
    assert trained == [5, 7] and [record["seed"] for record in records] == [5, 7]
    assert len(read(out)["tasks"]["wnli"]["runs"]) == 2


def test_other_rows_are_measured_anew(base, data, tmp_path, monkeypatch):
    """A changed dev set is not answered with old figures, though the classifier is the same."""
    import shutil

    mine, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(data, mine)
    glue(base, ["mnli"], out, mine, **QUICK)
    file = mine / "MNLI" / "dev_mismatched.tsv"
    file.write_text("\n".join(file.read_text().splitlines()[:-5]) + "\n")
    monkeypatch.setattr(run, "finetune", never)
    glue(base, ["mnli"], out, mine, **QUICK)
    assert [figure["rows"] for figure in read(out)["tasks"]["mnli"]["figures"]] == [12, 7]


def test_one_seed_stays_in_the_tasks_folder_with_both_dev_sets(base, data, tmp_path):
    """MNLI is measured matched and mismatched; another task's entry stays beside it."""
    out = tmp_path / "out"
    glue(base, ["wnli"], out, data, **QUICK)
    [record] = glue(base, ["mnli"], out, data, seeds=(4,), **QUICK)
    assert json.loads((out / "mnli" / "glue.json").read_text()) == record and record["seed"] == 4
    assert list(read(out)["tasks"]) == ["wnli", "mnli"]
    matched, mismatched = read(out)["tasks"]["mnli"]["figures"]
    assert (matched["set"], mismatched["set"]) == ("dev", "dev_mismatched")
    assert matched["pytorch"] == {
        "values": [pytest.approx(record["value"])],
        "mean": pytest.approx(record["value"]),
        "spread": None,
    }
    assert (
        scores.measure(out / "mnli", load_task("mnli", data))["dev_mismatched"]["accuracy"]
        == mismatched["pytorch"]["mean"]
    )


def test_a_gate_that_does_not_hold_is_written_down_and_the_others_go_on(
    base, data, tmp_path, main, monkeypatch
):
    """The classifier stays, no artifact is left, the next task is done, the exit code is 1."""
    real, out = scores.exported, tmp_path / "out"

    def judged(checkpoint, artifact, recipe, task, theirs, **how):
        better = {"dev": {**theirs["dev"], task.metric: 2.0}}
        return real(checkpoint, artifact, recipe, task, better if task.name == "mrpc" else theirs, **how)

    monkeypatch.setattr(scores, "exported", judged)
    options = ["--epochs", 1, "--rows", 8, "--export", "fp32"]
    done = main("glue", base, "--task", "mrpc,wnli", "--data", data, "--out", out, *options)
    assert done.code == 1
    assert "not exported: mrpc (" in done.err.splitlines()[-1] and "the metric falls by " in done.err
    assert not (out / "mrpc-fp32").exists() and (out / "mrpc" / "config.json").exists()
    assert (out / "wnli-fp32" / "manifest.json").exists()
    assert "not exported" in done.out.splitlines()[1]
    failed = read(out)["tasks"]["mrpc"]
    assert failed["figures"][0]["artifact"] == {"values": [None], "mean": None, "spread": None}


def test_the_table_has_both_figures_side_by_side(seeded, base, data, main):
    """A line for each metric: PyTorch's and the exported file's, with spreads; the average says what it lacks."""
    out, _ = seeded
    options = ["--epochs", 1, "--rows", 8, "--lr", 1e-3, "--seeds", "1, 2,3", "--export", "fp32"]
    done = main("glue", base, "--task", "mrpc", "--data", data, "--out", out, *options)
    assert done.code == 0, done.err
    head, f1, accuracy, closing = done.out.splitlines()
    assert head.split() == ["task", "dev", "set", "rows", "metric", "PyTorch", "fp32"]
    figure = read(out)["tasks"]["mrpc"]["figures"][0]["pytorch"]
    shown = f"{figure['mean']:.4f} ± {figure['spread']:.4f}"
    assert f1.split(None, 4)[:4] == ["mrpc", "dev", "12", "f1"] and f1.count(shown) == 2
    assert accuracy.split()[3] == "accuracy"
    assert closing == "no average of the seven tasks: without cola, rte, sst2, mnli, qnli, qqp"


def test_json_prints_the_summary(seeded, base, data, main):
    """What --json prints is OUT/glue.json."""
    out, _ = seeded
    options = ["--epochs", 1, "--rows", 8, "--lr", 1e-3, "--seeds", "1,2,3", "--export", "fp32", "--json"]
    done = main("glue", base, "--task", "mrpc", "--data", data, "--out", out, *options)
    assert json.loads(done.out) == read(out)


def entry(name, metric, values, exported=None, **other):
    """A summary's entry with one figure."""
    figure = {"set": "dev", "metric": metric, "rows": 9, "pytorch": summary.spread(values)}
    figure["artifact"] = summary.spread(exported) if exported else None
    seeds = list(range(len(values)))
    about = {"base": {"sha256": "a"}, "method": "finetune", "recipe": "int8" if exported else None}
    return {
        "task": name,
        "metric": metric,
        **about,
        "seeds": seeds,
        "runs": seeds,
        "figures": [figure],
        **other,
    }


SEVEN = ("cola", "rte", "mrpc", "sst2", "mnli", "qnli", "qqp")


def seven(exported=False, **other):
    """Entries of the seven tasks: value i / 10 with the first seed, a tenth more with the second."""
    metrics = {"cola": "matthews", "mrpc": "f1"}
    return {
        name: entry(
            name,
            metrics.get(name, "accuracy"),
            [i / 10, i / 10 + 0.1],
            [i / 10, i / 10] if exported else None,
            **other,
        )
        for i, name in enumerate(SEVEN)
    }


def test_mean_and_spread_by_hand():
    """The sample standard deviation: n - 1 below."""
    assert summary.spread([1.0, 2.0, 6.0]) == {
        "values": [1.0, 2.0, 6.0],
        "mean": 3.0,
        "spread": pytest.approx(7**0.5),
    }
    assert summary.spread([1.0])["spread"] is None
    assert summary.spread([1.0, None])["mean"] is None


def test_the_average_is_that_of_the_seven_by_seed():
    """Mean over the study's tasks with its metrics, no STS-B and no WNLI; its spread is over the seeds."""
    tasks = seven(exported=True) | {"stsb": entry("stsb", "pearson_spearman", [9.0, 9.0])}
    found = summary.average(tasks)
    assert found["pytorch"]["values"] == pytest.approx([0.3, 0.4])
    assert found["pytorch"]["spread"] == pytest.approx(0.1 / 2**0.5)
    assert found["artifact"]["mean"] == pytest.approx(0.3)
    assert (found["missing"], found["differ"]) == ([], [])
    text = summary.lines({"tasks": tasks, "average": found}, ["cola"], None)[-1]
    assert text == "average of the seven tasks: 0.3500 ± 0.0707 (PyTorch), 0.3000 ± 0.0000 (exported)"


def test_there_is_no_average_of_fewer_or_unlike_ones():
    """What is missing, unfinished or made otherwise is said in its place."""
    tasks = seven()
    assert summary.average(tasks)["artifact"] is None
    assert summary.average({"stsb": entry("stsb", "pearson_spearman", [1.0])}) is None
    fewer = {name: one for name, one in tasks.items() if name != "rte"}
    fewer["qqp"] = {**fewer["qqp"], "runs": [0]}
    found = summary.average(fewer)
    assert found["missing"] == ["rte", "qqp"] and found["pytorch"] is None
    tasks["mnli"] = {**tasks["mnli"], "method": "kd"}
    found = summary.average(tasks)
    assert found["differ"] == ["method"] and found["pytorch"] is None
    assert summary.lines({"tasks": tasks, "average": found}, ["cola"], None)[-1].endswith("differ in method")


def test_submission_files_are_the_servers(base, data, tmp_path, main):
    """index and prediction, a line for each row; strings where the server wants them; AX by MNLI's classifier."""
    folder = tmp_path / "answers"
    options = ["--epochs", 1, "--rows", 8, "--submit", folder]
    done = main("glue", base, "--task", "wnli,mnli,stsb", "--data", data, "--out", tmp_path / "out", *options)
    assert done.code == 0, done.err
    names = {"WNLI": "01", "MNLI-m": MNLI, "MNLI-mm": MNLI, "AX": MNLI}
    for name, labels in names.items():
        head, *rows = [line.split("\t") for line in (folder / f"{name}.tsv").read_text().splitlines()]
        assert head == ["index", "prediction"]
        assert [row[0] for row in rows] == list("01234") and {row[1] for row in rows} <= set(labels)
    scored = [line.split("\t")[1] for line in (folder / "STS-B.tsv").read_text().splitlines()[1:]]
    assert all(0 <= float(score) <= 5 for score in scored) and len(scored) == 5
    assert {file.name for file in folder.iterdir()} == {*(f"{name}.tsv" for name in names), "STS-B.tsv"}
    assert "CoLA.tsv, MRPC.tsv, QNLI.tsv, QQP.tsv, RTE.tsv, SST-2.tsv are not there yet" in done.err


def test_a_submission_is_the_classifiers_answer(seeded, base, data, tmp_path):
    """Each line is the checkpoint's own prediction for that row."""
    from toolchain.subject import open_subject

    glue(base, ["mnli"], tmp_path / "out", data, **QUICK)
    task = load_task("mnli", data)
    submit(tmp_path / "out" / "mnli", task, tmp_path / "answers")
    logits = open_subject(tmp_path / "out" / "mnli").classify(task.rows("test_mismatched"))
    lines = (tmp_path / "answers" / "MNLI-mm.tsv").read_text().splitlines()[1:]
    assert lines == [f"{i}\t{MNLI[row.argmax()]}" for i, row in enumerate(logits)]
    (tmp_path / "answers" / "MNLI-m.tsv").write_text("index\tprediction\n")
    with pytest.raises(UserError, match=r"MNLI-m\.tsv: holds other predictions"):
        submit(tmp_path / "out" / "mnli", task, tmp_path / "answers")


@pytest.mark.parametrize(("score", "text"), [(-0.2, "0.000"), (2.5, "2.500"), (5.7, "5.000")])
def test_scores_are_kept_within_their_range(data, score, text):
    """The server takes 0 to 5."""
    assert answer(load_task("stsb", data), np.float32(score)) == text


def test_method_options_and_teacher_go_through(base, data, tmp_path, monkeypatch, main):
    """--teacher and --set reach `finetune` as they were given, and only then."""
    given = []

    def stop(model, task, out, **settings):
        given.append({key: settings.get(key, "none") for key in ("teacher", "options", "method")})
        raise UserError("seen")

    monkeypatch.setattr(run, "finetune", stop)
    monkeypatch.setattr(run, "request", lambda *_, **__: {})
    call = ("glue", base, "--task", "wnli", "--data", data, "--out", tmp_path / "out")
    main(*call)
    main(*call, "--method", "kd", "--teacher", base, "--set", "alpha=0.5", "--set", "text=a=b")
    assert given[0] == {"teacher": "none", "options": "none", "method": "finetune"}
    assert given[1] == {"teacher": base, "options": {"alpha": "0.5", "text": "a=b"}, "method": "kd"}


def test_a_teacher_for_one_task_is_refused_for_another_before_the_first(base, data, tmp_path, main):
    """Of two tasks the second has no classifier at the teacher: one line, and the first is not trained."""
    glue(base, ["wnli"], tmp_path / "teachers", data, **QUICK)
    call = ("glue", base, "--task", "wnli,rte", "--data", data, "--out", tmp_path / "out", "--method", "kd")
    done = main(*call, "--teacher", tmp_path / "teachers")
    assert done.code == 2 and done.err.count("\n") == 1 and not (tmp_path / "out").exists(), done.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--seeds", "1,2,1"], "--seeds: 1 is named twice"),
        (["--seeds", "1,two"], "--seeds: 'two' is no number from 0"),
        (["--seeds", "1,-2"], "--seeds: '-2' is no number from 0"),
        (["--seeds", "1.5"], "'1.5' is no number"),
        (["--seeds", "1,"], "'' is no number"),
        (["--seeds", ""], "'' is no number"),
        (["--seeds", "²"], "'²' is no number"),
        (["--seeds", "1", "--seed", "2"], "give one of them"),
        (["--export", "int9"], "unknown recipe 'int9': did you mean int8"),
        (["--set", "alpha"], "--set alpha: gives no value"),
        (["--set", "=1"], "gives no value"),
        (["--set", "a=1", "--set", "a=2"], "a is set twice"),
        (["--task", "mrpc", "--submit", "answers"], "test.tsv is not there; put it there"),
        (["--task", "tone", "--submit", "answers"], "tone is no task of GLUE's server"),
        (["--task", "wnly"], "unknown task 'wnly': did you mean wnli"),
        (["--task", "cola"], "CoLA: no such folder; task cola expects"),
        (["--method", "finetun"], "unknown method 'finetun'"),
    ],
)
def test_bad_command_lines_write_nothing(base, data, tmp_path, main, monkeypatch, args, words):
    """One line, exit 2, before anything is trained."""
    tone = tmp_path / "tone"
    tone.mkdir()
    (tone / "task.toml").write_text(
        'name = "tone"\nmetric = "accuracy"\nlabels = ["a", "b"]\n[columns]\ntext_a = "t"\nlabel = "l"\n'
    )
    for split in ("train", "dev"):
        (tone / f"{split}.tsv").write_text("t\tl\nx\ta\n")
    monkeypatch.chdir(tmp_path)
    task = [] if "--task" in args else ["--task", "wnli"]
    done = main("glue", base, "--data", data, "--out", "out", *task, *args)
    assert done.code == 2 and words in done.err
    assert len(done.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tone"]


HEAD = "index\tsentence1\tsentence2"


@pytest.mark.parametrize(
    ("file", "spoilt", "words"),
    [
        ("train.tsv", f"{HEAD}\n0\ta\tb\n".encode(), "train.tsv line 1: no column 'label'"),
        ("train.tsv", f"{HEAD}\tlabel\n0\ta\tb\t7\n".encode(), "train.tsv line 2: label '7' is none of 0, 1"),
        ("dev.tsv", f"{HEAD}\tlabel\n".encode(), "dev.tsv: holds no rows"),
        ("dev.tsv", b"", "dev.tsv: holds no rows"),
        ("dev.tsv", f"{HEAD}\tlabel\n0\ta\t1\n".encode(), "dev.tsv line 2: 3 columns where 4 are expected"),
        (
            "train.tsv",
            f"{HEAD}\tlabel\n0\tsch\u00f6n\tb\t1\n".encode("latin-1"),
            "train.tsv line 2: not UTF-8",
        ),
        ("train.tsv", f"{HEAD}\tlabel\n".encode("utf-16"), "train.tsv line 1: not UTF-8"),
        ("test.tsv", b"index\tsentence\n0\ta\n", "test.tsv line 1: no column 'sentence1'"),
        ("dev.tsv", None, "dev.tsv: no such file"),
    ],
)
def test_bad_data_is_one_line_before_anything_is_trained(base, data, tmp_path, main, file, spoilt, words):
    """With what an earlier call finished still there."""
    import shutil

    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    (mine / "WNLI" / file).unlink()
    if spoilt is not None:
        (mine / "WNLI" / file).write_bytes(spoilt)
    # MRPC has no test set here.
    more = ["wnli", "--submit", tmp_path / "answers"] if file == "test.tsv" else ["mrpc,wnli"]
    done = main("glue", base, "--data", mine, "--out", tmp_path / "out", "--task", *more)
    assert done.code == 2 and words in done.err and len(done.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_single_seeds_folder_is_not_mixed_with_several(seeded, base, data, tmp_path):
    """A classifier's folder gets no seed folders, a folder of seeds is not replaced, a checkpoint is no --out."""
    out, _ = seeded
    glue(base, ["wnli"], tmp_path / "out", data, **QUICK)
    with pytest.raises(UserError, match="holds the classifier of a single seed"):
        glue(base, ["wnli"], tmp_path / "out", data, seeds=(1, 2), **QUICK)
    with pytest.raises(UserError, match="mrpc: already exists"):
        glue(base, ["mrpc"], out, data, **QUICK)
    with pytest.raises(UserError, match="is itself a checkpoint"):
        glue(base, ["wnli"], tmp_path / "out" / "wnli", data, **QUICK)
    assert (out / "mrpc" / "seed-3" / "config.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "glue"}', '{"task": "tone"}'])
def test_a_damaged_summary_is_one_line(base, data, tmp_path, text):
    """Nothing is trained beside a glue.json that is none."""
    (tmp_path / "glue.json").write_text(text)
    with pytest.raises(UserError, match=r"glue\.json|is itself a checkpoint"):
        glue(base, ["wnli"], tmp_path, data, **QUICK)
