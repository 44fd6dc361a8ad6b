"""The demo: the whole way in small, what a second run reuses, and a teacher worth cutting."""

import csv
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toolchain.demo import default_teacher, demo
from toolchain.plans import DOCS, PLANS, Student

TINY = replace(
    DOCS,
    students=(Student("cut", 2), Student("healed", 2, train="pretrain")),
    tokens=128,
    batch=2,
    window=32,
    recipes=("fp32", "int8"),
    tasks=(),
    rounds=1,
    blocks=2,
    quality_tokens=0,  # weights at random: no gate holds for these
)


@pytest.fixture(scope="module")
def walked(
    tmp_path_factory: pytest.TempPathFactory, gpt2_checkpoint: Path, corpus_file: Path
) -> tuple[Path, Any]:
    """A tiny demo's folder and the plan it was made by."""
    out = tmp_path_factory.mktemp("demo") / "out"
    plan = replace(TINY, corpus=str(corpus_file), text=str(corpus_file))
    demo(str(gpt2_checkpoint), out, plan, lambda line: None)
    return out, plan


def test_the_whole_way(walked: tuple[Path, Any]) -> None:
    """Teacher and students times recipes are on the page, each with time, memory and perplexity."""
    out, _ = walked
    assert (out / "report" / "trade-off.png").read_bytes().startswith(b"\x89PNG")
    with (out / "report" / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["subject"] == "artifact"]
    assert len(rows) == 3 * 2
    for row in rows:
        assert float(row["token_s_median"]) > 0
        assert float(row["peak_rss_bytes_median"]) > 1e7
        assert float(row["perplexity"]) > 1


def test_a_number_leads_back_to_its_teacher(walked: tuple[Path, Any], gpt2_checkpoint: Path) -> None:
    """A measured artifact's lineage names the student, the teacher's hash and the layers kept."""
    from export.checkpoint import identity

    out, _ = walked
    results = [json.loads(path.read_text()) for path in (out / "results" / "decoders").glob("*.json")]
    found = next(r for r in results if r["subject"]["name"] == "healed-int8")
    lineage = found["subject"]["lineage"]
    assert lineage["compression"]["teacher"]["sha256"] == identity(gpt2_checkpoint)
    assert lineage["compression"]["keep"] == [0, 3]
    assert lineage["checkpoint"]["sha256"] == identity(out / "students" / "healed")


def test_a_second_run_reuses_what_is_unchanged(walked: tuple[Path, Any], gpt2_checkpoint: Path) -> None:
    """Nothing is made twice; what a changed setting concerns is made again, and only that."""
    out, plan = walked
    said: list[str] = []
    demo(str(gpt2_checkpoint), out, plan, said.append)
    assert [line for line in said if line.endswith(" ...")] == ["the page ..."]
    said.clear()
    demo(str(gpt2_checkpoint), out, replace(plan, rounds=2), said.append)
    again = [line for line in said if line.endswith(" ...")]
    assert len(again) == 2 and "2 rounds" in again[0]


def test_the_teacher_has_no_idle_layers() -> None:
    """Cutting every second layer of the teacher that ships at least doubles held-out perplexity."""
    import torch
    from transformers import AutoModelForCausalLM

    from toolchain.compress.select import choose
    from toolchain.compress.train import _heldout_blocks, perplexity
    from toolchain.corpus import load

    model = AutoModelForCausalLM.from_pretrained(default_teacher(), dtype=torch.float32)
    blocks = _heldout_blocks(load("stdlib").heldout, default_teacher(), 256)[:8]
    whole = perplexity(model, blocks)
    layers = model.transformer.h
    model.transformer.h = torch.nn.ModuleList([layers[i] for i in choose("pseudo-uniform", 12, 6)])
    model.config.use_cache = False
    assert perplexity(model, blocks) > 2 * whole


def test_the_teacher_s_card_says_how_it_was_made() -> None:
    """Exact command, seed, tokens seen and held-out perplexity stand in the card as in its record."""
    teacher = default_teacher()
    record = json.loads((teacher / "training.json").read_text())
    card = (teacher / "README.md").read_text()
    assert record["command"] in card
    assert f"{record['training']['tokens']:,}" in card
    assert f"{record['training']['perplexity']['after']:.2f}" in card
    assert sum(path.stat().st_size for path in teacher.iterdir()) < 16 * 2**20


TASK = """\
name = "tone"
metric = "accuracy"
problem = "classification"
labels = ["no", "yes"]
[columns]
text_a = "text"
label = "label"
"""


def test_a_classifier_s_command_makes_that_classifier(
    tmp_path: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command beside the demo's classifier, given again, fine-tunes the same model in the same way."""
    from toolchain.demo import _finetune
    from toolchain.glue import finetune, run
    from toolchain.glue.tasks import load_task

    (tmp_path / "tone").mkdir()
    (tmp_path / "tone" / "task.toml").write_text(TASK)
    for split in ("train", "dev"):
        (tmp_path / "tone" / f"{split}.tsv").write_text("text\tlabel\nfine\tyes\n")
    asked: list[Any] = []

    def tune(model: Path, task: Any, out: Path, **settings: Any) -> dict[str, Any]:
        kept = {key: settings[key] for key in ("epochs", "batch", "lr", "seed")}
        asked.append((model, task, kept, settings.get("rows"), settings.get("max_tokens")))
        out.mkdir(parents=True)
        record = {"task": task.name, "metric": "accuracy", "value": 1.0, "dev_rows": 1}
        record["command"] = settings["command"]
        (out / "glue.json").write_text(json.dumps(record))
        return record

    for module in (finetune, run):
        monkeypatch.setattr(module, "finetune", tune)
    monkeypatch.setattr("export.checkpoint.identity", lambda folder: "of no weights")
    monkeypatch.setattr(run, "request", lambda *_, **__: {})
    settings = {"epochs": 2, "batch": 16, "lr": 3e-4, "seed": 0}
    task, out = load_task("tone", tmp_path), tmp_path / "classifiers" / "a model-tone"
    _finetune(tmp_path / "a model", task, tmp_path, out, settings, str)
    command = json.loads((out / "glue.json").read_text())["command"]
    monkeypatch.setattr("sys.argv", shlex.split(command))
    assert main(*shlex.split(command)[1:]).code == 0
    assert asked[0] == asked[1]
    record = json.loads((tmp_path / "classifiers" / "a model" / "tone" / "glue.json").read_text())
    assert record["command"] == command


def test_an_interrupted_step_is_not_believed(tmp_path: Path) -> None:
    """A step that is made again and fails is forgotten first: its half-made folder is never used."""
    from toolchain.demo import Walk

    def fails(path: Path) -> None:
        path.mkdir()
        raise KeyboardInterrupt

    Walk(tmp_path / "out", str).step("a", "a", 1, lambda path: path.mkdir())
    with pytest.raises(KeyboardInterrupt):
        Walk(tmp_path / "out", str).step("a", "a", 2, fails)
    made: list[Path] = []
    Walk(tmp_path / "out", str).step("a", "a", 1, made.append)
    assert made


def test_a_folder_that_is_no_demo_s_is_left_alone(tmp_path: Path) -> None:
    """--out that holds somebody's work is refused, and nothing in it is touched."""
    from devices.errors import UserError
    from toolchain.demo import Walk

    (tmp_path / "teacher").mkdir()
    with pytest.raises(UserError, match="no demo's"):
        Walk(tmp_path, str)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_another_plan_s_results_do_not_stay_on_the_page(tmp_path: Path) -> None:
    """Results that this walk did not make are dropped; other folders stay for the plan they belong to."""
    from toolchain.demo import Walk

    first = Walk(tmp_path / "out", str)
    for name in ("results/old", "students/old"):
        first.step(name, name, 1, lambda path: path.mkdir(parents=True))
    second = Walk(tmp_path / "out", str)
    second.step("results/new", "new", 1, lambda path: path.mkdir())
    second.drop_others("results/")
    assert [path.name for path in (tmp_path / "out" / "results").iterdir()] == ["new"]
    assert (tmp_path / "out" / "students" / "old").exists()


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["demo", "smollm"], "did you mean smollm2"),
        (["demo", "smollm2"], "--teacher"),
        (["demo", "--teacher", "nowhere", "--out", "OUT"], "nowhere"),
        (["demo", "--tokens", "0"], "0"),
    ],
)
def test_a_bad_demo_is_one_line(
    arguments: list[str], cause: str, main: Callable[..., Any], tmp_path: Path
) -> None:
    """An unknown plan, a missing teacher, a bad budget: exit 2 and one line."""
    done = main(*[str(tmp_path / "out") if a == "OUT" else a for a in arguments])
    assert done.code == 2
    *_, last = done.err.strip().splitlines()
    assert last.startswith("toolchain: ") and cause in last and done.err.count("toolchain: ") == 1


def test_a_text_that_is_too_short_is_told_before_the_first_step(
    gpt2_checkpoint: Path, corpus_file: Path, main: Callable[..., Any], tmp_path: Path
) -> None:
    """A --text of less than a window is refused with an option that demo has, and nothing is made."""
    (tmp_path / "short.txt").write_text("a few words")
    options = ["--teacher", gpt2_checkpoint, "--corpus", corpus_file, "--out", tmp_path / "out"]
    done = main("demo", *options, "--text", tmp_path / "short.txt")
    assert done.code == 2 and "short.txt: has" in done.err and "--text" in done.err
    assert not (tmp_path / "out").exists()


def test_plans_are_data() -> None:
    """Every plan has the untouched cut to compare with, and budgets in tokens."""
    for plan in PLANS.values():
        assert any(student.train == "none" for student in plan.students)
        assert plan.tokens > 0


def test_exports_example_asks_what_the_demo_asks() -> None:
    """The command in `export --help` holds a student of the demo to the gates that the demo holds it to."""
    from export.gates import default_gates
    from export.recipes import RECIPES
    from toolchain.cli.export import _gates, command

    example = next(
        shlex.split(line)
        for line in (command.help or "").splitlines()
        if line.strip().startswith("toolchain export demo-out/")
    )
    given = command.make_context("export", example[2:]).params
    assert given["int8"]
    found = _gates(**given | {"recipe": "int8"})
    assert found == replace(default_gates(RECIPES["int8"]), **(DOCS.gates or {})["int8"])
