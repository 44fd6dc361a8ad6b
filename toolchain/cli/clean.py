"""`toolchain clean`: a corpus less what rules drop."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from toolchain.cli.options import told


@click.command()
@click.argument("corpus")
@click.option("--out", type=Path, required=True, help="Folder for the cleaned corpus.")
@click.option(
    "--rules",
    default="paper",
    show_default=True,
    metavar="NAME,...",
    help="Rules and sets of them: paper, fineweb (toolchain list rules).",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Tasks at a time; default: 1, on a cluster as many as it takes.",
)
@click.option(
    "--executor",
    type=click.Choice(["local", "slurm", "ray"]),
    default="local",
    show_default=True,
    help="Where they run; Slurm's jobs are submitted, and the same command then publishes.",
)
@click.option(
    "--executor-options",
    type=Path,
    metavar="FILE",
    help="TOML of datatrove's options for it, as time and partition for slurm.",
)
@click.option("--force", is_flag=True, help="Replace --out if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print clean.json instead of a table.")
def command(corpus: str, out: Path, as_json: bool, **options: Any) -> None:
    """Drop from CORPUS what is no good text, and say how much each rule dropped.

    CORPUS is a file or folder of text, jsonl or parquet, hub:NAME or stdlib. The cleaned corpus is a folder
    that --corpus takes; clean.json in it has the counts, with examples. What was interrupted goes on when the
    same command is given again.

    \b
    Example:
      toolchain clean stdlib --out cleaned
    """  # fmt: skip
    from toolchain.corpus.clean import Underway, clean

    try:
        with told(lambda: "the same command goes on with the parts that are left"):
            report = clean(
                corpus,
                out,
                **options,
                command=f"toolchain {shlex.join(sys.argv[1:])}",
                say=lambda line: click.echo(line, err=True),
            )
    except Underway as jobs:
        click.echo(str(jobs), err=True)
        return
    click.echo(json.dumps(report, indent=2, ensure_ascii=False) if as_json else table(report, out))


def table(report: dict[str, Any], out: Path) -> str:
    """What each rule dropped, in documents (whole ones), lines and characters, with an example below it."""
    total = report["read"]
    lines = [f"{'':<16} {'documents':>14} {'lines':>22} {'characters':>26}"]
    for name, found in (("read", total), *report["dropped"].items(), ("kept", report["kept"])):
        lines.append(
            f"{name:<16} {found['documents']:>14,} {_share(found, total, 'lines'):>22} "
            f"{_share(found, total, 'characters'):>26}"
        )
        lines += [f"    {example[:90]}" for example in found.get("examples", [])[:1]]
    took = (
        "" if report["seconds"] is None else f" in {report['seconds']:.0f} s"
    )  # null where a run was resumed
    return "\n".join([*lines, f"{out}: {report['kept']['documents']:,} documents{took}"])


def _share(found: dict[str, Any], total: dict[str, Any], key: str) -> str:
    return f"{found[key]:,} ({100 * found[key] / max(total[key], 1):.1f} %)"
