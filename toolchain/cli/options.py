"""Options that several commands share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from devices.files import staging_path

TRAINING = (
    click.option(
        "--corpus",
        default="stdlib",
        show_default=True,
        help="Text: a file, folder, hub:NAME[:CONFIG] or stdlib.",
    ),
    click.option("--heldout", help="Text to measure perplexity on; default: a held-out part of the corpus."),
    click.option(
        "--heldout-blocks",
        type=click.IntRange(min=1),
        default=64,
        show_default=True,
        help="At most so many blocks for perplexity before and after.",
    ),
    click.option(
        "--tokens", type=click.IntRange(min=1), help="Training budget; default: one pass over the corpus."
    ),
    click.option(
        "--steps", type=click.IntRange(min=1), help="Training budget in steps, instead of --tokens."
    ),
    click.option(
        "--epochs",
        type=click.FloatRange(min=0, min_open=True),
        help="Training budget in passes over the corpus, instead of both.",
    ),
    click.option(
        "--share",
        type=click.FloatRange(0, 1, min_open=True),
        default=1.0,
        show_default=True,
        help="Train on such a share of the corpus, drawn by the seed.",
    ),
    click.option(
        "--window", type=click.IntRange(min=8), help="Tokens a block; default: min(512, positions)."
    ),
    click.option(
        "--batch",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="Blocks a step, over all processes.",
    ),
    click.option(
        "--micro-batch",
        type=click.IntRange(min=1),
        help="At most so many blocks at once, their gradients added up: less memory, the same step.",
    ),
    click.option(
        "--lr",
        type=click.FloatRange(min=0, min_open=True),
        help="Peak learning rate; cosine decay.  [default: 0.0005, or the objective's]",
    ),
    click.option(
        "--warmup",
        type=click.FloatRange(0, 1),
        default=0.05,
        show_default=True,
        help="Share of the steps with rising rate.",
    ),
    click.option(
        "--weight-decay", type=click.FloatRange(min=0), default=0.01, show_default=True, help="AdamW's."
    ),
    click.option(
        "--dropout",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.0,
        show_default=True,
        help="On embeddings and residuals.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Order of blocks, dropout, fresh weights.",
    ),
    click.option(
        "--snapshot-every",
        type=click.IntRange(min=1),
        default=200,
        show_default=True,
        help="Steps between snapshots to resume from.",
    ),
    click.option("--gradient-checkpointing", is_flag=True, help="Less memory, one third more time."),
)


def training_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Everything `toolchain.compress.train.Training` takes that does not need a teacher."""
    for option in reversed(TRAINING):
        function = option(function)
    return function


@contextmanager
def told(hint: Callable[[], str]) -> Iterator[None]:
    """Where Ctrl-C ends the block, let the command's last line say `hint()` too: what the user may do now."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(hint()) from None


def resumable(out: Path) -> str:
    """What to do about a training run into `out` that was stopped; empty where it kept nothing."""
    from toolchain.compress.unfinished import WORK

    kept = next((staging_path(out.absolute()) / WORK / "snapshots").glob("checkpoint-*"), None)
    return "the same command goes on from its last snapshot" if kept else ""


def shipped(_: click.Context, __: click.Parameter, value: Any) -> Any:
    """For an argument that names a model, or its path: toolchain/demo.py says what `demo` means."""
    from toolchain.demo import shipped as named

    return type(value)(named(str(value)))
