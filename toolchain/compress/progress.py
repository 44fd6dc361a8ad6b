"""A training run's progress: one bar on stderr, or a line now and then where there is no terminal; its time."""

import contextlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from devices.files import write_json
from toolchain.compress.cost import Energy
from toolchain.compress.objectives.taid import Pace


class Bar(TrainerCallback):
    """Steps, loss and tokens/s; held-out loss as a line of its own. `tokens` is what one step sees."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.live = sys.stderr.isatty()
        self.bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar where an earlier run stopped."""
        self.first, self.start, self.said = state.global_step, time.monotonic(), time.monotonic()
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            disable=not (self.live and state.is_world_process_zero),
            dynamic_ncols=True,
        )
        if state.global_step and state.is_world_process_zero:
            click.echo(f"  going on from the snapshot at step {state.global_step}", err=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance the bar."""
        if self.bar is not None:
            self.bar.update(1)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Show the newest loss; without a terminal, one line in ten seconds."""
        if not logs or not state.is_world_process_zero:
            return
        now = time.monotonic()
        speed = (state.global_step - self.first) * self.tokens / max(now - self.start, 1e-9)
        if "eval_loss" in logs:
            with tqdm.external_write_mode(sys.stderr):
                click.echo(f"  step {state.global_step}: held-out loss {logs['eval_loss']:.4f}", err=True)
        elif "loss" in logs and self.bar is not None:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", tokens_s=f"{speed:.0f}")
            if not self.live and now - self.said > 10:
                self.said = now
                step = f"step {state.global_step}/{state.max_steps}"
                click.echo(f"  {step}: loss {logs['loss']:.3f}, {speed:.0f} tokens/s", err=True)

    def close(self) -> None:
        """Close the bar, however training ended."""
        if self.bar is not None:
            self.bar.close()


class Clock(TrainerCallback):
    """Seconds of training behind the newest snapshot or the end, those of earlier runs included.

    `file` keeps them beside the snapshots, so that neither an interrupt nor a kill loses them.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.earlier, self.start = file, 0.0, time.monotonic()
        with contextlib.suppress(OSError, ValueError):
            self.earlier = float(json.loads(file.read_text()))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start to count."""
        self.start = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the time that went into the snapshot just written."""
        if state.is_world_process_zero:
            write_json(self.file, self.seconds())

    def seconds(self) -> float:
        """Until now."""
        return self.earlier + time.monotonic() - self.start


class Meter(TrainerCallback):
    """Joules of training behind the newest snapshot or the end, earlier runs' included; None without a counter."""

    def __init__(self, file: Path) -> None:
        self.file, self.earlier, self.energy = file, 0.0, Energy()
        with contextlib.suppress(OSError, ValueError):
            self.earlier = float(json.loads(file.read_text()))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start to count."""
        self.energy = Energy()

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the counter, before it turns over."""
        self.energy.joules()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the energy that went into the snapshot just written."""
        if state.is_world_process_zero and (joules := self.joules()) is not None:
            write_json(self.file, joules)

    def joules(self) -> float | None:
        """Until now."""
        now = self.energy.joules()
        return None if now is None else self.earlier + now


class Remembered(TrainerCallback, ExportableState):
    """An objective's `pace`, in every snapshot and back from the one that a run goes on from."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into a snapshot's trainer_state.json."""
        return {"args": {}, "attributes": asdict(self.pace)}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the pace of the snapshot, if there is one.

        Not by the Trainer's own restoring: it makes a new callback, which the loss would not know of.
        """
        for name, value in state.stateful_callbacks[type(self).__name__]["attributes"].items():
            setattr(self.pace, name, value)
