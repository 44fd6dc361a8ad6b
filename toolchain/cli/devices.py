"""`toolchain devices`: the devices that can be named, and what one of them is."""

import json

import click


@click.group("devices", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the devices that `--device` may name, or check one.

    \b
    Example:
      toolchain devices
      toolchain devices check local
    """
    if ctx.invoked_subcommand is not None:
        return
    from devices import profiles

    found = [profiles.load(name) for name in profiles.names()]
    if as_json:
        listed = [{**profile.as_dict(), "description": profile.description} for profile in found]
        click.echo(json.dumps(listed, indent=2))
        return
    width = max(len(profile.name) for profile in found)
    for profile in found:
        click.echo(f"{profile.name:<{width}}  {profile.description}")


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def check(name: str, as_json: bool) -> None:
    """Say what the device NAME is: processor, instruction sets, memory, versions.

    \b
    Example:
      toolchain devices check local
    """
    from devices import profiles
    from devices.machine import environment

    profile = profiles.load(name)
    found = {"device": profile.name, **environment()}
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    width = max(len(key) for key in found)
    for key, value in found.items():
        click.echo(f"{key:<{width}}  {_show(value)}")


def _show(value: object) -> str:
    if value is None:
        return "unknown"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
