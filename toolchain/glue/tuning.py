"""A method's stages on transformers' Trainer (docs/adr/0003-trainer.md): a loss each, the best epoch of all kept."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError
from toolchain.glue.methods.method import STATES, TOLD, Method, Moment, Setting, Stage, split_epochs
from toolchain.glue.tasks import Task
from toolchain.shards import Kept

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, Trainer

EXTRA = "beside"  # where a stage's own modules hang on the student while it trains


@dataclass(frozen=True)
class Run:
    """What all stages have in common: rows as the Trainer takes them, the schedule, and who is told."""

    task: Task
    train: list[dict[str, Any]]
    dev: list[dict[str, Any]]
    settings: dict[str, Any]  # epochs, batch, lr, seed
    snapshots: Path
    say: Callable[[str], None]
    cached: Kept | None = None  # the teacher's answers to the rows of `train`, in their order


def tune(name: str, method: Method, setting: Setting, run: Run) -> tuple[list[float], float]:
    """Train the student of `setting` in place: the dev metric after each epoch of all stages, and the seconds.

    A stage begins with the best epoch of the one before; the student ends as the best epoch of all. A run that
    was stopped goes on from its last epoch: a stage that was finished has nothing left to do.
    """
    from toolchain.compress.progress import Clock
    from toolchain.glue.progress import Beside

    values: list[float] = []
    seconds = 0.0
    best: tuple[float, str] | None = None
    for number, epochs in enumerate(split_epochs(name, method, setting.options, run.settings["epochs"])):
        snapshots = run.snapshots / str(len(values))
        stage, clock = method.stages[number](setting), Clock(snapshots / "seconds.json")
        resumed = _resumed(snapshots, stage, run.say)
        trainer = _stage(stage, setting.student, run, epochs, len(values))
        trainer.add_callback(clock)
        if stage.remembered is not None:
            trainer.add_callback(Beside(stage.remembered, resumed))
        trainer.train(resume_from_checkpoint=resumed)
        seconds += clock.seconds()
        if hasattr(setting.student, EXTRA):
            delattr(setting.student, EXTRA)
        state = trainer.state
        assert state.best_metric is not None and state.best_model_checkpoint is not None
        values += [entry["eval_value"] for entry in state.log_history if "eval_value" in entry]
        if best is not None and best[0] > state.best_metric:
            _restore(setting.student, Path(best[1]))
        else:
            best = (state.best_metric, state.best_model_checkpoint)
    return values, seconds


def _resumed(snapshots: Path, stage: Stage, say: Callable[[str], object]) -> str | None:
    """The snapshot a stage goes on from; one that was stopped before all of it was written goes."""
    from toolchain.compress.trainer import newest_snapshot
    from toolchain.glue.progress import BESIDE

    found = newest_snapshot(snapshots, say)
    while found and stage.remembered is not None and not (Path(found) / BESIDE).is_file():
        shutil.rmtree(found)
        found = newest_snapshot(snapshots, say)
    return found


def _restore(student: "PreTrainedModel", snapshot: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(snapshot / "model.safetensors")
    student.load_state_dict({name: weights[name] for name in student.state_dict()})


def _stage(stage: Stage, student: "PreTrainedModel", run: Run, epochs: int, done: int) -> "Trainer":
    """The Trainer of one stage, ready to run; `done` epochs went before."""
    import torch
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback

    from toolchain.glue.metrics import decide, score
    from toolchain.glue.progress import Epochs

    task, settings = run.task, run.settings
    if stage.extra is not None:
        # A part of the student while it trains: optimized, clipped, moved and reset with it.
        student.add_module(EXTRA, stage.extra)

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
            step, steps = self.state.global_step, self.state.max_steps
            with self.accelerator.autocast():
                loss = stage.loss(model, inputs, Moment(step, steps, step * epochs // steps))
            if not torch.isfinite(loss):
                raise _not_a_number(run, loss.item(), done + step * epochs // steps, step)
            return loss

    trainer = Tuner(
        model=student,
        args=_arguments(run.snapshots / str(done), settings, epochs),
        train_dataset=[{**example, "row": row} for row, example in enumerate(run.train)],
        eval_dataset=run.dev,
        data_collator=partial(collate, run, student.config.pad_token_id),
        compute_metrics=metric,
        callbacks=[Epochs(task, run.say, done, settings["epochs"])],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _not_a_number(run: Run, loss: float, epoch: int, step: int) -> UserError:
    """The error for a loss that is no number in a stage's `step`, naming the epoch that is kept to go on from."""
    from toolchain.compress.trainer import good_snapshot

    stages = sorted(run.snapshots.iterdir(), key=lambda stage: int(stage.name)) if epoch else []
    found = [good for stage in stages if (good := good_snapshot(stage)) is not None]
    kept = "no epoch was finished before it; lower"
    if found:
        kept = f"the last good epoch is kept ({found[-1]}) and the same command goes on from it; or lower"
    return UserError(
        f"task {run.task.name}: the loss is {loss} at epoch {epoch + 1}, step {step + 1}; "
        f"{kept} --lr ({run.settings['lr']:g})"
    )


def collate(run: Run, pad_id: int, examples: list[dict[str, Any]]) -> "dict[str, torch.Tensor]":
    """Rows as a padded batch; training rows, which have a number, with the teacher's answers where it is cached."""
    import numpy as np
    import torch

    from toolchain.glue.classifier import pad

    kind = torch.float32 if run.task.labels is None else torch.int64
    labels = torch.tensor([example["labels"] for example in examples], dtype=kind)
    batch = {**pad([example["input_ids"] for example in examples], pad_id), "labels": labels}
    if run.cached is not None and "row" in examples[0]:
        records = np.stack([run.cached[example["row"]] for example in examples])
        names = {"logits": TOLD, "hidden": STATES}
        batch |= {
            names[field]: torch.from_numpy(records[field].copy()) for field in records.dtype.fields or ()
        }
    return batch


def _arguments(folder: Path, settings: dict[str, Any], epochs: int) -> Any:
    import torch
    from transformers import TrainingArguments

    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
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
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="value",
        greater_is_better=True,
        save_total_limit=2,  # the best one and the last
        logging_strategy="no",
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    # Several GPUs without a launcher: one, or DataParallel would make every step that many times larger.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
