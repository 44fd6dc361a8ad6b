"""A board that is not there, not known, not ours, or not fit: one line, with ssh's own words where they are its."""

import json
import shutil
from pathlib import Path

import pytest

from devices import connection, profiles, ssh
from devices.artifact import open_artifact
from devices.errors import UserError


def refused(action, *rest):
    """The one line that the action ends with."""
    with pytest.raises(UserError) as caught:
        action(*rest)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("board: ")
    return str(caught.value)


def test_a_board_that_is_not_there(stopped_board):
    """Nobody listens: ssh's words, and what to look at."""
    said = refused(ssh.check, stopped_board.profile())
    assert "Connection refused" in said and "see that it is on" in said


def test_a_host_that_nobody_knows(stopped_board):
    """A name without an address is told as ssh tells it."""
    said = refused(ssh.check, stopped_board.profile(host="no-such-board.invalid"))
    assert "Could not resolve hostname no-such-board.invalid" in said


def test_a_wrong_key(board):
    """A key that the board does not know is told; no password is asked for."""
    board.make_key("user")
    said = refused(ssh.check, board.profile())
    assert "Permission denied (publickey" in said and "ssh-copy-id board" in said


def test_a_host_key_that_changed(board):
    """ssh's own warning comes through, with the place of the old key, and nothing is sent."""
    board.make_key("other")
    board.know((board.root / "other.pub").read_text())
    said = refused(ssh.check, board.profile())
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in said and f"{board.root}/known:1" in said
    assert not board.folder.exists()


def test_a_host_key_that_is_not_known(board):
    """An unknown board is not trusted; the line says how to look at its key."""
    (board.root / "known").write_text("")
    said = refused(ssh.check, board.profile())
    assert "Host key verification failed" in said and "compare its key: ssh board" in said


def test_no_ssh_here(stopped_board, monkeypatch):
    """Without ssh on this machine, what to install."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert "ssh is not installed here" in refused(ssh.check, stopped_board.profile())


def test_a_template_says_what_to_do(monkeypatch, tmp_path):
    """A shipped profile has no host: copy it and set one; the copy without one says so too."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    own = tmp_path / "toolchain/devices/raspberry-pi-5.toml"
    with pytest.raises(UserError, match=rf"copy .*/profiles/raspberry-pi-5.toml to {own} and set host"):
        ssh.check(profiles.load("raspberry-pi-5"))
    own.parent.mkdir(parents=True)
    shutil.copy(profiles.SHIPPED / "raspberry-pi-5.toml", own)
    with pytest.raises(UserError, match=f"no host is named in {own}; set host"):
        ssh.check(profiles.load("raspberry-pi-5"))


def test_a_board_that_is_not_set_up(board, decoder_folder):
    """The command to give is named."""
    said = refused(ssh.put, board.profile(), open_artifact(decoder_folder), print)
    assert said.endswith(f"is not set up; give: toolchain devices setup {board.profile_path}")


def test_another_python_needs_another_setup(ready, decoder_folder):
    """A profile that names another Python than the board was set up for is told."""
    said = refused(ssh.put, ready.profile(python="python3"), open_artifact(decoder_folder), print)
    assert "was set up for another Python" in said


PYTHONS = {
    "3.9.2 64 glibc 2.31": "3.9.2; 3.11 or newer is needed",
    "3.11.2 32 glibc 2.31": "a 32-bit Python; ONNX Runtime has no packages for it; install a 64-bit system",
    "": "missing; there: sudo apt install python3 python3-venv",
}


@pytest.mark.parametrize("answer", PYTHONS)
def test_a_python_that_does_not_fit(board, answer):
    """Missing, too old, or of 32 bits: told before anything is put there, by check as by setup."""
    fake = board.root / "python"
    if answer:
        fake.write_text(f"#!/bin/sh\necho {answer}\n")
        fake.chmod(0o755)
    profile = board.profile(python=str(fake))
    assert PYTHONS[answer] in refused(ssh.setup, profile, print)
    assert not board.folder.exists()
    bad = [finding for finding in ssh.check(profile) if not finding.ok]
    assert bad and f"{bad[0].value}; {bad[0].hint}".startswith(PYTHONS[answer])


def test_a_folder_of_others_is_left_alone(board):
    """Neither set up nor cleaned: a profile's slip must not cost what lies there."""
    board.folder.mkdir()
    (board.folder / "thesis.txt").write_text("years")
    assert "holds something that we did not put there" in refused(ssh.setup, board.profile(), print)
    assert "was not made by us; it is left alone" in refused(ssh.clean, board.profile(), print)
    assert [path.name for path in board.folder.iterdir()] == ["thesis.txt"]


def test_clean_removes_ours_and_nothing_else(ready, decoder_folder):
    """All of it is gone, with its size told; what somebody else put beside it stays; again is no error."""
    profile, said = ready.profile(), []
    ssh.put(profile, open_artifact(decoder_folder), said.append)
    (ready.folder / "mine.txt").write_text("x")
    ssh.clean(profile, said.append)
    assert [path.name for path in ready.folder.iterdir()] == ["mine.txt"]
    assert "removed" in said[0] and "MB" in said[0] and "holds files of others and stays" in said[1]
    (ready.folder / "mine.txt").unlink()
    ssh.setup(profile, print)
    ssh.clean(profile, said.append)
    assert not ready.folder.exists()
    ssh.clean(profile, said.append)
    assert "nothing to remove" in said[-1]


def test_our_code_there_that_was_changed(ready, decoder_folder):
    """The code that measures is the code that ships: another one is refused."""
    (changed,) = ready.folder.glob("code/*/bench/worker.py")
    changed.write_text(changed.read_text() + "\n# faster\n")
    ssh._ready.clear()
    said = refused(ssh.put, ready.profile(), open_artifact(decoder_folder), print)
    assert "our code there was changed" in said and "devices clean" in said


@pytest.mark.parametrize("folder", ["a b; touch $HOME/x", "it's", 'q"uo\\te', "`id`$(id)", "ümläut"])
def test_a_folder_may_be_called_anything(board, folder, decoder_folder):
    """Names never reach a shell unquoted."""
    # TOML's literal strings cannot hold a single quote: the profile is made here.
    profile = board.profile()
    profile.settings["folder"] = str(board.root / folder)
    ssh.setup(profile, lambda _: None)
    assert Path(ssh.put(profile, open_artifact(decoder_folder), print)).is_dir()
    assert (board.root / folder / "ready").is_file()
    ssh.clean(profile, lambda _: None)
    assert not (board.root / folder).exists()


@pytest.mark.parametrize("shell", ["dash", "bash --norc", "sh"])
def test_any_login_shell_and_its_noise(stopped_board, decoder_folder, shell):
    """A shell that is not bash, and one that greets on both outputs, with and without a line's end, disturb nothing."""
    greets = "printf 'Welcome!\\n{\"ended\": 1}\\nno end'; echo warning >&2"
    stopped_board.start(f'ForceCommand {greets}; exec {shell} -c "$SSH_ORIGINAL_COMMAND"')
    profile = stopped_board.profile()
    ssh.setup(profile, lambda _: None)
    assert open_artifact(Path(ssh.put(profile, open_artifact(decoder_folder), print)))


def test_one_connection_and_no_trace(ready):
    """Everything goes over one connection, and nothing of it is left when it is closed."""
    profile = ready.profile()
    ssh.check(profile)
    socket = connection.connect(profile)
    assert socket.parent.stat().st_mode & 0o077 == 0
    assert ready.log.read_text().count("Accepted publickey") == 2  # to set it up, and now
    connection.close()
    assert not socket.parent.exists()


def newer(folder):
    """An artifact that a later version wrote."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))


@pytest.mark.parametrize("what", ["not set up", "a newer artifact", "a damaged artifact", "not there"])
def test_a_benchmark_that_cannot_be_is_exit_2(board, cli, own_artifact, tmp_path, what):
    """One line, exit 2, nothing written and nothing on the board, whatever is wrong."""
    if what == "a newer artifact":
        newer(own_artifact)
    if what == "a damaged artifact":
        (own_artifact / "model.onnx.data").write_bytes(b"short")
    if what == "not there":
        board.stop()
    done = cli("bench", own_artifact, "--device", board.profile_path, "--out", tmp_path / "out")
    said = {"a newer artifact": "written by a newer toolchain", "a damaged artifact": "has 5 bytes where"}
    said |= {"not there": "Connection refused", "not set up": "toolchain devices setup"}
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("toolchain: ") and said[what] in last
    assert not (tmp_path / "out").exists() and not board.folder.exists()


@pytest.mark.parametrize("action", ["check", "setup", "clean"])
def test_a_device_that_is_not_there_is_exit_2(stopped_board, cli, action):
    """Every command on it: one line with ssh's words."""
    done = cli("devices", action, stopped_board.profile_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Connection refused" in done.stderr
