"""Fine-tuning a decoder on a labelled task, on transformers' Trainer (docs/adr/0003-trainer.md)."""

import shutil
import time
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError, unknown
from devices.files import read_record, sha256, staged, write_json
from toolchain import __version__
from toolchain.compress.faults import plain_faults
from toolchain.glue.tasks import Task, sample

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, Trainer

SCHEMA = 1
MAX_TOKENS = 128  # GLUE's customary length; the published scripts of the study use it too


def task_loss(model: "PreTrainedModel", batch: "dict[str, torch.Tensor]") -> "torch.Tensor":
    """Cross-entropy of the labels [rows], or the mean squared error of a regression; a scalar."""
    return model(**batch).loss


# How to fine-tune, by name: what turns the model and a batch (input_ids, attention_mask, labels) into a loss.
METHODS: "dict[str, Callable[[PreTrainedModel, dict[str, torch.Tensor]], torch.Tensor]]" = {
    "finetune": task_loss,
}


@plain_faults()
def finetune(
    model: Path,
    task: Task,
    out: Path,
    *,
    method: str = "finetune",
    epochs: int = 3,
    batch: int = 16,
    lr: float = 5e-5,
    max_tokens: int | None = None,
    seed: int = 0,
    rows: int | None = None,
    force: bool = False,
    command: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fine-tune the checkpoint `model` on `task`, write the classifier to `out`, return its glue.json.

    The dev metric is taken after each epoch and told to `say`; the weights of the best epoch are kept, in
    float32. `rows` train rows drawn by `seed` (all of them if None), `max_tokens` per row (128, or the
    model's positions where they are fewer). The same seed on the same machine gives the same weights.
    `command` is recorded as what made it.

    Raises:
        UserError: unknown method, a checkpoint or data that cannot be read, a loss that is not a number.
    """
    from toolchain.quiet import quiet

    model, out = Path(model), Path(out)
    settings = {"epochs": epochs, "batch": batch, "lr": lr, "seed": seed}
    asked = request(model, task, method, settings, max_tokens, rows)
    train, dev = sample(task.rows("train"), rows, seed), task.rows("dev")
    start = time.monotonic()
    with staged(out, force=force) as staging:
        data = [encoded(model, task, part, asked["max_tokens"]) for part in (train, dev)]
        with quiet():
            trainer = _trainer(model, task, data, staging / "snapshots", method, settings, say)
            trainer.train()
            _save(trainer, model, staging)
        values = [entry["eval_value"] for entry in trainer.state.log_history if "eval_value" in entry]
        record = {
            **asked,
            "command": command,
            "value": max(values),
            "values": values,  # after each epoch
            "hours": round((time.monotonic() - start) / 3600, 4),
            "compression": read_record(model / "compression.json"),
            "training": read_record(model / "training.json"),
        }
        write_json(staging / "glue.json", record)
    return record


def request(
    model: Path, task: Task, method: str, settings: dict[str, Any], max_tokens: int | None, rows: int | None
) -> dict[str, Any]:
    """The part of glue.json that is known beforehand: two runs with the same one give the same classifier.

    UserError for an unknown method, a checkpoint or data that cannot be read, or too long rows.
    """
    from export.architecture import check
    from export.checkpoint import identity, open_checkpoint

    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if not (isfinite(settings["lr"]) and settings["lr"] > 0):
        raise UserError(f"--lr {settings['lr']}: must be a number above 0")
    positions = check(open_checkpoint(model)).positions
    if max_tokens is not None and max_tokens > positions:
        raise UserError(
            f"{model}: has {positions} positions, {max_tokens} tokens do not fit; lower max tokens"
        )
    train, dev = sample(task.rows("train"), rows, settings["seed"]), task.rows("dev")
    return {
        "schema": SCHEMA,
        "toolchain": __version__,
        "base": {"name": model.resolve().name, "sha256": identity(model)},
        "task": task.name,
        **{key: value for key, value in task.summary().items() if key != "name"},
        "data": {split: sha256(task.path / task.files[split]) for split in ("train", "dev")},
        "method": method,
        **settings,
        "max_tokens": max_tokens or min(MAX_TOKENS, positions),
        "rows": len(train),
        "dev_rows": len(dev),
    }


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


def _arguments(folder: Path, settings: dict[str, Any]) -> Any:
    import torch
    from transformers import TrainingArguments

    gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["batch"],
        per_device_eval_batch_size=2 * settings["batch"],
        learning_rate=settings["lr"],
        lr_scheduler_type="linear",
        warmup_steps=0.06,
        weight_decay=0.01,
        optim="adamw_torch_fused",
        bf16=gpu,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        seed=settings["seed"],
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="best",
        load_best_model_at_end=True,
        metric_for_best_model="value",
        greater_is_better=True,
        save_only_model=True,
        save_total_limit=1,
        logging_strategy="no",
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )


def _trainer(
    model: Path,
    task: Task,
    data: list[list[dict[str, Any]]],
    snapshots: Path,
    method: str,
    settings: dict[str, Any],
    say: Callable[[str], None],
) -> "Trainer":
    """The Trainer with the method's loss, ready to run; `data` is [train, dev]."""
    import torch
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback

    from toolchain.compress.trainer import fuse_gelu
    from toolchain.glue.classifier import pad
    from toolchain.glue.metrics import decide, score
    from toolchain.glue.progress import Epochs

    network = new_classifier(model, task, settings["seed"])
    fuse_gelu(network)
    pad_id, kind = network.config.pad_token_id, torch.float32 if task.labels is None else torch.int64

    def collate(examples: list[dict[str, Any]]) -> "dict[str, torch.Tensor]":
        labels = torch.tensor([example["labels"] for example in examples], dtype=kind)
        return {**pad([example["input_ids"] for example in examples], pad_id), "labels": labels}

    def metric(found: Any) -> dict[str, float]:
        return {"value": score(task.metric, decide(task.problem, found.predictions), found.label_ids)}

    class Tuner(Trainer):
        """The Trainer with our loss, stopped by one that is not a number."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """A scalar in training; with the logits in evaluation."""
            if not model.training:
                return super().compute_loss(model, inputs, return_outputs)
            loss = METHODS[method](model, inputs)
            if not torch.isfinite(loss):
                raise UserError(
                    f"task {task.name}: the loss is {loss.item()} at step {self.state.global_step + 1}; "
                    f"lower --lr ({settings['lr']:g}) and run again"
                )
            return loss

    trainer = Tuner(
        model=network,
        args=_arguments(snapshots, settings),
        train_dataset=data[0],
        eval_dataset=data[1],
        data_collator=collate,
        compute_metrics=metric,
        callbacks=[Epochs(task, say)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _save(trainer: "Trainer", base: Path, staging: Path) -> None:
    """The best epoch's weights, its config, and the base's text files; the snapshots go."""
    from toolchain.compress.truncate import copy_inherited

    trainer.model.save_pretrained(staging, max_shard_size="1TB")  # type: ignore[union-attr,operator]
    copy_inherited(base, staging)
    # It may name other end tokens than the one that pads rows and stands between texts here.
    (staging / "generation_config.json").unlink(missing_ok=True)
    shutil.rmtree(staging / "snapshots")
