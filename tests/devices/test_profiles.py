"""Devices are named by profiles: shipped ones by name, a user's own by path."""

import pytest

from devices import machine, profiles
from devices.errors import UserError


def test_this_machine_is_a_device():
    """`local` is shipped, and is not emulated."""
    assert "local" in profiles.names()
    assert profiles.load("local").as_dict() == {"name": "local", "emulated": False}


def test_a_users_own_profile_is_named_by_its_path(tmp_path):
    """A TOML file of the user's works where a name does."""
    path = tmp_path / "mine.toml"
    path.write_text('name = "desk"\nkind = "local"\ndescription = "under my desk"\n')
    assert profiles.load(str(path)).name == "desk"


def test_an_unknown_device_names_the_near_one():
    """A slip of the pen is answered with what was meant."""
    with pytest.raises(UserError, match="unknown device 'lokal': did you mean local"):
        profiles.load("lokal")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name = ",
        'name = "x"',
        'name = "x"\nkind = "local"',
        'name = ""\nkind = "local"\ndescription = "d"',
        'name = "x"\nkind = "telepathy"\ndescription = "d"',
        'name = 3\nkind = "local"\ndescription = "d"',
        'name = "x"\nkind = "local"\ndescription = "d"\nemulated = "no"',
        'name = "x"\nkind = "local"\ndescription = "d"\ncolour = "red"',
        "[name]\na = 1",
    ],
)
def test_a_malformed_profile_is_one_line(tmp_path, text):
    """What a profile lacks or has too much is told in one line that names the file."""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"mine\.toml: ") as caught:
        profiles.load(str(path))
    assert "\n" not in str(caught.value)


def test_a_profile_that_is_not_there_is_one_line(tmp_path):
    """A path to nothing says so."""
    with pytest.raises(UserError, match="no such file"):
        profiles.load(str(tmp_path / "none.toml"))


def test_a_target_names_its_instruction_sets(tmp_path):
    """Export picks a kernel by a profile's isa, by looking at this machine for `local`, and says where it cannot."""
    assert "asimddp" in profiles.target_isa("raspberry-pi-5")
    assert set(profiles.target_isa("local")) == set(machine.isa() or ())
    mine = tmp_path / "mine.toml"
    mine.write_text('kind = "ssh"\ndescription = "d"\nhost = "h"\n')
    with pytest.raises(UserError, match="its profile has no isa"):
        profiles.target_isa(str(mine))
