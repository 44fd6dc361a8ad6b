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


SSH = 'kind = "ssh"\ndescription = "d"\n'
MALFORMED = {
    "": "needs kind, description",
    "name = ": "not valid TOML",
    'name = "x"': "needs kind, description",
    'kind = "local"': "needs description",
    'kind = "local"\ndescription = ""': "needs description",
    'name = ""\nkind = "local"\ndescription = "d"': "name must be letters",
    'name = "../x"\nkind = "local"\ndescription = "d"': "name must be letters",
    'name = "x"\nkind = "telepathy"\ndescription = "d"': "unknown kind of device 'telepathy'",
    'kind = "shh"\ndescription = "d"': "did you mean ssh",
    'name = 3\nkind = "local"\ndescription = "d"': "name must be a text, found 3",
    "kind = 3": "kind must be a text",
    'kind = "local"\ndescription = "d"\nemulated = "no"': "emulated must be true or false",
    'kind = "local"\ndescription = "d"\ncolour = "red"': "unknown key 'colour'",
    'kind = "local"\ndescription = "d"\nhost = "pi"': "unknown key 'host'",
    'hots = "pi"': "unknown key 'hots'",
    "[name]\na = 1": "name must be a text",
    'kind = "emulated"\ndescription = "d"': "needs cpu",
    'kind = "emulated"\ndescription = "d"\ncpu = "-x"': "cpu must be a processor's name",
    SSH + 'hots = "pi"': "unknown key 'hots': did you mean host",
    SSH + 'host = "-oProxyCommand=reboot"': "host must be a host's name or address",
    SSH + 'host = "pi; reboot"': "host must be",
    SSH + 'host = "pi$(id)"': "host must be",
    SSH + 'host = "pi\\nreboot"': "host must be",
    SSH + 'host = "me@pi"': "host must be",
    SSH + "host = 5": "host must be a text",
    SSH + 'user = "-l"': "user must be a user's name",
    SSH + 'user = "a b"': "user must be",
    SSH + 'port = "22"': "port must be a whole number",
    SSH + "port = true": "port must be a whole number",
    SSH + "port = 0": "port must be from 1 to 65535",
    SSH + "port = 65536": "port must be from",
    SSH + "cache_bytes = 0": "cache_bytes must be from",
    SSH + "cache_bytes = 1.5e9": "cache_bytes must be a whole number",
    SSH + 'python = ""': "python must be a command's name or path",
    SSH + 'python = "-c"': "python must be",
    SSH + 'python = "py\\u0000thon"': "python must be",
    SSH + 'folder = ""': "folder must be a folder's path",
    SSH + 'folder = "~/x"': "folder must be a folder's path, without ~",
    SSH + 'folder = "-rf"': "folder must be",
    SSH + 'index = "file:///etc"': "index must be an http or https address",
    SSH + 'index = "https://a --pre"': "index must be",
    SSH + 'config = "-x"': "config must be a file's path",
    SSH + 'venv = "yes"': "venv must be true or false",
    SSH + "offline = 1": "offline must be true or false",
    SSH + 'isa = "asimd"': "isa must be a list",
    SSH + 'isa = ["asimdd"]': "unknown instruction set in isa 'asimdd': did you mean asimd",
    SSH + "isa = [1]": "unknown instruction set in isa '1'",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_profile_is_one_line(tmp_path, text):
    """What a profile lacks or has too much is told in one line that names the file and the key."""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        profiles.load(str(path))
    assert str(caught.value).startswith(f"{path}: ") and MALFORMED[text] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x00", b"a = 1\na = 2", b"[[", b"x" * 100_000])
def test_a_file_that_is_no_profile_is_one_line(tmp_path, content):
    """Bytes that are no TOML name the file."""
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mine.toml: not valid TOML") as caught:
        profiles.load(str(path))
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_profile(tmp_path):
    """Nor is one that is called like one."""
    (tmp_path / "mine.toml").mkdir()
    with pytest.raises(UserError, match=r"mine.toml: cannot be read \(is a directory\)"):
        profiles.load(str(tmp_path / "mine.toml"))


def test_a_name_in_the_configuration_folder_works(tmp_path, monkeypatch):
    """A user's own profile is listed and named like a shipped one, before which it stands; its name is its file's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "toolchain/devices"
    folder.mkdir(parents=True)
    (folder / "kitchen.toml").write_text(SSH + 'host = "kitchen.local"\nport = 2222\nuser = "pi"')
    (folder / "raspberry-pi-5.toml").write_text(SSH + 'host = "10.0.0.5"')
    assert {"kitchen", "local", "raspberry-pi-4"} <= set(profiles.names())
    kitchen = profiles.load("kitchen")
    assert kitchen.name == "kitchen" and kitchen.settings["port"] == 2222
    assert profiles.load("raspberry-pi-5").settings["host"] == "10.0.0.5"
    with pytest.raises(UserError, match="did you mean kitchen"):
        profiles.load("kitchne")
    (folder / "other.toml").write_text('name = "kitchen"\n' + SSH)
    with pytest.raises(
        UserError, match=r"name is 'kitchen' and the file is called other.toml; leave name out"
    ):
        profiles.load("other")


def test_one_bad_profile_does_not_hide_the_others(tmp_path, monkeypatch, cli):
    """`toolchain devices` lists all that can be read, and says what is wrong with the one that cannot."""
    folder = tmp_path / "toolchain/devices"
    folder.mkdir(parents=True)
    (folder / "half.toml").write_text('kind = "ssh"\n')
    (folder / "kitchen.toml").write_text(SSH + 'host = "kitchen.local"')
    done = cli("devices", XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 0 and "kitchen " in done.stdout and "local " in done.stdout
    assert "half.toml: a profile needs description; add it" in done.stdout


def test_what_is_shipped():
    """Boards that people own as templates, two emulated processors, and this machine."""
    found = {name: profiles.load(name) for name in profiles.names()}
    for name in ("raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano", "arm-cloud", "x86-mini-pc"):
        assert found[name].kind == "ssh" and found[name].settings["host"] == "" and found[name].isa
        assert not found[name].emulated
    for name, dot in (("cortex-a72", False), ("cortex-a76", True)):
        assert found[name].kind == "emulated" and found[name].emulated
        assert ("asimddp" in found[name].isa) == dot and found[name].settings["cpu"] == name
    assert found["local"].kind == "local" and found["local"].isa is None


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
