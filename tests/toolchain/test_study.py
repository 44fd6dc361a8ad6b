import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devices.errors import UserError
from toolchain.study.engine import begin, walk_stages
from toolchain.study.estimate import costs
from toolchain.study.spec import Stage, read_study
from toolchain.study.stages import arguments, check_options, finished, keys, places
from toolchain.study.tables import Cell, Figure, check_tables, difference, fill, order, to_markdown

GRID = """
title = "A trial"
[teachers]
big = "{teacher}"
[texts]
prose = "{text}"
[compress.cut]
of = "big"
layers = 2
select = ["uniform", "top-half"]
[evaluate.bare]
of = ["big", "cut-*"]
corpus = "prose"
window = 32
blocks = 2
"""


@pytest.fixture
def study(tmp_path: Path, gpt2_checkpoint: Path, corpus_file: Path) -> Callable[..., Path]:
    """`study(more, **changed)`: a study file of five stages, with more sections and other values."""

    def write(more: str = "", base: str = GRID, **changed: object) -> Path:
        text = base.format(**{"teacher": gpt2_checkpoint, "text": corpus_file, **changed})
        file = tmp_path / "trial.toml"
        file.write_text(text + more, encoding="utf-8")
        return file

    return write


def test_a_grid_is_spelt_out(study: Callable[..., Path]) -> None:
    """Every subject times every value of a list is a stage, named by them, that waits for what it reads."""
    found = read_study(
        study('[compress.healed]\nof = "cut-*"\ntrain = "pretrain"\nlayers = 2\nlr = [1e-3, 1e-4]')
    )
    assert [name for name, s in found.stages.items() if s.kind == "compress"] == [
        *("cut-uniform", "cut-top-half"),
        *("healed-cut-uniform-0.001", "healed-cut-uniform-0.0001"),
        *("healed-cut-top-half-0.001", "healed-cut-top-half-0.0001"),
    ]
    assert found.stages["healed-cut-uniform-0.001"].needs == ("cut-uniform",)
    assert found.stages["bare-big"].needs == ()
    assert "bare-cut-top-half" in found.stages and "bare-healed-cut-top-half-0.001" not in found.stages


def test_a_stage_is_a_command_line(study: Callable[..., Path], corpus_file: Path) -> None:
    """Options become words as a user would type them; names of texts and stages become paths."""
    found = read_study(study('[glue.tuned]\nof = "big"\ntask = "docs-kind"\nrows = 8\nforce = true'))
    assert arguments(found.stages["bare-big"], "big", {}, Path("out")) == [
        *("big", "--corpus", str(corpus_file), "--window", "32", "--blocks", "2", "--out", "out"),
    ]
    words = arguments(found.stages["tuned"], "big", {}, Path("out"))
    assert words == ["big", "--task", "docs-kind", "--rows", "8", "--force", "--out", "out"]


def test_a_methods_teacher_is_the_classifier_of_the_same_task(study: Callable[..., Path]) -> None:
    """`teacher` names a glue section; each stage gets its classifier of the task at hand, and waits for it."""
    found = read_study(
        study(
            '[glue.first]\nof = "big"\ntask = ["docs-kind", "docs-order"]\n'
            '[glue.second]\nof = "cut-uniform"\ntask = ["docs-order"]\nteacher = "first"'
        )
    )
    assert found.stages["second-docs-order"].options["teacher"] == "first-docs-order"
    assert set(found.stages["second-docs-order"].needs) == {"cut-uniform", "first-docs-order"}


BAD = [
    ("[compress", "not valid TOML"),
    ("[compres.x]\nof = 'big'", "did you mean compress?"),
    ("[compress.x]\nlayers = 2", "has no 'of'"),
    ("[compress.x]\nof = 'bog'\nlayers = 2", "did you mean big?"),
    ("[compress.x]\nof = 'bare-big'\nlayers = 2", "unknown name 'bare-big'"),
    ("[compress.x]\nof = 'nothing-*'\nlayers = 2", "unknown name 'nothing-*'"),
    ("[compress.x]\nof = 'big'\nlayer = 2", "No such option '--layer'"),
    ("[compress.x]\nof = 'big'\nlayers = 0", "--layers"),
    ("[compress.x]\nof = 'big'\nlayers = 2\nselect = 'uniforn'", "did you mean uniform"),
    ("[compress.x]\nof = 'big'\nlayers = 9", "big has 4 layers"),
    ("[compress.x]\nof = 'big'\nlayers = 2\ntrain = 'pretrain'\nlr = -1", "--lr"),
    ("[compress]\nx = 3", "must be a table"),
    ("[compress.big]\nof = 'big'\nlayers = 2", "a second 'big'"),
    ("[glue.x]\nof = 'big'\ntask = 'docs-kind'\nmethod = 'finetun'", "did you mean finetune"),
    ("[glue.x]\nof = 'big'\ntask = 'docs-kind'\nteacher = 'y'", "unknown glue section 'y'"),
    ("[glue.x]\nof = 'big'", "--task"),
    (
        "[glue.x]\nof = 'big'\ntask = 'docs-kin'",
        "[glue.x] task: unknown task 'docs-kin': did you mean docs-kind",
    ),
    ("[glue.x]\nof = 'big'\ntask = ['docs-kind', 'colla']", "did you mean cola"),
    ("[glue.x]\nof = 'big'\ntask = 'docs-kind'\nmethod = 'kd'", "method kd: learns from a teacher"),
    (
        "[glue.x]\nof = 'big'\ntask = 'docs-kind'\n"
        "[glue.y]\nof = 'big'\ntask = 'docs-kind'\nmethod = 'label-smoothing'\nteacher = 'x'",
        "method label-smoothing: takes no teacher",
    ),
    ("[bench.x]\nof = 'big'", "unknown name 'big'"),
    ("[tables.7]\nrows = {}", "needs columns and rows"),
    ("[tables.7]\ncolumns = {a = {evaluate = 'bear'}}\nrows = {b = {of = '*'}}", "did you mean bare?"),
]


@pytest.mark.parametrize(("more", "says"), BAD)
def test_a_wrong_study_is_refused_whole(
    study: Callable[..., Path], main: Callable[..., Any], tmp_path: Path, more: str, says: str
) -> None:
    """One line that names the section and what to do, exit code 2, and nothing was begun."""
    done = main("run", study(more), "--out", tmp_path / "runs")
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1, done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title = 'x'", "names no teacher"),
        ("[teachers]\nx = 3", "must be a path"),
        ("[teachers]\nx = {path = 'a', layers = 3}", "unknown key 'layers'"),
        ("[teachers]\nx = 'demo'", "names nothing to do"),
        ("data = 3\n[teachers]\nx = 'demo'", "data is 3"),
    ],
)
def test_a_study_needs_a_teacher_and_something_to_do(
    study: Callable[..., Path], main: Callable[..., Any], text: str, says: str
) -> None:
    """A study file that is none is refused in one line."""
    done = main("run", study(base=text.replace("{", "{{").replace("}", "}}")))
    assert done.code == 2 and says in done.err


def test_keys_follow_content_and_not_names(
    study: Callable[..., Path], tmp_path: Path, corpus_file: Path
) -> None:
    """A stage's key changes with its options, its text's content and its teacher's, and not with its name."""
    before = keys(read_study(study()))
    assert len(set(before.values())) == len(before)
    renamed = keys(read_study(study(base=GRID.replace("[compress.cut]", "[compress.cut-x]"))))
    assert renamed["cut-x-uniform"] == before["cut-uniform"]
    other = tmp_path / "other.txt"
    other.write_text(corpus_file.read_text() + "more", encoding="utf-8")
    changed = keys(read_study(study(text=other)))
    assert changed["bare-big"] != before["bare-big"] and changed["cut-uniform"] == before["cut-uniform"]
    fewer = keys(read_study(study(base=GRID.replace("layers = 2", "layers = 1").replace('"top-half"', ""))))
    assert fewer["bare-cut-uniform"] != before["bare-cut-uniform"]


def test_a_dry_run_counts_and_writes_nothing(
    study: Callable[..., Path], main: Callable[..., Any], tmp_path: Path
) -> None:
    """Stages, tokens, steps, hours and disk are said, a model that is not here is named, nothing is written."""
    more = LONG.replace("steps = 4000", "tokens = 4096").replace("batch = 1", "batch = 4")
    done = main("run", study(more), "--out", tmp_path / "runs", "--dry-run")
    assert done.code == 0, done.err
    assert "healed: about" in done.out and "4,096 tokens in 32 steps" in done.out
    assert "6 stages, about" in done.out and "GB of disk" in done.out
    assert not (tmp_path / "runs").exists()
    absent = main("run", study(teacher="no/model"), "--out", tmp_path / "runs", "--dry-run")
    assert "no/model is not on this machine" in absent.out and "its shape is not known" in absent.out


def test_a_study_runs_once(study: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path) -> None:
    """Every stage is made, figures name their files, and a second run makes nothing again."""
    file, out = study(TABLE), tmp_path / "runs"
    first = cli("run", file, "--out", out, "--jobs", 2)
    assert first.returncode == 0, first.stderr
    assert "5 stages, 0 of them made before" in first.stderr
    rows = (out / "trial" / "figures.csv").read_text().splitlines()
    assert len(rows) == 4 and all((out / row.rsplit(",", 1)[1]).is_file() for row in rows[1:])
    assert "| uniform |" in (out / "trial" / "tables.md").read_text()
    listing = json.loads((out / "trial" / "study.json").read_text())["stages"]
    assert listing["cut-uniform"]["does"] == "compress big --layers 2 --select uniform"
    assert all(stage["seconds"] > 0 for stage in listing.values())
    before = {path: path.stat().st_mtime_ns for path in (out / "stages").rglob("*.json")}
    second = cli("run", file, "--out", out)
    assert second.returncode == 0 and "5 of them made before" in second.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (out / "stages").rglob("*.json")}
    again = json.loads((out / "trial" / "study.json").read_text())["stages"]
    assert [s["seconds"] for s in again.values()] == [s["seconds"] for s in listing.values()]


TABLE = """
[tables.7]
columns = {{zero-shot = {{evaluate = "bare"}}}}
rows = {{uniform = {{of = "cut-uniform"}}, top-half = {{of = "cut-top-half"}}}}
""".replace("{{", "{").replace("}}", "}")


def test_what_fails_is_named_and_the_rest_goes_on(
    study: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path
) -> None:
    """A stage that fails takes along what needs it and nothing else; exit code 1, and its log is named."""
    file = study('[compress.worse]\nof = "cut-top-half"\nkeep = "7"\n[evaluate.of-worse]\nof = "worse"')
    done = cli("run", file, "--out", tmp_path / "runs")
    assert done.returncode == 1
    assert "worse: failed" in done.stderr and "of-worse: skipped" in done.stderr
    assert "no layer 7" in done.stderr.splitlines()[-1] and "worse.log" in done.stderr.splitlines()[-1]
    states = json.loads((tmp_path / "runs" / "trial" / "study.json").read_text())["stages"]
    assert [s["state"] for s in states.values()].count("done") == 5


LONG = """
[compress.healed]
of = "cut-uniform"
layers = 2
train = "pretrain"
window = 32
batch = 1
corpus = "prose"
steps = 4000
snapshot-every = 50
"""


def wait_for_snapshot(out: Path, child: "subprocess.Popen[Any]") -> None:
    """Until the stage `healed` has left a snapshot."""
    deadline = time.monotonic() + 120
    while not list(out.glob("stages/compress/*/.healed.staging/unfinished/snapshots/*/trainer_state.json")):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.2)


def test_a_stopped_study_goes_on(study: Callable[..., Path], tmp_path: Path) -> None:
    """Ctrl-C reaches the stage in flight, which keeps its snapshot; the study says how to go on."""
    out = tmp_path / "runs"
    child = subprocess.Popen(
        [sys.executable, "-m", "toolchain", "run", str(study(LONG)), "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_for_snapshot(out, child)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "the same command goes on" in err.splitlines()[-1]
    assert any(out.glob("stages/compress/*/.healed.staging/**/checkpoint-*"))
    assert "last snapshot" in (out / "trial" / "logs" / "healed.log").read_text()


def test_a_stage_ends_with_its_study(study: Callable[..., Path], tmp_path: Path) -> None:
    """A study that is killed leaves no stage behind that writes on."""
    out = tmp_path / "runs"
    child = subprocess.Popen(
        [sys.executable, "-m", "toolchain", "run", str(study(LONG)), "--out", str(out)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    wait_for_snapshot(out, child)
    child.kill()
    child.wait()
    time.sleep(1)
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in running if str(out).encode() in line]


def test_twins_run_once(study: Callable[..., Path], tmp_path: Path) -> None:
    """Two names for the same command are one stage's work."""
    found = read_study(study('[compress.again]\nof = "big"\nlayers = 2\nselect = "uniform"'))
    check_options(found)
    walk = begin(found, places(found, tmp_path / "stages"))
    walk.states.update({name: "cached" for name, s in found.stages.items() if s.kind == "evaluate"})
    walk_stages(walk, tmp_path / "logs", 2, 1, lambda name: None)
    assert walk.places["again"] == walk.places["cut-uniform"]
    assert sorted((walk.states["again"], walk.states["cut-uniform"])) == ["cached", "done"]


def test_differences_below_the_spread_are_none() -> None:
    """By hand: means 2 and 4; spreads sqrt(1) and sqrt(9) hide the gap of 2, spreads of 1 and 1 do not."""
    near, far = Cell((1.0, 2.0, 3.0), None), Cell((1.0, 4.0, 7.0), None)
    assert near.mean == 2 and near.spread == 1 and far.spread == 3
    assert difference(near, far) == 0
    assert difference(near, Cell((3.0, 4.0, 5.0), None)) == -2
    assert difference(Cell((1.0,), None), Cell((1.5,), None)) == -0.5


def test_order_is_the_papers_pair_by_pair() -> None:
    """Lower is better: a pair agrees, differs, or is no different, and rows without a number are left out."""
    table = {
        "a": {"c": Cell((1.0, 1.2), 10.0)},
        "b": {"c": Cell((2.0, 2.2), 20.0)},
        "c": {"c": Cell((1.1, 1.3), 30.0)},
        "d": {"c": Cell((9.0,), None)},
    }
    found = order(table, "c", "lower")
    assert (found.agree, found.differ, found.none) == ([("a", "b")], [("b", "c")], [("a", "c")])


def test_a_cell_is_what_its_row_and_column_say(study: Callable[..., Path]) -> None:
    """Seeds of one cell are averaged, row and column both must fit, the paper's numbers stand beside."""
    text = (
        '[tables.7]\ncolumns = {fine-tuned = {evaluate = "bare"}}\n'
        'rows = {uniform = {of = "cut-uniform"}, top-half = {of = "cut-top*"}, none = {of = "x"}}'
    )
    found = read_study(study(text))
    one, other = found.stages["bare-cut-uniform"], found.stages["bare-cut-top-half"]
    got = [Figure(one, "perplexity", v, s, Path("x")) for s, v in enumerate((10.0, 14.0))]
    got.append(Figure(other, "perplexity", 40.0, None, Path("x")))
    table = fill(found, "7", got)
    assert list(table) == ["uniform", "top-half"]
    assert table["uniform"]["fine-tuned"] == Cell((10.0, 14.0), 26.6)
    said = to_markdown(found, got)
    assert "| uniform | 12.0 ± 2.8 | 26.6 |" in said and "of 1 pairs, 1 stand as in the paper" in said


def test_different_models_are_no_seeds_of_one(study: Callable[..., Path], main: Callable[..., Any]) -> None:
    """A cell in which two models would be averaged is refused before anything runs, and both are named."""
    text = '[tables.7]\ncolumns = {all = {evaluate = "bare"}}\nrows = {cut = {of = "cut-*"}}'
    done = main("run", study(text))
    assert done.code == 2 and done.err.count("\n") == 1
    assert "[tables.7] cut, all: bare-cut-uniform and bare-cut-top-half" in done.err


def test_seeds_of_one_model_share_a_cell(study: Callable[..., Path]) -> None:
    """Two trainings that differ in the seed alone are runs of one cell; row and column must both fit."""
    more = (
        LONG.replace("steps = 4000", "steps = 4").replace('of = "cut-uniform"', 'of = "cut-*"')
        + "seed = [1, 2]\n"
    )
    more += '[evaluate.after]\nof = "healed-*"\ncorpus = "prose"\n'
    more += '[tables.7]\ncolumns = {after = {evaluate = "after", of = "*uniform*"}}\nrows = {all = {of = "healed-*"}}'
    found = read_study(study(more))
    check_tables(found)
    got = [
        Figure(s, "perplexity", 1.0, None, Path("x")) for s in found.stages.values() if s.section == "after"
    ]
    assert len(got) == 4 and len(fill(found, "7", got)["all"]["after"].values) == 2


ABSENT = [
    ({"text": "gone.txt"}, (), "prose (gone.txt)"),
    ({"teacher": "./gone"}, (), "gone)"),
    ({}, ("--data", "gone"), "data of tuned (gone)"),
    ({}, ("--text", "prose=gone.md"), "prose (gone.md)"),
]


@pytest.mark.parametrize(("changed", "options", "says"), ABSENT)
def test_what_is_not_here_is_said_beforehand(
    study: Callable[..., Path],
    main: Callable[..., Any],
    tmp_path: Path,
    changed: dict,
    options: tuple,
    says: str,
) -> None:
    """A run is refused before its first stage, a dry run counts and then says the same; exit code 2 for both."""
    file = study('[glue.tuned]\nof = "big"\ntask = "sst2"' if "--data" in options else "", **changed)
    done = main("run", file, "--out", tmp_path / "runs", *options)
    assert done.code == 2 and "not on this machine: " in done.err and says in done.err, done.err
    assert not (tmp_path / "runs").exists()
    tried = main("run", file, "--out", tmp_path / "runs", *options, "--dry-run")
    assert tried.code == 2 and tried.err == done.err and "stages, about" in tried.out


def test_data_and_texts_may_lie_elsewhere(
    study: Callable[..., Path], corpus_file: Path, tmp_path: Path
) -> None:
    """--data and --text stand in for the study's own paths, and an unknown name is answered with the near one."""
    found = read_study(
        study('[glue.tuned]\nof = "big"\ntask = "sst2"', text="gone.txt"), tmp_path, {"prose": "x.txt"}
    )
    assert found.stages["bare-big"].options["corpus"] == "x.txt"
    assert found.stages["tuned"].options["data"] == str(tmp_path)
    with pytest.raises(UserError, match="did you mean prose"):
        read_study(study(), None, {"pros": "x.txt"})


def test_costs_are_what_the_stages_ask_for(study: Callable[..., Path], corpus_file: Path) -> None:
    """A student takes its weights' bytes however its budget is said; cleaning and measuring layers take time, too."""
    more = LONG.replace("steps = 4000", "epochs = 2")
    more += '[clean.clear]\nof = "prose"\n[compress.measured]\nof = "big"\nlayers = 2\nselect = "perplexity"'
    found = costs(read_study(study(more)))
    assert found["healed"].bytes == found["cut-uniform"].bytes == found["measured"].bytes > 0
    assert found["healed"].tokens == 2 * (corpus_file.stat().st_size // 4)
    assert found["measured"].flops > found["cut-uniform"].flops == 0
    assert found["clear"].reading > 0 and found["clear"].bytes == corpus_file.stat().st_size // 4 * 4


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    """A study that is not there is one line."""
    with pytest.raises(UserError, match="no such file"):
        read_study(tmp_path / "no.toml")


def test_a_stage_with_seeds_left_is_not_finished(tmp_path: Path) -> None:
    """glue.json is written after each seed: a stage that was killed behind the first goes on with the others."""
    stage = Stage("tuned", "glue", "tuned", "student", {"task": "sst2,cola", "seeds": "1,2"}, ())
    file = tmp_path / "glue.json"
    states = []
    for runs in ({"sst2": 1}, {"sst2": 2}, {"sst2": 2, "cola": 1}, {"sst2": 2, "cola": 2}):
        tasks = {name: {"seeds": [1, 2], "runs": [{}] * done} for name, done in runs.items()}
        file.write_text(json.dumps({"schema": 1, "kind": "glue", "tasks": tasks}))
        states.append(finished(stage, tmp_path))
    assert states == [False, False, False, True]
    assert not finished(stage, tmp_path / "nowhere")
