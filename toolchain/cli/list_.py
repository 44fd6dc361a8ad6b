"""`toolchain list`: what can be named."""

import json

import click


@click.command("list")
@click.argument("kind", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object of names and descriptions.")
def command(kind: str | None, as_json: bool) -> None:
    """Show what can be named: the entries of KIND with a line about each, or the kinds.

    \b
    Example:
      toolchain list
      toolchain list selectors
    """
    from toolchain.catalog import entries

    found = entries(kind)
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    width = max(map(len, found), default=0)
    for name, text in found.items():
        click.echo(f"{name:<{width}}  {text}")
