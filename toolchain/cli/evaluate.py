"""`toolchain evaluate`: perplexity or a task's metric of a checkpoint or an artifact."""

import json
from pathlib import Path
from typing import Any

import click

from toolchain.cli.options import shipped


@click.command()
@click.argument("model", type=click.Path(path_type=Path), callback=shipped)
@click.option(
    "--corpus", help="Text file to take perplexity on, read whole; default: stdlib, its held-out part."
)
@click.option(
    "--window", type=click.IntRange(min=2), help="Tokens a window.  [default: 512, or the model's positions]"
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Slide the window by so many tokens: each token scored once, with more context.  [default: side by side]",
)
@click.option("--blocks", type=click.IntRange(min=1), help="Only the first so many windows.  [default: all]")
@click.option(
    "--task", metavar="NAME", help="Labelled task, or a folder with a task.toml; default: the model's."
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder that holds the tasks' folders.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of results to add this one to.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: Path,
    corpus: str | None,
    window: int | None,
    stride: int | None,
    blocks: int | None,
    task: str | None,
    data: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Say how good MODEL is, a checkpoint or an artifact: both see the same tokens in the same windows.

    A decoder's perplexity is taken on a text, a classifier's metrics on a labelled task's dev rows.

    \b
    Example:
      toolchain evaluate demo-out/teacher --corpus stdlib --blocks 8 --out results
    """
    from toolchain.evaluate import evaluate

    result = evaluate(
        model, corpus=corpus, window=window, stride=stride, blocks=blocks, task=task, data=data, out=out
    )
    click.echo(json.dumps(result, indent=2) if as_json else sentence(result))


def figure(perplexity: float | None) -> str:
    """A perplexity with two decimals; of one beyond 100,000 two digits say how badly the model is broken."""
    if perplexity is None:
        return "not finite"
    return f"{perplexity:.2f}" if perplexity < 1e5 else f"{float(f'{perplexity:.2g}'):,.0f}"


def sentence(result: dict[str, Any]) -> str:
    """The result in a line of plain words."""
    name, quality = result["subject"]["name"], result["quality"]
    if task := quality["task"]:
        return f"{name}: {metrics(task)} on {task['rows']} dev rows of {task['name']}"
    found = quality["perplexity"]
    cut = f"{found['tokens']} tokens in {found['blocks']} windows of {found['window']}"
    if found["stride"]:
        cut += f", {found['stride']} apart"
    return (
        f"{name}: perplexity {figure(found['value'])} a token, {figure(found['word_perplexity'])} a word, "
        f"{bits(found['bits_per_byte'])} on {found['corpus']['name']} ({cut})"
    )


def metrics(task: dict[str, Any]) -> str:
    """A task's figures, the one that stands for it first."""
    return ", ".join(f"{name} {value:.3f}" for name, value in task["metrics"].items())


def bits(per_byte: float | None) -> str:
    """Bits per byte with three decimals."""
    return "bits per byte not finite" if per_byte is None else f"{per_byte:.3f} bits a byte"
