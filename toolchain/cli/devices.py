"""`toolchain devices`: the devices that can be named, and what one of them is."""

import json

import click


@click.group("devices", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the devices that `--device` may name; check one, set it up, or remove what was put there.

    \b
    Example:
      toolchain devices
      toolchain devices check local
    """
    if ctx.invoked_subcommand is not None:
        return
    from devices import profiles

    found = profiles.listed()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    width = max(len(one["name"]) for one in found)
    for one in found:
        click.echo(f"{one['name']:<{width}}  {one['description']}")


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def check(name: str, as_json: bool) -> None:
    """Say what the device NAME is and what it lacks: processor, instruction sets, memory, Python, runtime.

    Exits 1 where something is missing, with the command that mends it.

    \b
    Example:
      toolchain devices check local
    """
    from devices import profiles, reach
    from devices.errors import CheckFailed

    profile = profiles.load(name)
    found = reach.of(profile).check(profile)
    missing = [finding for finding in found if not finding.ok]
    if as_json:
        lacks = [{"what": finding.what, "hint": finding.hint} for finding in missing]
        values = {finding.what: finding.value for finding in found}
        click.echo(json.dumps({"device": profile.name, **values, "missing": lacks}, indent=2))
    else:
        width = max(len(finding.what) for finding in found)
        for finding in found:
            click.echo(f"{finding.what:<{width}}  {_show(finding.value)}")
    if missing:
        first = missing[0]
        raise CheckFailed(f"{profile.name}: {first.what}: {_show(first.value)}; {first.hint}")


@command.command()
@click.argument("name")
def setup(name: str) -> None:
    """Make the device NAME able to measure: a virtual environment and our code, in a folder of their own there.

    \b
    Example:
      toolchain devices setup local
    """
    from devices import profiles, reach

    profile = profiles.load(name)
    reach.of(profile).setup(profile, click.echo)


@command.command()
@click.argument("name")
def clean(name: str) -> None:
    """Remove everything that was put on the device NAME.

    \b
    Example:
      toolchain devices clean local
    """
    from devices import profiles, reach

    profile = profiles.load(name)
    reach.of(profile).clean(profile, click.echo)


def _show(value: object) -> str:
    if value is None:
        return "unknown"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
