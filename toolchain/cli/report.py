"""`toolchain report`: results in, a page to decide from out."""

from pathlib import Path

import click


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder for the report.")
@click.option("--title", help="The page's title; made from the teacher's name if left out.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def command(results: Path, out: Path, title: str | None, force: bool) -> None:
    """Turn the results below the folder RESULTS into a page to decide from.

    Writes report.html (one file, no network), report.md, trade-off.png and results.csv into OUT, and prints
    the page's path.

    \b
    Example:
      toolchain report demo-out/results --out report
    """
    from toolchain.report import report

    click.echo(report(results, out, force=force, title=title))
