"""`toolchain demo`."""

from pathlib import Path
from typing import Any

import click

from devices.errors import UserError, unknown
from toolchain.cli.options import told


@click.command()
@click.argument("plan", default="docs", metavar="[docs|short|smollm2]")
@click.option("--teacher", help="Checkpoint folder, hub id or GGUF file.  [default: the teacher that ships]")
@click.option("--out", type=Path, help="Folder for everything.  [default: demo-out, or demo-PLAN-out]")
@click.option("--corpus", help="Text to train students on.  [default: stdlib]")
@click.option("--text", help="Text to take perplexity on.  [default: stdlib's held-out part]")
@click.option("--tokens", type=click.IntRange(min=1), help="Training budget of each student.")
@click.option("--rounds", type=click.IntRange(min=1), help="Benchmark rounds.")
def command(plan: str, teacher: str | None, out: Path | None, **changed: Any) -> None:
    """Do the main job on an embedded default, offline: students, artifacts, numbers, a page.

    `docs` cuts the teacher that ships with this package to six layers in four ways; `short` is the same with
    tiny budgets; `smollm2` needs a --teacher. A second run uses again what is unchanged.

    \b
    Example:
      toolchain demo short
    """
    from dataclasses import replace

    from toolchain.demo import default_teacher, demo
    from toolchain.plans import PLANS

    if plan not in PLANS:
        raise unknown("plan", plan, PLANS)
    if teacher is None and plan == "smollm2":
        raise UserError("demo smollm2: name its file with --teacher (make demo-smollm2 fetches it)")
    chosen = replace(PLANS[plan], **{key: value for key, value in changed.items() if value is not None})
    out = out or Path("demo-out" if plan == "docs" else f"demo-{plan}-out")
    with told(lambda: "the same command goes on behind the last finished step"):
        page = demo(teacher or str(default_teacher()), out, chosen, lambda line: click.echo(line, err=True))
    if (picture := page.with_name("trade-off.png")).exists():
        click.echo(f"picture: {picture}")
    click.echo(f"page:    {page}")
