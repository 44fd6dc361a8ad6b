"""`toolchain glue`: fine-tune a checkpoint on labelled tasks."""

import json
import shlex
import sys
from pathlib import Path

import click

from toolchain.cli.options import told


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
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
    "--data", type=click.Path(path_type=Path), help="Folder that holds the tasks' folders (SST-2, CoLA, ...)."
)
@click.option("--method", default="finetune", show_default=True, help="How to fine-tune.")
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
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--force", is_flag=True, help="Replace what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the tasks' glue.json as one JSON list.")
def command(
    model: Path,
    tasks: str,
    out: Path,
    data: Path | None,
    method: str,
    epochs: int,
    batch: int,
    lr: float,
    max_tokens: int | None,
    rows: int | None,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    """Fine-tune MODEL, a checkpoint folder, on labelled tasks; the best epoch of each is kept in OUT/TASK.

    `docs-kind` and `docs-order` are made from Python's own documentation and need no --data. A task that an
    earlier, identical call finished is not trained again.

    \b
    Example:
      toolchain glue demo-out/teacher --task docs-order --rows 500 --epochs 1 --out glue-out
    """
    from toolchain.glue.run import glue

    def behind() -> str:
        done = not force and any((out / name / "glue.json").is_file() for name in tasks.split(","))
        return "the same command goes on behind the tasks that are finished" if done else ""

    with told(behind):
        records = glue(
            model,
            [name.strip() for name in tasks.split(",") if name.strip()],
            out,
            data,
            method=method,
            epochs=epochs,
            batch=batch,
            lr=lr,
            max_tokens=max_tokens,
            rows=rows,
            seed=seed,
            force=force,
            command=f"toolchain {shlex.join(sys.argv[1:])}",
            say=lambda line: click.echo(line, err=True),
        )
    if as_json:
        click.echo(json.dumps(records, indent=2))
        return
    for record in records:
        value = f"{record['metric']} {record['value']:.3f} on {record['dev_rows']} dev rows"
        click.echo(f"{out / record['task']}: {value}")
