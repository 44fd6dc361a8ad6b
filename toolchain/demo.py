"""The whole way on an embedded default: teacher, students, artifacts, numbers and a page, offline.

A demo is a plan (data) and one function that walks it. Every step writes one folder or file and is keyed
by its inputs and settings: a second run reuses what is unchanged. Budgets are tokens, rows and steps,
never seconds: a busy machine is slower, not different.
"""

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from devices.files import cache_folder, read_json, write_json
from toolchain import __version__

Say = Callable[[str], None]


@dataclass(frozen=True)
class Student:
    """One student of the plan: how many layers, from where, and how it is trained."""

    name: str
    layers: int
    init: str = "truncate"
    train: str = "none"


@dataclass(frozen=True)
class Plan:
    """What a demo does. Token budgets are a student's; `rows` are a task's training rows."""

    title: str
    students: tuple[Student, ...]
    tokens: int
    lr: float
    batch: int
    window: int
    recipes: tuple[str, ...] = ("fp32", "int8", "int4")
    tasks: tuple[str, ...] = ()
    rows: int = 0
    epochs: int = 3
    tuning_lr: float = 3e-4
    rounds: int = 3
    blocks: int = 32
    corpus: str = "stdlib"
    text: str = "stdlib"  # what perplexity is measured on
    seed: int = 0


DOCS = Plan(
    title="A 12-layer teacher of Python's documentation, cut to 6 layers",
    students=(
        Student("cut", 6),
        Student("healed", 6, train="pretrain"),
        Student("distilled", 6, train="distill"),
        Student("from-nothing", 6, init="random", train="pretrain"),
    ),
    tokens=120_000,
    lr=1e-3,
    batch=4,
    window=256,
    tasks=("docs-kind", "docs-order"),
    rows=1000,
    epochs=2,
)
SHORT = replace(DOCS, tokens=8_192, rows=64, epochs=1, rounds=1, blocks=4)
SMOLLM2 = Plan(
    title="SmolLM2-135M-Instruct, cut from 30 layers to 20 and 15",
    students=(
        Student("cut-20", 20),
        Student("healed-20", 20, train="pretrain"),
        Student("healed-15", 15, train="pretrain"),
    ),
    tokens=150_000,
    lr=2e-4,
    batch=2,
    window=512,
    rounds=3,
    blocks=8,
)

PLANS = {"docs": DOCS, "short": SHORT, "smollm2": SMOLLM2}


def default_teacher() -> Path:
    """The teacher that ships with the package."""
    return Path(str(resources.files("toolchain") / "assets" / "teacher"))


class Walk:
    """The demo's folder, and which of its steps are done with which inputs and settings."""

    def __init__(self, out: Path, say: Say) -> None:
        self.out, self.say = out, say
        self.ledger = out / "steps.json"
        self.done = read_json(self.ledger, "the demo's finished steps") if self.ledger.exists() else {}

    def step(self, name: str, what: str, key: Any, make: Callable[[Path], object]) -> Path:
        """Make `out/name` by `make`, unless it stands there made from the same `key`."""
        path = self.out / name
        digest = hashlib.sha256(
            json.dumps([__version__, key], sort_keys=True, default=str).encode()
        ).hexdigest()
        if self.done.get(name) == digest and path.exists():
            self.say(f"{what}: unchanged, {path} is used again")
            return path
        self.say(f"{what} ...")
        if path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)
        self.done[name] = digest
        write_json(self.ledger, self.done)
        return path


def demo(teacher: str, out: Path, plan: Plan, say: Say) -> Path:
    """Walk `plan` from `teacher` to a page below `out`; returns the page's path.

    Raises:
        UserError: a teacher or a corpus that cannot be used.
        CheckFailed: an artifact that does not compute what its checkpoint does.
    """
    from export.checkpoint import identity
    from toolchain.compress.teacher import resolve
    from toolchain.report import report

    out.mkdir(parents=True, exist_ok=True)
    walk = Walk(out, say)
    folder = resolve(teacher, cache_folder(), say)
    if folder == default_teacher():
        key = identity(folder)
        folder = walk.step(
            "teacher", "the teacher that ships", key, lambda path: shutil.copytree(default_teacher(), path)
        )
    _tell_corpus(folder, plan, say)
    models = {"teacher": folder}
    for student in plan.students:
        models[student.name] = _student(walk, folder, student, plan)
    keys = {name: identity(path) for name, path in models.items()}
    artifacts = _export(walk, models, keys, plan.recipes)
    classifiers = _classifiers(walk, models, keys, plan)
    results = _measure(walk, models, artifacts, classifiers, plan)
    say("the page ...")
    return report(results, out / "report", force=True, title=plan.title)


def _tell_corpus(teacher: Path, plan: Plan, say: Say) -> None:
    """Say so where this Python's documentation is not the one that the teacher was trained on."""
    record = teacher / "training.json"
    if plan.corpus != "stdlib" or not record.exists():
        return
    from toolchain.corpus import load

    corpus = load("stdlib")
    say(
        f"corpus: this Python's documentation, {len(corpus.train)} modules to train on, {len(corpus.heldout)} held out"
    )
    trained_on = read_json(record, "how the teacher was trained")["training"]["corpus"]["sha256"]
    if corpus.sha256 != trained_on:
        say(
            "  the text differs from the one the teacher was trained on (another Python version): "
            "held-out text may have been read by the teacher, and figures differ from the README's"
        )


def _student(walk: Walk, teacher: Path, student: Student, plan: Plan) -> Path:
    from export.checkpoint import identity
    from toolchain.compress.run import compress
    from toolchain.compress.trainer import Training

    training = None
    if student.train != "none":
        training = Training(
            objective="logits" if student.train == "distill" else "lm",
            corpus=plan.corpus,
            tokens=plan.tokens,
            lr=plan.lr,
            batch=plan.batch,
            window=plan.window,
            seed=plan.seed,
            snapshot_every=100,
        )
    how = {
        "none": "as it is",
        "pretrain": f"then trained on {plan.tokens:,} tokens of text",
        "distill": f"then distilled from the teacher on {plan.tokens:,} tokens",
    }[student.train]
    start = "with fresh weights" if student.init == "random" else "pseudo-uniform"
    options = ["--layers", str(student.layers), "--init", student.init, "--train", student.train]
    if training:
        options += [
            *("--corpus", plan.corpus, "--tokens", str(plan.tokens), "--lr", str(plan.lr)),
            *("--batch", str(plan.batch), "--window", str(plan.window), "--snapshot-every", "100"),
        ]

    def make(path: Path) -> None:
        command = shlex.join(["toolchain", "compress", str(teacher), *options, "--out", str(path)])
        compress(
            str(teacher),
            path,
            layers=student.layers,
            init=student.init,
            train=student.train,
            training=training,
            seed=plan.seed,
            force=True,
            command=command,
        )

    what = f"student {student.name}: {student.layers} layers, {start}, {how}"
    return walk.step(
        f"students/{student.name}",
        what,
        [identity(teacher), asdict(student), asdict(training) if training else None],
        make,
    )


def _export(
    walk: Walk, models: dict[str, Path], keys: dict[str, str], recipes: tuple[str, ...]
) -> list[Path]:
    from export.build import export

    return [
        walk.step(
            f"artifacts/{name}-{recipe}",
            f"artifact {name} in {recipe}, checked against PyTorch",
            [keys[name], recipe],
            lambda out, path=path, recipe=recipe: export(path, out, recipe, force=True),  # type: ignore[misc]
        )
        for name, path in models.items()
        for recipe in recipes
    ]


def _classifiers(
    walk: Walk, models: dict[str, Path], keys: dict[str, str], plan: Plan
) -> dict[str, list[Path]]:
    """Teacher and best student fine-tuned on each task and exported as int8; artifacts by task."""
    if not plan.tasks:
        return {}
    from export.checkpoint import identity
    from toolchain.corpus import load
    from toolchain.glue.docs_tasks import make_tasks
    from toolchain.glue.finetune import finetune
    from toolchain.glue.tasks import load_task

    data = walk.step(
        "tasks",
        "labelled tasks from the same text: docs-kind and docs-order",
        [load(plan.corpus).sha256, plan.rows, plan.seed],
        lambda out: make_tasks(out, train_rows=plan.rows, seed=plan.seed, force=True),
    )
    tuned = ("teacher", _best(models, plan))
    found: dict[str, list[Path]] = {}
    for name in plan.tasks:
        task = load_task(name, data)
        walk.step(
            f"results/{name}-baseline.json",
            f"{name}: what a bag of n-grams reaches",
            [name, plan.rows, plan.seed],
            lambda out, task=task: _write_baseline(out, task),  # type: ignore[misc]
        )
        for model in tuned:
            settings = {"epochs": plan.epochs, "batch": 16, "lr": plan.tuning_lr, "seed": plan.seed}
            checkpoint = walk.step(
                f"classifiers/{model}-{name}",
                f"{name}: {model} fine-tuned on {plan.rows:,} rows",
                [keys[model], settings, plan.rows],
                lambda out, model=model, task=task, settings=settings: finetune(  # type: ignore[misc]
                    models[model], task, out, force=True, say=walk.say, **settings
                ),
            )
            key = {f"{model}-{name}": identity(checkpoint)}
            found.setdefault(name, []).extend(_export(walk, {f"{model}-{name}": checkpoint}, key, ("int8",)))
    return found


def _best(models: dict[str, Path], plan: Plan) -> str:
    """The student with the lowest held-out perplexity after training."""
    scores = {
        student.name: read_json(models[student.name] / "compression.json", "how it was made")["training"][
            "perplexity"
        ]["after"]
        for student in plan.students
        if student.train != "none" and student.init != "random"
    }
    return min(scores, key=scores.__getitem__)


def _write_baseline(out: Path, task: Any) -> None:
    from toolchain.glue.baseline import baseline

    found = baseline(task)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {"schema": 1, "kind": "baseline", "task": task.name, **found})


def _measure(
    walk: Walk, models: dict[str, Path], artifacts: list[Path], classifiers: dict[str, list[Path]], plan: Plan
) -> Path:
    """Perplexity of the checkpoints in PyTorch, then every artifact through the runtime that ships."""
    from bench.run import bench
    from devices.artifact import open_artifact
    from export.checkpoint import identity
    from toolchain.corpus import heldout_file
    from toolchain.evaluate import evaluate
    from toolchain.glue.metrics import dev_rows

    results = walk.out / "results"
    asked: dict[str, Any] = {"corpus": plan.text, "window": plan.window, "blocks": plan.blocks}
    for name, path in models.items():
        walk.step(
            f"results/checkpoints/{name}",
            f"perplexity of {name} in PyTorch",
            [identity(path), asked],
            lambda out, path=path: evaluate(path, out=out, **asked),  # type: ignore[misc]
        )
    shared: dict[str, Any] = {"rounds": plan.rounds, "seed": plan.seed, "say": walk.say}
    walk.step(
        "results/decoders",
        f"{len(artifacts)} artifacts measured on this machine, {plan.rounds} rounds in turn",
        [[open_artifact(path).sha256 for path in artifacts], asked, plan.rounds],
        lambda out: bench(
            artifacts,
            out,
            corpus=heldout_file(plan.text),
            corpus_name=Path(plan.text).name,
            window=plan.window,
            blocks=plan.blocks,
            **shared,
        ),
    )
    for name, paths in classifiers.items():
        walk.step(
            f"results/{name}",
            f"{name}: accuracy and speed of {len(paths)} int8 classifiers",
            [[open_artifact(path).sha256 for path in paths], plan.rounds],
            lambda out, name=name, paths=paths: bench(  # type: ignore[misc]
                paths, out, task=dev_rows(name, walk.out / "tasks"), **shared
            ),
        )
    return results
