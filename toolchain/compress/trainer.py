"""transformers' Trainer with our loss, our blocks and our progress (docs/adr/0003-trainer.md)."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError, unknown
from export.checkpoint import read_header
from toolchain.compress.cached import TOP, CachedTeacher
from toolchain.compress.objectives import LEARNING_RATE, OBJECTIVES, Objective
from toolchain.compress.objectives.rows import Rows, Settings, cross_entropy, next_token
from toolchain.compress.objectives.taid import Pace

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments


@dataclass(frozen=True)
class Training:
    """How to train. None means: derived from the model or the corpus, and recorded as what it became."""

    objective: str = "lm"  # lm, or a name in OBJECTIVES (needs a teacher)
    corpus: str = "stdlib"
    heldout: str | None = None
    tokens: int | None = None  # default: one pass over the corpus
    steps: int | None = None  # instead of tokens
    epochs: float | None = None  # instead of both: passes over the corpus, or over its share
    share: float = 1.0  # of the corpus's blocks, drawn by the seed
    window: int | None = None  # tokens a block; default: min(512, the model's positions)
    batch: int = 8  # blocks a step, over all processes
    micro_batch: int | None = None  # at most so many at once in a process, their gradients added up
    lr: float | None = None  # default: the objective's
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.01
    dropout: float = 0.0
    temperature: float | None = None  # default: the objective's
    alpha: float | None = None  # weight of the teacher's part; default: the objective's
    mix: float | None = None  # skew-kl's lambda, jsd's beta; default: the objective's
    cache_teacher: str | None = None  # a folder for the teacher's answers, AUTO for the usual one; None: none
    cache_top: int | None = None  # of each answer, so many tokens are cached; default: TOP
    seed: int = 0
    snapshot_every: int = 200  # steps
    patience: int | None = None  # stop after so many epochs without a better held-out loss, keep the best
    gradient_checkpointing: bool = False
    heldout_blocks: int = 64  # at most so many blocks for perplexity before and after


# Of every float in Training: which finite ones make sense. The command line lets nan through: it is below nothing.
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda value: value > 0, "a number above 0"),
    "epochs": (lambda value: value > 0, "a number above 0"),
    "share": (lambda value: 0 < value <= 1, "a share above 0, at most 1"),
    "warmup": (lambda value: 0 <= value <= 1, "a share from 0 to 1"),
    "weight_decay": (lambda value: value >= 0, "a number from 0"),
    "dropout": (lambda value: 0 <= value < 1, "a share from 0 to below 1"),
    "temperature": (lambda value: value > 0, "a number above 0"),
    "alpha": (lambda value: 0 <= value <= 1, "a share from 0 to 1"),
    "mix": (lambda value: 0 < value < 1, "a share above 0 and below 1"),
}


def refuse(training: Training, positions: int | None = None) -> None:
    """UserError for a budget said twice, a number out of its range, or a window longer than `positions`."""
    for name, (fits, what) in RANGES.items():
        value = getattr(training, name)
        if value is not None and not (isfinite(value) and fits(value)):
            raise UserError(f"--{name.replace('_', '-')} {value}: must be {what}")
    budgets = [
        (n, getattr(training, n)) for n in ("tokens", "steps", "epochs") if getattr(training, n) is not None
    ]
    if len(budgets) > 1:
        (one, value), (other, second) = budgets[:2]
        raise UserError(f"--{one} {value}: --{other} {second} is a budget, too; give one of the two")
    if positions is not None and training.window is not None and training.window > positions:
        raise UserError(f"--window {training.window}: the model has {positions} positions; lower it")


def resolved(training: Training) -> Training:
    """`training` with the objective's own settings where none are given.

    Raises:
        UserError: an unknown objective, a setting that it does not have.
    """
    if training.objective == "lm":
        return replace(training, lr=training.lr or LEARNING_RATE)
    if training.objective not in OBJECTIVES:
        raise unknown("objective", training.objective, OBJECTIVES)
    default = OBJECTIVES[training.objective]
    given = {name: getattr(training, name) for name in ("temperature", "alpha", "mix", "lr")}
    for name, value in given.items():
        if value is None:
            given[name] = getattr(default, name)
        elif getattr(default, name) is None:
            has = [other for other, made in OBJECTIVES.items() if getattr(made, name) is not None]
            raise UserError(
                f"--{name} {value}: objective '{training.objective}' has no such setting; "
                f"leave it out, or choose one of {', '.join(has)}"
            )
    if training.cache_teacher is None:
        if training.cache_top is not None:
            raise UserError(f"--cache-top {training.cache_top}: caches nothing alone; add --cache-teacher")
    elif default.needs_all:
        raise UserError(
            f"--cache-teacher: objective '{training.objective}' {default.needs_all}; leave it out, or choose "
            f"one of {', '.join(name for name, made in OBJECTIVES.items() if not made.needs_all)}"
        )
    else:
        given["cache_top"] = training.cache_top or TOP
    return replace(training, **given)


def make_trainer(
    model: "PreTrainedModel",
    teacher: "PreTrainedModel | CachedTeacher | None",
    blocks: "np.ndarray",
    heldout: "np.ndarray",
    training: Training,
    snapshots: Path,
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """The Trainer of `model` on `blocks` int64 [blocks, window], with our loss and `callbacks`, ready to run.

    With patience set, held-out loss on `heldout` int64 [blocks, window] is taken after each pass and the best
    weights are kept. Both models are moved to where they will run. UserError (from the run) where the loss is
    not a number.
    """
    import torch
    from transformers import EarlyStoppingCallback, Trainer
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from toolchain.compress.progress import Remembered

    arguments = _arguments(training, len(blocks), snapshots)
    objective = OBJECTIVES.get(training.objective)
    asked = None if isinstance(teacher, CachedTeacher) else teacher
    pace = objective.pace() if objective and objective.pace else None
    cached = teacher if isinstance(teacher, CachedTeacher) else None
    if isinstance(teacher, torch.nn.Module):
        torch.nn.Module.to(teacher, arguments.device)

    class Distiller(Trainer):
        """The Trainer with our loss: the objective's while training, plain cross-entropy on held-out text."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            distil = objective if model.training else None
            loss, output = batch_loss(model, inputs, asked, training, distil, pace)
            if model.training:
                if not torch.isfinite(loss):
                    raise _not_a_number(loss.item(), self.state.global_step, training, snapshots)
                if pace is not None:
                    seen = loss.detach()
                    mean = self.accelerator.reduce(seen, "mean") if processes() > 1 else seen
                    pace.move(mean.item(), (self.state.global_step + 1) / self.state.max_steps)
            return (loss, output) if return_outputs else loss

    trainer = Distiller(
        model=model,
        args=arguments,
        train_dataset=Blocks(blocks, cached),
        eval_dataset=Blocks(heldout),
        callbacks=[*callbacks, Remembered(pace)] if pace else callbacks,
    )
    # Each micro-batch's loss is a mean of its own; said otherwise, the Trainer would add them up.
    trainer.model_accepts_loss_kwargs = False
    if training.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(training.patience))
    for chatter in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(chatter)
    return trainer


def _arguments(training: Training, blocks: int, snapshots: Path) -> "TrainingArguments":
    """The Trainer's settings for `training` on so many blocks; everything it would say or report is off."""
    import torch
    from transformers import TrainingArguments

    gpu = torch.cuda.is_available()
    world = processes()
    if training.batch % world:
        raise UserError(f"--batch {training.batch}: cannot be shared by {world} processes; choose a multiple")
    at_once = min(training.micro_batch or training.batch, training.batch // world)
    if training.batch % (world * at_once):
        raise UserError(
            f"--micro-batch {training.micro_batch}: {world} of them do not add up to --batch {training.batch}; "
            "choose one that divides it"
        )
    assert training.steps is not None and training.lr is not None
    patient = training.patience is not None
    every = max(1, blocks // training.batch) if patient else training.snapshot_every
    arguments = TrainingArguments(
        output_dir=str(snapshots),
        max_steps=training.steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=training.batch // world // at_once,
        per_device_eval_batch_size=8,
        learning_rate=training.lr,
        lr_scheduler_type="cosine",
        warmup_steps=round(training.warmup * training.steps),
        weight_decay=training.weight_decay,
        adam_beta2=0.95,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        bf16=gpu,
        activation_checkpointing=training.gradient_checkpointing,
        seed=training.seed,
        data_seed=training.seed,
        logging_steps=max(1, min(20, training.steps // 20)),
        save_steps=every,
        save_total_limit=2,
        eval_strategy="steps" if patient else "no",
        eval_steps=every,
        load_best_model_at_end=patient,
        metric_for_best_model="eval_loss" if patient else None,
        use_cpu=not gpu,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
        disable_tqdm=True,
        log_level="error",
    )
    # Several GPUs without a launcher: one, or DataParallel would make every step that many times larger.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def batch_loss(
    model: Any,
    inputs: "dict[str, torch.Tensor]",
    teacher: "PreTrainedModel | None",
    training: Training,
    objective: Objective | None,
    pace: Pace | None = None,
) -> tuple["torch.Tensor", Any]:
    """The loss of one batch and the model's output; plain cross-entropy where there is no objective.

    `inputs` holds input_ids and labels [batch, window], and from a cached teacher top_ids [batch, window, k]
    and top [batch, window, k + 1]; without these the teacher itself is asked.
    """
    import torch

    ids, labels = inputs["input_ids"], inputs["labels"]
    if objective is None:
        output = model(input_ids=ids, use_cache=False)
        return cross_entropy(*next_token(output.logits, labels)), output
    how: dict[str, Any] = {"use_cache": False, "output_hidden_states": objective.hidden}
    output = model(input_ids=ids, **how)
    assert training.temperature is not None
    settings = Settings(training.temperature, training.alpha, training.mix, pace.t if pace else None)
    if "top" in inputs:
        values = inputs["top"].float().log_softmax(-1)  # what float16 left is made a distribution again
        student, targets, top_ids, values = next_token(output.logits, labels, inputs["top_ids"], values)
        return objective.loss(Rows(student, targets, top=(top_ids, values)), settings), output
    assert teacher is not None
    with torch.no_grad():
        wanted = teacher(input_ids=ids, **how)
    hidden = [output.hidden_states[-1], wanted.hidden_states[-1]] if objective.hidden else []
    student, targets, teacher_logits, *rest = next_token(output.logits, labels, wanted.logits, *hidden)
    return objective.loss(Rows(student, targets, teacher_logits, None, *rest), settings), output


class Blocks:
    """Packed blocks int64 [blocks, window] as a map-style dataset; a block is its own labels.

    With a cached teacher each block comes with the teacher's answers to it, in whatever order they are drawn.
    """

    def __init__(self, blocks: "np.ndarray", cached: CachedTeacher | None = None) -> None:
        self.blocks, self.cached = blocks, cached

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One block, as what the Trainer's collator stacks."""
        item = {"input_ids": self.blocks[index], "labels": self.blocks[index]}
        if self.cached is not None:
            item["top_ids"], item["top"] = self.cached[index]
        return item


def newest_snapshot(snapshots: Path, say: Callable[[str], object] = lambda line: None) -> str | None:
    """The newest whole snapshot; `say` is told of the others, and the first process removes them."""
    newest = None
    for folder in sorted(snapshots.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])):
        if _whole(folder):
            newest = str(folder)
        else:
            step, state = folder.name.split("-")[1], folder / "trainer_state.json"
            if state.is_file() and state.stat().st_size:  # written last
                say(f"the snapshot at step {step} is damaged and is left out")
            else:
                say(
                    f"the snapshot at step {step} was still being written when the run ended; it is not needed"
                )
            if first_process():
                shutil.rmtree(folder)
    return newest


def _not_a_number(loss: float, step: int, training: Training, snapshots: Path) -> UserError:
    """The error for a loss that is no number after `step` whole steps, naming the snapshot to go back to."""
    good = good_snapshot(snapshots)
    kept = f"the last good snapshot is {good}" if good else "no snapshot was taken before it"
    return UserError(
        f"training: the loss is {loss} at step {step + 1}, {kept}; lower --lr ({training.lr}) and run again"
    )


def good_snapshot(snapshots: Path) -> str | None:
    """The newest whole snapshot whose weights are numbers.

    A gradient that was no number leaves such weights behind a loss that still was one: a snapshot of them is
    removed, or every resumed run would end there.
    """
    good = newest_snapshot(snapshots)
    while good and not _finite(Path(good)):
        if first_process():
            shutil.rmtree(good)
        good = newest_snapshot(snapshots) if first_process() else None
    return good


def _finite(snapshot: Path) -> bool:
    """Whether every weight in a snapshot is a number."""
    import torch
    from safetensors.torch import load_file

    files = snapshot.glob("*.safetensors")
    return all(bool(torch.isfinite(w).all()) for file in files for w in load_file(file).values())


def _whole(snapshot: Path) -> bool:
    """Whether what Trainer wrote can be read: its last file (the state), weights, and torch's zip archives."""
    try:
        json.loads((snapshot / "trainer_state.json").read_text())
        weights = list(snapshot.glob("*.safetensors"))
        for file in weights:
            read_header(file)
    except (OSError, ValueError, UserError):
        return False
    return bool(weights) and all(map(zipfile.is_zipfile, [*snapshot.glob("*.pt"), *snapshot.glob("*.pth")]))


def first_process() -> bool:
    """Whether this is the process of `accelerate launch` that writes; true without it."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    """How many processes `accelerate launch` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def fuse_gelu(model: "PreTrainedModel") -> None:
    """GPT-2's `gelu_new` as torch's one fused kernel: the same function, one pass over memory, not seven."""
    from transformers.activations import GELUTanh, NewGELUActivation

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, GELUTanh())
