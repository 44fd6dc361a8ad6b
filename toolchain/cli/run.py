"""`toolchain run`: a whole study."""

from pathlib import Path

import click

from devices.errors import UserError
from toolchain.cli.options import told


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder for all studies: stages are shared between them, tables are in OUT/STUDY.",
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder of labelled tasks, in place of the study's."
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="NAME=PATH",
    help="Where a text of the study lies, in place of its own.",
)
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Stages at once.")
@click.option(
    "--dry-run", is_flag=True, help="Check the study; say what it would do and what that would take."
)
def command(
    study: Path, out: Path, data: Path | None, texts: tuple[str, ...], jobs: int, dry_run: bool
) -> None:
    """Run STUDY, a TOML file that names teachers, ways to compress them, and what to measure.

    The study is checked whole before anything runs. What an earlier run of any study in OUT made is used again; a
    stage that fails is named and the rest goes on; the same command goes on where an interrupted one stopped.

    \b
    Example:
      toolchain run studies/which-layers.toml --dry-run
    """
    from toolchain.study.run import dry, run

    named = dict(text.split("=", 1) for text in texts if "=" in text)
    if wrong := next((text for text in texts if "=" not in text), None):
        raise UserError(f"--text {wrong}: says no path; write it like wiki=wiki.train.txt")

    say = lambda line: click.echo(line, err=True)  # noqa: E731 - as every command here tells its steps
    if dry_run:
        dry(study, out, jobs, click.echo, data, named)
        return
    with told(lambda: "the same command goes on with what is not finished"):
        tables = run(study, out, jobs, say, data, named)
    click.echo(f"tables: {tables}")
