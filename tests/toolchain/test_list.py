import json
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest
from click.testing import CliRunner

from devices.errors import UserError
from toolchain.catalog import KINDS, entries
from toolchain.cli.list_ import command

Cli = Callable[..., "CompletedProcess[str]"]


def test_without_a_kind_the_kinds_are_listed() -> None:
    """`toolchain list` names every kind with a line about it."""
    made = CliRunner().invoke(command, [])
    assert made.exit_code == 0
    assert [line.split()[0] for line in made.output.splitlines()] == list(KINDS)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("selectors", "pseudo-uniform"),
        ("objectives", "logits"),
        ("recipes", "int8"),
        ("workloads", "chat"),
        ("devices", "local"),
        ("tasks", "docs-kind"),
        ("tasks", "sst2"),
        ("methods", "finetune"),
    ],
)
def test_each_kind_lists_its_registry(kind: str, name: str) -> None:
    """Every name comes with one line that says something; --json says the same."""
    found = entries(kind)
    assert name in found
    assert all(text.strip() and "\n" not in text for text in found.values())
    assert json.loads(CliRunner().invoke(command, [kind, "--json"]).output) == found


@pytest.mark.parametrize(
    ("kind", "near"), [("selector", "selectors"), ("recipe", "recipes"), ("zzz", "known: ")]
)
def test_an_unknown_kind_is_answered_with_near_names(kind: str, near: str) -> None:
    """One line that names what was meant, or what there is."""
    with pytest.raises(UserError, match=f"unknown kind '{kind}'.*{near}"):
        entries(kind)


def test_an_unknown_kind_exits_2(cli: Cli) -> None:
    """The process says one line on stderr, without a traceback."""
    made = cli("list", "selektors")
    assert made.returncode == 2
    assert made.stderr.count("\n") == 1 and "selectors" in made.stderr
