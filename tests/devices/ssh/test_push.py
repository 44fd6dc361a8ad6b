"""What is put on a board: once, whole, verified, within bounds."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from devices import connection, profiles, ssh, transfer
from devices.artifact import open_artifact
from devices.errors import UserError
from devices.files import sha256


@pytest.fixture
def sent(monkeypatch):
    """Bytes of every push, by file name."""
    found = {}
    push = connection.push

    def noted(profile, source, offset, *words, sent):
        found[source.name] = found.get(source.name, 0) + source.stat().st_size - offset
        push(profile, source, offset, *words, sent=sent)

    monkeypatch.setattr(transfer, "push", noted)
    return found


@pytest.fixture
def put(ready):
    """`put(folder)` as a command of its own would: the path there, and the lines that were said."""

    def run(folder):
        said = []
        transfer._used.clear()
        place = ssh.put(profiles.load(str(ready.profile_path)), open_artifact(folder), said.append)
        return Path(place), said

    return run


def test_an_artifact_goes_there_once(put, decoder_folder, sent):
    """What is put there verifies there, and is not sent a second time; a user's own file beside it never is."""
    own = decoder_folder.parent / "own"
    shutil.copytree(decoder_folder, own)
    (own / "notes.md").write_text("mine")
    place, said = put(own)
    assert open_artifact(place).sha256 == open_artifact(decoder_folder).sha256 and said == []
    assert not (place / "notes.md").exists() and sum(sent.values()) > 0
    sent.clear()
    assert put(decoder_folder)[0] == place and sent == {}


def test_a_push_that_was_cut_off_goes_on(ready, put, decoder_folder, sent):
    """What has arrived is not sent again; a line says so."""
    artifact = open_artifact(decoder_folder)
    incoming = ready.folder / "incoming" / artifact.sha256
    incoming.mkdir(parents=True)
    whole = (decoder_folder / "model.onnx.data").read_bytes()
    (incoming / "model.onnx.data").write_bytes(whole[:1000])
    _, said = put(decoder_folder)
    assert sent["model.onnx.data"] == len(whole) - 1000
    assert any("goes on after" in line for line in said)


@pytest.mark.parametrize("length", [1000, 10**7])
def test_wrong_bytes_that_arrived_are_sent_anew(ready, put, decoder_folder, sent, length):
    """A part that is not the beginning of the file, or is longer, costs a second try and nothing else."""
    incoming = ready.folder / "incoming" / open_artifact(decoder_folder).sha256
    incoming.mkdir(parents=True)
    (incoming / "model.onnx.data").write_bytes(b"\1" * length)
    place, _ = put(decoder_folder)
    assert open_artifact(place).sha256 == open_artifact(decoder_folder).sha256


def test_a_damaged_artifact_is_pushed_again(put, decoder_folder):
    """A byte that changed on the board's card is found before anything is measured."""
    place, _ = put(decoder_folder)
    with (place / "model.onnx.data").open("r+b") as file:
        file.seek(10)
        file.write(b"\x13\x37")
    again, said = put(decoder_folder)
    assert again == place and any("is damaged there; it is pushed again" in line for line in said)
    assert open_artifact(place).sha256 == open_artifact(decoder_folder).sha256


def test_what_never_verifies_is_one_line(put, decoder_folder, monkeypatch):
    """A board whose disk returns other bytes than were written is told after two tries, and nothing is measured."""
    monkeypatch.setattr(transfer, "APPEND", 'cd -- "$1" && tr "\\000" "\\001" >> "$2"')
    with pytest.raises(UserError, match=r"board: tiny-decoder does not verify there \(.*, twice\)") as caught:
        put(decoder_folder)
    assert "\n" not in str(caught.value)


def test_the_cache_is_bounded(ready, put, write_artifacts):
    """The least recently used goes first, a line says so, and what is being pushed never goes."""
    first, second, third = write_artifacts(3)
    size = sum(path.stat().st_size for path in first.iterdir())
    ready.profile(cache_bytes=int(size * 2.5))
    places = [put(first)[0], put(second)[0]]
    os.utime(places[0], (1e9, 1e9))
    put(first)  # used again, so the second is now the older one
    os.utime(places[1], (2e9 - 1e9, 1e9))
    _, said = put(third)
    assert places[0].is_dir() and not places[1].exists()
    assert any("was dropped from the cache there" in line for line in said)


def test_what_is_in_use_is_not_dropped(ready, put, write_artifacts):
    """An artifact that a process on the board has mapped stays, however old; where that leaves no room, a line."""
    first, second = write_artifacts(2)
    size = sum(path.stat().st_size for path in first.iterdir())
    ready.profile(cache_bytes=int(size * 1.5))
    place, _ = put(first)
    code = "import mmap,sys; f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, prot=1); print(1); input()"
    line = ["python3", "-c", code, str(place / "model.onnx.data")]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        user.stdout.readline()
        with pytest.raises(UserError, match=r"do not fit into the cache of .* MB there; raise cache_bytes"):
            put(second)
        assert place.is_dir()
        user.communicate("\n")
    put(second)
    assert not place.exists()


def test_artifacts_of_one_command_must_fit_together(ready, write_artifacts):
    """What one command measures in turns is never dropped for the next of it."""
    first, second = map(open_artifact, write_artifacts(2))
    profile = ready.profile(cache_bytes=int(first.file_bytes * 1.5))
    ssh.put(profile, first, lambda _: None)
    with pytest.raises(UserError, match="measure fewer artifacts at once"):
        ssh.put(profile, second, lambda _: None)


def test_a_text_is_put_by_its_hash(ready, tmp_path):
    """A text for perplexity goes there once too."""
    text = tmp_path / "te xt; rm -rf $HOME.txt"
    text.write_text("a word")
    profile = profiles.load(str(ready.profile_path))
    place = ssh.put_text(profile, text, sha256(text), lambda _: None)
    assert Path(place).read_text() == "a word" and Path(place).name == "text"


def test_a_full_disk_is_one_line(stopped_board, decoder_folder):
    """Full in the middle of a push (here `cat` there fails as it does on a full disk): what came is kept."""
    tools = stopped_board.root / "tools"
    tools.mkdir()
    stopped_board.start(f'SetEnv PATH="{tools}:{os.environ["PATH"]}"')
    profile = stopped_board.profile()
    ssh.setup(profile, lambda _: None)
    (tools / "cat").write_text(
        "#!/bin/sh\nhead -c 50\necho 'cat: write error: No space left on device' >&2\nexit 1\n"
    )
    (tools / "cat").chmod(0o755)
    connection.close()
    with pytest.raises(UserError, match=r"board: the disk there is full .*No space left on device") as caught:
        ssh.put(profile, open_artifact(decoder_folder), lambda _: None)
    assert "\n" not in str(caught.value) and "what has been pushed is kept" in str(caught.value)
    (incoming,) = (stopped_board.folder / "incoming").iterdir()
    assert any(path.stat().st_size == 50 for path in incoming.iterdir())
    (tools / "cat").unlink()
    assert ssh.put(profile, open_artifact(decoder_folder), lambda _: None)


def test_a_small_disk_is_known_before_the_push(stopped_board, decoder_folder):
    """On a file system without room (a real one of 4 MB) nothing is sent."""
    stopped_board.folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(stopped_board.folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        stopped_board.start()
        profile = stopped_board.profile()
        ssh.setup(profile, lambda _: None)
        with pytest.raises(UserError, match=r"the disk there is full: . MB are free"):
            ssh.put(profile, open_artifact(decoder_folder), lambda _: None)
    finally:
        connection.close()
        subprocess.run(["umount", "-l", str(stopped_board.folder)], check=True)
