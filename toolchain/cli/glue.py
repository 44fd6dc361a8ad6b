"""`toolchain glue`: fine-tune a checkpoint on labelled tasks."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from devices.errors import CheckFailed, UserError
from toolchain.cli.options import shipped, told


@click.command()
@click.argument("model", type=click.Path(path_type=Path), callback=shipped)
@click.option(
    "--task",
    "tasks",
    required=True,
    metavar="NAME[,NAME...]",
    help="Tasks by name, or a folder with a task.toml.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder to write to, one folder per task in it.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder that holds the tasks' folders (SST-2, CoLA, ...).  [default: GLUE from the hub]",
)
@click.option("--method", default="finetune", show_default=True, help="How to fine-tune.")
@click.option(
    "--teacher", type=click.Path(path_type=Path), help="Classifier to learn from, or an --out of such."
)
@click.option("--set", "options", multiple=True, metavar="NAME=VALUE", help="An option of the method.")
@click.option("--epochs", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--batch", default=16, show_default=True, type=click.IntRange(min=1), help="Rows a step.")
@click.option(
    "--lr",
    default=5e-5,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Peak learning rate.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=3),
    help="Longest row; what is longer loses tokens of its longer side. [default: 128]",
)
@click.option(
    "--rows", type=click.IntRange(min=1), help="Train on so many rows, drawn by the seed. [default: all]"
)
@click.option(
    "--cache-teacher",
    is_flag=False,
    flag_value="auto",
    metavar="[FOLDER]",
    help="Ask the teacher about each training row once and keep the answers on disk, for later epochs, seeds and "
    "runs; default folder: in the cache, by what it is of.",
)
@click.option("--seed", type=click.IntRange(min=0), help="[default: 0]")
@click.option("--seeds", metavar="N[,N...]", help="Several: figures come as mean and spread.")
@click.option("--export", "recipe", metavar="RECIPE", help="Export each classifier and measure that too.")
@click.option(
    "--submit",
    type=click.Path(path_type=Path),
    help="Folder for answers to GLUE's test sets; needs each task's test.tsv.",
)
@click.option("--force", is_flag=True, help="Replace what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print OUT/glue.json.")
def command(
    model: Path,
    tasks: str,
    out: Path,
    data: Path | None,
    teacher: Path | None,
    options: tuple[str, ...],
    seed: int | None,
    seeds: str | None,
    recipe: str | None,
    submit: Path | None,
    force: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Fine-tune MODEL, a checkpoint folder, on labelled tasks; the best epoch of each is kept in OUT/TASK.

    `docs-kind` and `docs-order` are made from Python's own documentation and need no --data. What an earlier,
    identical call finished is not trained again. With several seeds a classifier is in OUT/TASK/seed-N.
    OUT/glue.json has the figures, also while it runs. With --export, those of the exported file stand beside
    the checkpoint's; where one fails export's gates, the exit code is 1.

    \b
    Example:
      toolchain glue demo-out/teacher --task docs-order --rows 500 --epochs 1 --out glue-out
    """
    if seed is not None and seeds is not None:
        raise UserError("--seed and --seeds both name seeds; give one of them")
    chosen = (seed or 0,) if seeds is None else parse_seeds(seeds)
    settings |= {"teacher": teacher} if teacher is not None else {}
    settings |= {"options": parse_options(options)} if options else {}
    from devices.files import read_json
    from toolchain.glue.run import glue
    from toolchain.glue.summary import FILE, lines

    def behind() -> str:
        if next(out.rglob("unfinished/snapshots/*/checkpoint-*"), None):
            return "the same command goes on from the last finished epoch"
        done = not force and any(next(out.glob(form), None) for form in ("*/glue.json", "*/seed-*/glue.json"))
        return "the same command goes on behind the tasks that are finished" if done else ""

    with told(behind):
        records = glue(
            model,
            [name.strip() for name in tasks.split(",") if name.strip()],
            out,
            data,
            seeds=chosen,
            recipe=recipe,
            submission=submit,
            force=force,
            command=f"toolchain {shlex.join(sys.argv[1:])}",
            say=lambda line: click.echo(line, err=True),
            **settings,
        )
    names = list(dict.fromkeys(record["task"] for record in records))
    summary = read_json(out / FILE, "figures of labelled tasks")
    if as_json:
        click.echo(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        for line in lines(summary, names, out):
            click.echo(line)
    _refuse_failed([summary["tasks"][name] for name in names])


def parse_seeds(text: str) -> tuple[int, ...]:
    """`1,2,3` as numbers from 0; UserError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    wrong = next((part for part in parts if not (part.isascii() and part.isdigit())), None)
    if wrong is not None:
        raise UserError(f"--seeds: '{wrong}' is no number from 0; name them such as 1,2,3")
    return tuple(map(int, parts))


def parse_options(given: tuple[str, ...]) -> dict[str, str]:
    """`name=value` each, none twice; UserError for anything else."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals):
            raise UserError(f"--set {text}: gives no value; write --set NAME=VALUE")
        if name.strip() in found:
            raise UserError(f"--set {text}: {name.strip()} is set twice; set it once")
        found[name.strip()] = value.strip()
    return found


def _refuse_failed(entries: list[dict[str, Any]]) -> None:
    """CheckFailed naming the classifiers whose exported file did not hold its gates."""
    failed = [
        f"{run['folder']} ({run['artifact']['failed']})"
        for entry in entries
        for run in entry["runs"]
        if (run["artifact"] or {}).get("failed")
    ]
    if failed:
        raise CheckFailed(f"not exported: {'; '.join(failed)}")
