"""Fine-tuning's progress: how many steps are done, a line of plain words after each epoch; what snapshots hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from devices.progress import Progress
from toolchain.glue.methods.method import Remembered
from toolchain.glue.tasks import Task

BESIDE = "beside.pt"  # in a snapshot: what the loss trains besides student and modules of the stage


class Epochs(TrainerCallback):
    """A bar or a line now and then over the steps; the dev metric after each epoch told to `say`.

    Epochs are counted on from those `done` in an earlier stage, of `epochs` in all.
    """

    def __init__(self, task: Task, say: Callable[[str], None], done: int, epochs: int) -> None:
        self.task, self.say, self.done, self.epochs = task, say, done, epochs

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar."""
        self.bar = Progress(state.max_steps - state.global_step, self.task.name, "step")
        if 0 < state.global_step < state.max_steps:
            epoch = self.done + round(state.epoch)
            self.say(f"{self.task.name}: going on behind epoch {epoch} of {self.epochs}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance the bar."""
        self.bar.update()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Say how good the model is after this epoch."""
        if metrics is None:
            return
        value = f"{self.task.metric} {metrics['eval_value']:.3f}"
        self.say(f"{self.task.name}: epoch {self.done + round(state.epoch)} of {self.epochs}, dev {value}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self.bar.close()


class Beside(TrainerCallback):
    """What a stage trains by itself, in every snapshot and back from the one that a run goes on from."""

    def __init__(self, part: Remembered, resumed: str | None) -> None:
        self.part, self.resumed = part, resumed

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the snapshot's, if there is one."""
        import torch

        if self.resumed is not None:
            self.part.load_state_dict(torch.load(Path(self.resumed) / BESIDE, weights_only=True))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Into the snapshot just written."""
        import torch

        torch.save(self.part.state_dict(), Path(args.output_dir) / f"checkpoint-{state.global_step}" / BESIDE)
