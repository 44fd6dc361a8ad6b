"""transformers' Trainer with our loss, our blocks and our progress (docs/adr/0003-trainer.md)."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError
from export.checkpoint import read_header
from toolchain.compress.objectives import OBJECTIVES, cross_entropy, next_token

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
    window: int | None = None  # tokens a block; default: min(512, the model's positions)
    batch: int = 8  # blocks a step, over all processes
    lr: float = 5e-4
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.01
    dropout: float = 0.0
    temperature: float | None = None  # default: the objective's
    alpha: float | None = None  # weight of the teacher's part; default: the objective's
    seed: int = 0
    snapshot_every: int = 200  # steps
    patience: int | None = None  # stop after so many epochs without a better held-out loss, keep the best
    gradient_checkpointing: bool = False
    heldout_blocks: int = 64  # at most so many blocks for perplexity before and after


# Of every float in Training: which finite ones make sense. The command line lets nan through: it is below nothing.
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda value: value > 0, "a number above 0"),
    "warmup": (lambda value: 0 <= value <= 1, "a share from 0 to 1"),
    "weight_decay": (lambda value: value >= 0, "a number from 0"),
    "dropout": (lambda value: 0 <= value < 1, "a share from 0 to below 1"),
    "temperature": (lambda value: value > 0, "a number above 0"),
    "alpha": (lambda value: 0 <= value <= 1, "a share from 0 to 1"),
}


def refuse(training: Training, positions: int | None = None) -> None:
    """UserError for a budget said twice, a number out of its range, or a window longer than `positions`."""
    for name, (fits, what) in RANGES.items():
        value = getattr(training, name)
        if value is not None and not (isfinite(value) and fits(value)):
            raise UserError(f"--{name.replace('_', '-')} {value}: must be {what}")
    if training.tokens is not None and training.steps is not None:
        raise UserError(
            f"--tokens {training.tokens}: --steps {training.steps} is a budget, too; give one of the two"
        )
    if positions is not None and training.window is not None and training.window > positions:
        raise UserError(f"--window {training.window}: the model has {positions} positions; lower it")


def make_trainer(
    model: "PreTrainedModel",
    teacher: "PreTrainedModel | None",
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

    arguments = _arguments(training, len(blocks), snapshots)
    if teacher is not None:
        torch.nn.Module.to(teacher, arguments.device)

    class Distiller(Trainer):
        """The Trainer with our loss: plain cross-entropy, or the objective's on both models' logits."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            output = model(input_ids=inputs["input_ids"], use_cache=False)
            loss = language_loss(output.logits, inputs["labels"], inputs["input_ids"], teacher, training)
            if model.training and not torch.isfinite(loss):
                raise UserError(
                    f"training: the loss is {loss.item()} at step {self.state.global_step}; "
                    f"lower --lr ({training.lr}) and run again"
                )
            return (loss, output) if return_outputs else loss

    trainer = Distiller(
        model=model,
        args=arguments,
        train_dataset=Blocks(blocks),
        eval_dataset=Blocks(heldout),
        callbacks=callbacks,
    )
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
    assert training.steps is not None
    patient = training.patience is not None
    every = max(1, blocks // training.batch) if patient else training.snapshot_every
    arguments = TrainingArguments(
        output_dir=str(snapshots),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch // world,
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


def language_loss(
    logits: "torch.Tensor",
    labels: "torch.Tensor",
    ids: "torch.Tensor",
    teacher: "PreTrainedModel | None",
    training: Training,
) -> "torch.Tensor":
    """The loss of one batch: logits [batch, window, vocabulary], labels and ids [batch, window] -> scalar."""
    import torch

    rows, targets = next_token(logits, labels)
    if teacher is None:
        return cross_entropy(rows, targets)
    with torch.no_grad():
        wanted, _ = next_token(teacher(input_ids=ids, use_cache=False).logits, labels)
    return OBJECTIVES[training.objective].loss(rows, wanted, targets, training.temperature, training.alpha)


class Blocks:
    """Packed blocks int64 [blocks, window] as a map-style dataset; a block is its own labels."""

    def __init__(self, blocks: "np.ndarray") -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One block, as what the Trainer's collator stacks."""
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


def newest_snapshot(snapshots: Path, say: Callable[[str], object] = lambda line: None) -> str | None:
    """The newest whole snapshot; `say` is told of the others, and the first process removes them."""
    newest = None
    for folder in sorted(snapshots.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])):
        if _whole(folder):
            newest = str(folder)
        else:
            say(f"the snapshot at step {folder.name.split('-')[1]} is damaged and is left out")
            if first_process():
                shutil.rmtree(folder)
    return newest


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
