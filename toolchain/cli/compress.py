"""`toolchain compress`."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from devices.errors import UserError
from toolchain.cli.options import resumable, shipped, told, training_options

DISTIL = ("temperature", "alpha", "mix", "cache_teacher", "cache_top")
DISTIL_ONLY = "needs the teacher, and --train is none; say --train distill, or leave it out"
TRAIN_ONLY = "says how to train, and --train is none; say --train pretrain or distill, or leave it out"


@click.command()
@click.argument("teacher", callback=shipped)
@click.option("--out", type=Path, required=True, help="Folder for the student.")
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    metavar="K",
    help="How many of the teacher's layers to keep; with --train, all if not said.",
)
@click.option("--keep", metavar="I,J,...", help="Which layers to keep, instead of --layers: 0,2,4,7,9,11.")
@click.option(
    "--select",
    metavar="NAME",
    help="Strategy that chooses them (toolchain list selectors).  [default: pseudo-uniform]",
)
@click.option(
    "--select-corpus",
    metavar="TEXT",
    help="What a strategy that measures looks at: its train part.  [default: --corpus, else stdlib]",
)
@click.option(
    "--select-tokens",
    type=click.IntRange(min=1),
    help="About how many tokens of it.  [default: the strategy's]",
)
@click.option(
    "--init",
    default="truncate",
    show_default=True,
    metavar="truncate|random",
    help="The teacher's weights, or fresh ones in its shape: the control.",
)
@click.option(
    "--train",
    default="none",
    show_default=True,
    metavar="none|pretrain|distill",
    help="What to do with the student afterwards.",
)
@click.option(
    "--objective", metavar="NAME", help="What distill aims at (toolchain list objectives).  [default: logits]"
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    help="Softens both models' logits; default: the objective's.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1),
    help="Weight of the teacher's part of the loss; default: the objective's.",
)
@click.option(
    "--mix",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="skew-kl's lambda, jsd's beta; default: the objective's.",
)
@click.option(
    "--cache-teacher",
    is_flag=False,
    flag_value="auto",
    metavar="[FOLDER]",
    help="Ask the teacher once at this temperature, keep its most probable tokens on disk and train on those; "
    "default folder: in the cache, by what it is of.",
)
@click.option(
    "--cache-top", type=click.IntRange(min=1), metavar="K", help="How many of them a token.  [default: 32]"
)
@training_options
@click.option("--force", is_flag=True, help="Replace --out if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print compression.json instead of a sentence.")
@click.pass_context
def command(
    ctx: click.Context,
    teacher: str,
    out: Path,
    layers: int | None,
    keep: str | None,
    select: str | None,
    select_corpus: str | None,
    select_tokens: int | None,
    init: str,
    train: str,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a student of TEACHER: some of its layers, as they are or trained further.

    TEACHER is a checkpoint folder, a hub id or a GGUF file, of the GPT-2 or Llama family. The student is a
    checkpoint folder that transformers opens; compression.json in it says how it was made. A training run
    that was interrupted goes on when the same command is given again.

    \b
    Example:
      toolchain compress demo-out/teacher --layers 6 --out student
    """  # fmt: skip
    from toolchain.compress.run import compress

    if train == "none":
        given = [name for name in options if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        for name in given:
            if name != "seed":
                raise UserError(
                    f"--{name.replace('_', '-')}: {DISTIL_ONLY if name in DISTIL else TRAIN_ONLY}"
                )
        training = None
    else:
        from toolchain.compress.trainer import Training

        options["objective"] = options["objective"] or ("lm" if train == "pretrain" else "logits")
        training = Training(**options)
    with told(lambda: resumable(out)):
        result = compress(
            teacher,
            out,
            layers=layers,
            keep=keep,
            select=select,
            select_corpus=select_corpus,
            select_tokens=select_tokens,
            init=init,
            train=train,
            training=training,
            seed=options["seed"],
            force=force,
            command=f"toolchain {shlex.join(sys.argv[1:])}",
            say=lambda line: click.echo(line, err=True),
        )
    if "student" not in result:
        return  # a helping process of `accelerate launch`; the first one speaks
    if as_json:
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    click.echo(_sentence(result, out))


def _sentence(result: dict[str, Any], out: Path) -> str:
    teacher, student, training = (result[key] for key in ("teacher", "student", "training"))
    said = (
        f"{out}: {student['layers']} of {teacher['layers']} layers, "
        f"{student['parameters'] / 1e6:.1f} M parameters (teacher {teacher['parameters'] / 1e6:.1f} M)"
    )
    if training is None:
        return said
    perplexity = training["perplexity"]
    return (
        f"{said}; {training['tokens']:,} tokens in {training['hours']:.2f} h, held-out perplexity "
        f"{perplexity['before']:.1f} -> {perplexity['after']:.2f}"
    )
