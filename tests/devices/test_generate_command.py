"""`toolchain generate` and `toolchain devices`, as processes."""

import json

import pytest


def test_text_comes_after_the_prompt(decoder_folder, cli):
    """The prompt and its continuation stand on the terminal, a newline last; the same every time."""
    first, second = (cli("generate", decoder_folder, "the cat", "--max-new-tokens", 8) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("the cat") and first.stdout.endswith("\n") and len(first.stdout) > 9
    assert first.stdout == second.stdout and first.stderr == ""


def test_json_holds_what_was_printed(decoder_folder, cli):
    """With --json there is one object: ids, text, why it ended; drawn with the seed given."""
    options = ["--max-new-tokens", 8, "--temperature", 1.2, "--top-k", 20, "--top-p", 0.9, "--seed", 5]
    plain = cli("generate", decoder_folder, "the cat", *options)
    answer = json.loads(cli("generate", decoder_folder, "the cat", *options, "--json").stdout)
    assert plain.stdout == f"the cat{answer['text']}\n"
    assert answer["finish_reason"] in ("length", "eos") and len(answer["ids"]) <= 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-new-tokens", 0], "max-new-tokens"),
        (["--max-new-tokens", 1000], "positions"),
        (["--temperature", -1], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--top-k", -1], "top-k"),
        (["--top-p", 0], "top-p"),
        (["--top-p", 1.5], "top-p"),
        (["--seed", -1], "seed"),
        (["--threads", 0], "threads"),
        (["--threads", 9999], "threads is 9999; this machine takes at most"),
        (["--stop", ""], "stop"),
    ],
)
def test_bad_options_are_one_line(decoder_folder, cli, options, words):
    """What means nothing exits 2 in one line that names it, and prints nothing else."""
    done = cli("generate", decoder_folder, "the cat", *options)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1 and words in done.stderr


@pytest.mark.parametrize("arguments", [["\udcff\udcfe"], ["the cat", "--stop", "a\udcff"]])
def test_bytes_that_are_no_text_are_one_line(decoder_folder, cli, arguments):
    """An argument that is not UTF-8 exits 2 and says where it is not; so does a path like that."""
    done = cli("generate", decoder_folder, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1 and "not UTF-8 at character" in done.stderr
    done = cli("generate", decoder_folder / "\udcff", "the cat")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_what_is_no_artifact_is_one_line(tmp_path, cli):
    """A folder that is not there exits 2 in one line."""
    done = cli("generate", tmp_path / "none", "text")
    assert done.returncode == 2 and "no such folder" in done.stderr


def test_devices_are_listed_and_checked(cli):
    """`devices` names what --device may; `check` describes this machine; both as JSON where asked."""
    assert cli("devices").stdout.startswith("local")
    assert {"name": "local", "emulated": False}.items() <= json.loads(cli("devices", "--json").stdout)[
        0
    ].items()
    assert json.loads(cli("devices", "check", "local", "--json").stdout)["cores"] >= 1
    assert "onnxruntime" in cli("devices", "check", "local").stdout


def test_an_unknown_device_is_one_line(cli):
    """A name that no profile has exits 2 with the near one."""
    done = cli("devices", "check", "lokal")
    assert done.returncode == 2 and done.stderr.strip().endswith("did you mean local?")
