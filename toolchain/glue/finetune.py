"""Fine-tuning a decoder on a labelled task by a method of toolchain/glue/methods/: what is asked, refused, written."""

from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError, unknown
from devices.files import read_record, sha256, write_json
from toolchain import __version__
from toolchain.compress.faults import plain_faults
from toolchain.compress.unfinished import WORK, unfinished
from toolchain.glue.cached import cached_rows, refuse_cache, source
from toolchain.glue.methods import METHODS
from toolchain.glue.methods.method import Setting, resolve, split_epochs
from toolchain.glue.methods.teacher import find, open_teacher
from toolchain.glue.tasks import Task, sample
from toolchain.glue.tuning import Run, tune

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from export.checkpoint import Checkpoint

SCHEMA = 1
SCHEDULE = ("epochs", "batch", "lr", "seed")
MAX_TOKENS = 128  # GLUE's customary length; the published scripts of the study use it too


@plain_faults()
def finetune(
    model: Path,
    task: Task,
    out: Path,
    *,
    method: str = "finetune",
    teacher: Path | None = None,
    options: Mapping[str, Any] | None = None,
    epochs: int = 3,
    batch: int = 16,
    lr: float = 5e-5,
    max_tokens: int | None = None,
    seed: int = 0,
    rows: int | None = None,
    cache_teacher: str | None = None,
    force: bool = False,
    command: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fine-tune the checkpoint `model` on `task`, write the classifier to `out`, return its glue.json.

    The dev metric is taken after each epoch and told to `say`; the weights of the best epoch are kept, in
    float32. A run that was stopped behind an epoch goes on from there when it is called again. `teacher` is a
    classifier for the same task, or a folder of such by task; `options` are the method's, as texts or values.
    `rows` train rows drawn by `seed` (all of them if None), `max_tokens` per row (128, or the models' positions
    where they are fewer). The same seed on the same machine gives the same weights. `cache_teacher` is a folder
    (AUTO: the usual one) that keeps the teacher's answers to the rows: it is asked once for each, or not at all
    where an earlier run did so. `command` is recorded as what made it.

    Raises:
        UserError: unknown method or option, a method that does not do for the task, a teacher that is missing,
            not wanted or of another task, a checkpoint or data that cannot be read, a loss that is not a number,
            a cache of something else.
    """
    from toolchain.quiet import quiet

    model, out = Path(model), Path(out)
    settings = {"epochs": epochs, "batch": batch, "lr": lr, "seed": seed}
    cached = cache_teacher is not None
    asked = request(
        model, task, method, settings, max_tokens, rows, teacher=teacher, options=options, cached=cached
    )
    with unfinished(out, asked, force=force, say=lambda line: say(f"{task.name}: {line}")) as staging:
        guide, own = None if teacher is None else find(Path(teacher), task, seed), None
        if METHODS[method].teacher == "own" and guide is None:
            guide = staging / WORK / "teacher"
            own = _own_teacher(model, task, guide, settings, max_tokens, rows, say)
        with quiet():
            found = _tuned(model, guide, task, asked, staging, cache_teacher, say)
        found["hours"] = round(found["hours"] + (own["hours"] if own else 0), 4)
        record = {
            **asked,
            "command": command,
            "own_teacher": own and {key: own[key] for key in ("sha256", "value")},
            "value": max(found["values"]),
            **found,
            "compression": read_record(model / "compression.json"),
            "training": read_record(model / "training.json"),
        }
        write_json(staging / "glue.json", record)
    return record


def _tuned(
    model: Path,
    guide: Path | None,
    task: Task,
    asked: dict[str, Any],
    staging: Path,
    cache: str | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train, and save the best epoch in `staging`; what glue.json says of it: values after each epoch, hours."""
    train, dev = sample(task.rows("train"), asked["rows"], asked["seed"]), task.rows("dev")
    train_data, dev_data = (encoded(model, task, part, asked["max_tokens"]) for part in (train, dev))
    setting, cached = _setting(model, guide, task, asked), None
    if cache is not None and guide is not None:
        about = source(guide, task.path / task.files["train"], asked["max_tokens"])
        hidden = METHODS[asked["method"]].hidden(setting)
        cached = cached_rows(cache, train_data, setting.guide, hidden, about, say)
    settings = {key: asked[key] for key in SCHEDULE}
    run = Run(task, train_data, dev_data, settings, staging / WORK / "snapshots", say, cached)
    values, seconds = tune(asked["method"], METHODS[asked["method"]], setting, run)
    _save(setting.student, model, staging)
    asking = None if cached is None else round(cached.seconds / 3600, 4)  # of whichever run computed it
    return {"values": values, "hours": seconds / 3600, "cache_hours": asking}


def request(
    model: Path,
    task: Task,
    method: str,
    settings: dict[str, Any],
    max_tokens: int | None,
    rows: int | None,
    *,
    teacher: Path | None = None,
    options: Mapping[str, Any] | None = None,
    cached: bool = False,
) -> dict[str, Any]:
    """The part of glue.json that is known beforehand: two runs with the same one give the same classifier.

    UserError for all that `finetune` refuses but a loss that is not a number; nothing heavy is loaded.
    """
    from export.architecture import check
    from export.checkpoint import open_checkpoint

    if method not in METHODS:
        raise unknown("method", method, METHODS)
    resolved = resolve(method, METHODS[method], options)
    split_epochs(method, METHODS[method], resolved, settings["epochs"])
    if not (isfinite(settings["lr"]) and settings["lr"] > 0):
        raise UserError(f"--lr {settings['lr']}: must be a number above 0")
    student = open_checkpoint(model)
    positions = check(student).positions
    if max_tokens is not None and max_tokens > positions:
        raise UserError(
            f"{model}: has {positions} positions, {max_tokens} tokens do not fit; lower --max-tokens"
        )
    max_tokens = max_tokens or min(MAX_TOKENS, positions)
    guide = None if teacher is None else find(Path(teacher), task, settings["seed"])
    _refuse_method(method, student, guide, task, max_tokens)
    if cached:
        refuse_cache(method, guide)
    train, dev = sample(task.rows("train"), rows, settings["seed"]), task.rows("dev")
    return {
        "schema": SCHEMA,
        "toolchain": __version__,
        "base": _named(model),
        "task": task.name,
        **{key: value for key, value in task.summary().items() if key != "name"},
        "data": {split: sha256(task.path / task.files[split]) for split in ("train", "dev")},
        "method": method,
        "options": resolved or None,
        "teacher": None if guide is None else _named(guide),
        **settings,
        "cached": cached or None,  # the same answers, but for the padding they were computed with
        "max_tokens": max_tokens,
        "rows": len(train),
        "dev_rows": len(dev),
    }


def _named(checkpoint: Path) -> dict[str, str]:
    from export.checkpoint import identity

    return {"name": checkpoint.resolve().name, "sha256": identity(checkpoint)}


def _refuse_method(
    method: str, student: "Checkpoint", guide: Path | None, task: Task, max_tokens: int
) -> None:
    """UserError where the method and its teacher do not do for this student and task."""
    spec, teacher = METHODS[method], None
    if spec.teacher == "needed" and guide is None:
        raise UserError(
            f"method {method}: learns from a teacher; pass --teacher with a classifier for {task.name} "
            "that `toolchain glue` made"
        )
    if guide is not None:
        if spec.teacher == "none":
            takers = ", ".join(name for name, other in METHODS.items() if other.teacher != "none")
            raise UserError(f"method {method}: takes no teacher; leave --teacher out or choose {takers}")
        teacher = open_teacher(method, guide, student.path, task, max_tokens)
    reason = spec.refuse(student, teacher, task.labels is None)
    if reason:
        raise UserError(f"method {method}: {reason}")


def _own_teacher(
    model: Path,
    task: Task,
    out: Path,
    settings: dict[str, Any],
    max_tokens: int | None,
    rows: int | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The student itself, fine-tuned with the same settings; returns what glue.json says of it."""
    from export.checkpoint import identity

    record = read_record(out / "glue.json") or finetune(
        model,
        task,
        out,
        max_tokens=max_tokens,
        rows=rows,
        say=lambda line: say(f"teacher: {line}"),
        **settings,
    )
    return {"sha256": identity(out), "value": record["value"], "hours": record["hours"]}


def _setting(model: Path, guide: Path | None, task: Task, asked: dict[str, Any]) -> Setting:
    """The student with a fresh head and the frozen teacher, loaded."""
    from toolchain.compress.trainer import fuse_gelu
    from toolchain.glue.classifier import load

    teacher = None if guide is None else load(guide).requires_grad_(False)
    student = new_classifier(model, task, asked["seed"])
    for network in (student, teacher):
        if network is not None:
            fuse_gelu(network)
    return Setting(student, teacher, model, asked["options"] or {}, asked["seed"])


def encoded(model: Path, task: Task, rows: list, max_tokens: int) -> list[dict[str, Any]]:
    """Rows as the Trainer takes them, {"input_ids", "labels"}, shortest first so that batches are alike."""
    from toolchain.glue.classifier import encode

    ids = encode(model, rows, max_tokens)
    examples = [{"input_ids": i, "labels": row.label} for i, row in zip(ids, rows, strict=True)]
    return sorted(examples, key=lambda example: len(example["input_ids"]))


def new_classifier(model: Path, task: Task, seed: int) -> "PreTrainedModel":
    """The checkpoint's body in float32 under a fresh head for the task's labels, drawn by `seed`."""
    import torch
    from transformers import AutoModelForSequenceClassification, set_seed

    from toolchain.glue.classifier import separator

    set_seed(seed)
    end = separator(model)
    labels = task.labels or ("score",)
    return AutoModelForSequenceClassification.from_pretrained(
        model,
        dtype=torch.float32,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        problem_type="regression" if task.labels is None else "single_label_classification",
        # The classifier reads the last token that is no padding, and must be told which that is; a base
        # may name several end tokens, or others in generation_config.json, which a classifier has not.
        pad_token_id=end,
        eos_token_id=end,
        ignore_mismatched_sizes=True,
    )


def _save(student: "PreTrainedModel", base: Path, staging: Path) -> None:
    """The best epoch's weights, its config, and the base's text files."""
    from toolchain.compress.truncate import copy_inherited

    student.save_pretrained(staging, max_shard_size="1TB")
    copy_inherited(base, staging)
    # It may name other end tokens than the one that pads rows and stands between texts here.
    (staging / "generation_config.json").unlink(missing_ok=True)
