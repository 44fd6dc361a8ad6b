"""Fine-tuning's progress: how many steps are done, on stderr, and a line of plain words after each epoch."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from devices.progress import Progress
from toolchain.glue.tasks import Task


class Epochs(TrainerCallback):
    """A bar or a line now and then over the steps; the dev metric after each epoch told to `say`.

    Epochs are counted on from those `done` in an earlier stage, of `epochs` in all.
    """

    def __init__(self, task: Task, say: Callable[[str], None], done: int, epochs: int) -> None:
        self.task, self.say, self.done, self.epochs = task, say, done, epochs

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar."""
        self.bar = Progress(state.max_steps, self.task.name, "step")

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
