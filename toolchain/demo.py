"""The whole way on an embedded default: teacher, students, artifacts, numbers and a page, offline.

A demo is a plan (toolchain/plans.py) and one function that walks it. Every step writes one folder or file and is keyed
by its inputs and settings: a second run reuses what is unchanged. Budgets are tokens, rows and steps,
never seconds: a busy machine is slower, not different.
"""

import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError
from devices.files import cache_folder, read_json, sha256, staged, write_json
from toolchain import __version__
from toolchain.plans import Plan, Student

if TYPE_CHECKING:
    from export.gates import Gates
    from toolchain.compress.trainer import Training
    from toolchain.glue.tasks import Task

Say = Callable[[str], None]

SHIPPED = "demo"


def default_teacher() -> Path:
    """The teacher that ships with the package."""
    return Path(str(resources.files("toolchain") / "assets" / "teacher"))


def shipped(model: str) -> str:
    """Where a model is named: `demo` is the teacher that ships, unless something here is called so."""
    return str(default_teacher()) if model == SHIPPED and not Path(model).exists() else model


class Walk:
    """The demo's folder, and which of its steps are done with which inputs and settings."""

    def __init__(self, out: Path, say: Say) -> None:
        self.out, self.say = out, say
        self.ledger = out / "steps.json"
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: is a file, and --out names a folder; choose another --out")
        if out.is_dir() and any(out.iterdir()) and not self.ledger.exists():
            raise UserError(f"{out}: holds something that is no demo's; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        self.done = read_json(self.ledger, "the demo's finished steps") if self.ledger.exists() else {}
        self.walked: list[str] = []
        write_json(self.ledger, self.done)

    def step(self, name: str, what: str, key: Any, make: Callable[[Path], object]) -> Path:
        """Make `out/name` by `make`, unless it stands there made from the same `key`."""
        path = self.out / name
        self.walked.append(name)
        text = json.dumps([__version__, key], sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()
        if self.done.get(name) == digest and path.exists():
            self.say(f"{what}: unchanged, {path} is used again")
            return path
        self._drop(name)
        self.say(f"{what} ...")
        start = time.monotonic()
        make(path)
        if (seconds := time.monotonic() - start) > 5:
            self.say(f"  done in {seconds:.0f} s")
        self.done[name] = digest
        write_json(self.ledger, self.done)
        return path

    def _drop(self, name: str) -> None:
        """Forget a step before its folder goes: an interrupt must not leave a record of what is not there."""
        if self.done.pop(name, None):
            write_json(self.ledger, self.done)
        path = self.out / name
        if path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def drop_others(self, below: str) -> None:
        """Remove what earlier walks of other plans left below `below`, so that a page shows this one's."""
        for name in [name for name in self.done if name.startswith(below) and name not in self.walked]:
            self._drop(name)


def demo(teacher: str, out: Path, plan: Plan, say: Say) -> Path:
    """Walk `plan` from `teacher` to a page below `out`; returns the page's path.

    Raises:
        UserError: a teacher or a corpus that cannot be used, an `out` that is no demo's.
        CheckFailed: an artifact that does not compute what its checkpoint does.
    """
    from export.checkpoint import identity
    from toolchain.compress.teacher import resolve
    from toolchain.corpus import heldout_file, load
    from toolchain.report import report

    # Texts count by content, not by name: another Python's documentation is another corpus.
    texts = {"corpus": load(plan.corpus).sha256, "text": sha256(heldout_file(plan.text))}
    folder = resolve(teacher, cache_folder(), say)
    _refuse_short(folder, plan)
    _tell_corpus(folder, plan, texts["corpus"], say)
    walk = Walk(out, say)
    if folder == default_teacher():
        folder = walk.step(
            "teacher",
            "the teacher that ships",
            identity(folder),
            _copy_teacher,
        )
    models, keys = {"teacher": folder}, {"teacher": identity(folder)}
    for student in plan.students:
        models[student.name] = _student(walk, folder, student, plan, [keys["teacher"], texts["corpus"]])
        keys[student.name] = identity(models[student.name])
    artifacts = _export(walk, models, keys, plan, texts["text"])
    classifiers = _classifiers(walk, models, keys, plan)
    results = _measure(walk, models, keys, artifacts, classifiers, plan, texts["text"])
    walk.drop_others("results/")
    say("the page ...")
    return report(results, out / "report", force=True, title=plan.title)


def _copy_teacher(out: Path) -> None:
    """The teacher that ships, whole in `out` or not at all."""
    with staged(out) as staging:
        for file in sorted(default_teacher().iterdir()):
            shutil.copyfile(file, staging / file.name)


def _refuse_short(teacher: Path, plan: Plan) -> None:
    """UserError for a text that perplexity cannot be taken on: better known before the training than after."""
    from devices.text import encode_text, load_tokenizer, read_text
    from toolchain.corpus import heldout_file

    count = len(encode_text(load_tokenizer(teacher), read_text(heldout_file(plan.text))))
    if count < plan.window:
        raise UserError(
            f"{plan.text}: has {count} tokens, less than one window of {plan.window}; name a longer --text"
        )


def _tell_corpus(teacher: Path, plan: Plan, corpus: str, say: Say) -> None:
    """Say so where this Python's documentation is not the one that the teacher was trained on."""
    record = teacher / "training.json"
    trained = (
        read_json(record, "how the teacher was trained").get("training") if record.exists() else None
    ) or {}
    known = trained.get("corpus") or {}
    if plan.corpus != "stdlib" or known.get("name") != "stdlib":
        return
    say("corpus: this Python's documentation, a tenth of its modules held out")
    if corpus != known.get("sha256"):
        say(
            "  the text differs from the one the teacher was trained on (another Python version): "
            "held-out text may have been read by the teacher, and figures differ from the README's"
        )


def _student(walk: Walk, teacher: Path, student: Student, plan: Plan, inputs: list[str]) -> Path:
    """The student's folder; `inputs` are the hashes of what it is made from."""
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
            heldout_blocks=plan.blocks,
        )
    how = {
        "none": "as it is",
        "pretrain": f"then trained on {plan.tokens:,} tokens of text",
        "distill": f"then distilled from the teacher on {plan.tokens:,} tokens",
    }[student.train]
    start = "with fresh weights" if student.init == "random" else "pseudo-uniform"
    return walk.step(
        f"students/{student.name}",
        f"student {student.name}: {student.layers} layers, {start}, {how}",
        [inputs, asdict(student), asdict(training) if training else None],
        lambda out: compress(
            str(teacher),
            out,
            layers=student.layers,
            init=student.init,
            train=student.train,
            training=training,
            seed=plan.seed,
            force=True,
            command=_command(teacher, student, training, out),
            say=walk.say,
        ),
    )


def _command(teacher: Path, student: Student, training: "Training | None", out: Path) -> str:
    """What a user would type to make this student."""
    options = ["--layers", student.layers, "--init", student.init, "--train", student.train]
    if training:
        names = ("corpus", "tokens", "lr", "batch", "window", "snapshot_every", "heldout_blocks")
        options += [x for n in names for x in (f"--{n.replace('_', '-')}", getattr(training, n))]
    return shlex.join(["toolchain", "compress", str(teacher), *map(str, options), "--out", str(out)])


def _export(walk: Walk, models: dict[str, Path], keys: dict[str, str], plan: Plan, text: str) -> list[Path]:
    """Every model in every recipe; `text` is the hash of what their quality is measured on."""
    from toolchain.corpus import heldout_file

    asked = {"quality_text": heldout_file(plan.text), "quality_tokens": plan.quality_tokens}
    return [
        _artifact(walk, plan, path, name, recipe, [keys[name], plan.quality_tokens, text], lambda: asked)
        for name, path in models.items()
        for recipe in plan.recipes
    ]


def _artifact(
    walk: Walk,
    plan: Plan,
    checkpoint: Path,
    name: str,
    recipe: str,
    key: list[Any],
    checks: Callable[[], dict[str, Any]],
) -> Path:
    """The artifact of a checkpoint; `checks` is what `export` measures its quality on, `key` what that is."""
    from export.build import export, kind_of
    from export.recipes import recipe_for, wants_text
    from toolchain.corpus import calibration_file

    chosen = recipe_for(recipe, kind_of(checkpoint))
    text = calibration_file("stdlib") if wants_text(chosen) else None
    return walk.step(
        f"artifacts/{name}-{recipe}",
        f"artifact {name} in {recipe}, checked against PyTorch",
        [key, asdict(chosen), sha256(text) if text else None, asdict(_gates(plan, recipe))],
        lambda out: export(
            checkpoint,
            out,
            recipe,
            force=True,
            calibration_text=text,
            gates=_gates(plan, recipe),
            **checks(),
        ),
    )


def _gates(plan: Plan, recipe: str) -> "Gates":
    from export.gates import REPORT_ONLY, default_gates
    from export.recipes import find_recipe

    if plan.gates is None:
        return REPORT_ONLY
    return replace(default_gates(find_recipe(recipe)), **plan.gates.get(recipe, {}))


def _classifiers(
    walk: Walk, models: dict[str, Path], keys: dict[str, str], plan: Plan
) -> dict[str, list[Path]]:
    """Teacher and best student fine-tuned on each task and exported as int8; artifacts by task."""
    if not plan.tasks:
        return {}
    from export.checkpoint import identity
    from toolchain.corpus import load
    from toolchain.glue.docs_tasks import make_tasks
    from toolchain.glue.tasks import load_task

    made_from = [load("stdlib").sha256, plan.rows, plan.seed]
    data = walk.step(
        "tasks",
        "labelled tasks from the same text: docs-kind and docs-order",
        made_from,
        lambda out: make_tasks(out, train_rows=plan.rows, seed=plan.seed, force=True),
    )
    tuned = ("teacher", _best(models, plan))
    found: dict[str, list[Path]] = {}
    for name in plan.tasks:
        task = load_task(name, data)
        walk.step(
            f"results/{name}-baseline.json",
            f"{name}: what a bag of n-grams reaches",
            [name, made_from],
            lambda out, task=task: _write_baseline(out, task),  # type: ignore[misc]
        )
        for model in tuned:
            settings = {"epochs": plan.epochs, "batch": 16, "lr": plan.tuning_lr, "seed": plan.seed}
            checkpoint = walk.step(
                f"classifiers/{model}-{name}",
                f"{name}: {model} fine-tuned on {plan.rows:,} rows",
                [keys[model], settings, made_from],
                lambda out, model=model, task=task, settings=settings: _finetune(  # type: ignore[misc]
                    models[model], task, data, out, settings, walk.say
                ),
            )
            made = _artifact(
                walk,
                plan,
                checkpoint,
                f"{model}-{name}",
                "int8",
                [identity(checkpoint), made_from],
                partial(_judge, checkpoint, name, data),
            )
            found.setdefault(name, []).append(made)
    return found


def _finetune(
    model: Path, task: "Task", data: Path, out: Path, settings: dict[str, Any], say: Say
) -> dict[str, Any]:
    """The classifier in `out`, made by what a user would type: `glue` names its folder by the task."""
    from toolchain.glue.finetune import finetune

    folder = out.with_name(out.name.removesuffix(f"-{task.name}"))
    options = [x for name, value in settings.items() for x in (f"--{name}", str(value))]
    where = ["--data", str(data), *options, "--out", str(folder)]
    command = shlex.join(["toolchain", "glue", str(model), "--task", task.name, *where])
    return finetune(model, task, out, force=True, command=command, say=say, **settings)


def _judge(checkpoint: Path, task: str, data: Path) -> dict[str, Any]:
    from toolchain.judge import judge

    return {"judge": judge(checkpoint, task, data)}


def _best(models: dict[str, Path], plan: Plan) -> str:
    """The student with the lowest held-out perplexity after training."""

    def score(name: str) -> float:
        record = read_json(models[name] / "compression.json", "how it was made")
        return record["training"]["perplexity"]["after"]

    trained = [s.name for s in plan.students if s.train != "none" and s.init != "random"]
    return min(trained, key=score)


def _write_baseline(out: Path, task: Any) -> None:
    from toolchain.glue.baseline import baseline

    found = baseline(task)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {"schema": 1, "kind": "baseline", "task": task.name, **found})


def _measure(
    walk: Walk,
    models: dict[str, Path],
    keys: dict[str, str],
    artifacts: list[Path],
    classifiers: dict[str, list[Path]],
    plan: Plan,
    text: str,
) -> Path:
    """Perplexity of the checkpoints in PyTorch, then every artifact through the runtime that ships."""
    from bench.run import bench
    from devices.artifact import open_artifact
    from devices.machine import physical_cores
    from toolchain.corpus import heldout_file
    from toolchain.evaluate import evaluate
    from toolchain.glue.metrics import dev_rows

    asked: dict[str, Any] = {"corpus": plan.text, "window": plan.window, "blocks": plan.blocks}
    for name, path in models.items():
        walk.step(
            f"results/checkpoints/{name}",
            f"perplexity of {name} in PyTorch",
            [keys[name], asked, text],
            lambda out, path=path: evaluate(path, out=out, **asked),  # type: ignore[misc]
        )
    # One thread count for all, so that what is compared differs in nothing else.
    shared: dict[str, Any] = {
        "threads": physical_cores(),
        "rounds": plan.rounds,
        "seed": plan.seed,
        "say": walk.say,
    }
    walk.step(
        "results/decoders",
        f"{len(artifacts)} artifacts measured on this machine, {plan.rounds} rounds in turn",
        [[open_artifact(path).sha256 for path in artifacts], asked, text, plan.rounds],
        lambda out: bench(
            artifacts,
            out,
            **{**asked, "corpus": heldout_file(plan.text)},
            corpus_name=Path(plan.text).name,
            **shared,
        ),
    )
    for name, paths in classifiers.items():
        walk.step(
            f"results/{name}",
            f"{name}: accuracy and speed of {len(paths)} int8 classifiers",
            [
                [open_artifact(path).sha256 for path in paths],
                sha256(walk.out / "tasks" / name / "dev.tsv"),
                plan.rounds,
            ],
            lambda out, name=name, paths=paths: bench(  # type: ignore[misc]
                paths, out, task=dev_rows(name, walk.out / "tasks"), **shared
            ),
        )
    return walk.out / "results"
