"""`toolchain doctor`: is this installation whole?"""

import json
from dataclasses import asdict

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of checks.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Check the installation, a line per check: ok, warn or missing, and what to do about it.

    Exits 0 if what a device needs (base) works and 2 if it does not; host and dev are only told about.

    \b
    Example:
      toolchain doctor
    """
    from toolchain.doctor import diagnose, sound

    checks = diagnose()
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2, ensure_ascii=False))
    else:
        for check in checks:
            click.echo(f"{check.state:<7}  {check.room:<4}  {check.name:<18}  {check.text}")
    ctx.exit(0 if sound(checks) else 2)
