"""`toolchain pretrain`."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from toolchain.cli.options import resumable, told, training_options


@click.command()
@click.argument("shape", type=Path)
@click.option("--out", type=Path, required=True, help="Folder for the checkpoint.")
@training_options
@click.option(
    "--patience", type=click.IntRange(min=1), help="Stop after N passes without a better held-out loss."
)
@click.option("--half", is_flag=True, help="Store the weights in 16 bits.")
@click.option("--force", is_flag=True, help="Replace --out if it exists.")
def command(shape: Path, out: Path, half: bool, force: bool, **options: Any) -> None:
    """Train a model from nothing: SHAPE is a config.json, its tokenizer is trained on the corpus too.

    \b
    Example:
      toolchain pretrain toolchain/assets/demo-shape.json --corpus stdlib --tokens 4096 --out tiny
    """
    from toolchain.compress.pretrain import pretrain
    from toolchain.compress.trainer import Training

    said = f"toolchain {shlex.join(sys.argv[1:])}"
    with told(lambda: resumable(out)):
        result = pretrain(
            shape,
            out,
            Training(**options),
            half=half,
            force=force,
            command=said,
            say=lambda line: click.echo(line, err=True),
        )
    record = result["training"]
    click.echo(
        f"{out}: {record['tokens']:,} tokens in {record['hours']:.2f} h, held-out perplexity "
        f"{record['perplexity']['before']:.1f} -> {record['perplexity']['after']:.2f}"
    )
