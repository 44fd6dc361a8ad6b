"""The hub, played by a server on this machine: fetched once, then offline from the cache; and what it refuses."""

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import standin_hub as hub

CARD = """\
---
configs:
- config_name: cola
  data_files:
  - split: train
    path: cola/train-*
  - split: validation
    path: cola/validation-*
  - split: test
    path: cola/test-*
---
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory, gpt2_checkpoint, corpus_file):
    """Repositories: a model, a text, and GLUE with the one task CoLA."""
    import datasets

    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(gpt2_checkpoint, root / "models/someone/tiny")
    (root / "models/someone/tiny/pytorch_model.bin").write_bytes(b"a pickle, which nobody fetches")
    texts = corpus_file.read_text().split("\n\n")
    (root / "datasets/someone/text/data").mkdir(parents=True)
    datasets.Dataset.from_dict({"text": texts}).to_parquet(
        root / "datasets/someone/text/data/train-00000-of-00001.parquet"
    )
    glue = root / "datasets/nyu-mll/glue"
    (glue / "cola").mkdir(parents=True)
    (glue / "README.md").write_text(CARD)
    for split, label in (("train", [0, 1]), ("validation", [1, 0]), ("test", [-1, -1])):
        rows = {"sentence": [f"{i} dogs." for i in range(8)], "label": label * 4, "idx": list(range(8))}
        datasets.Dataset.from_dict(rows).to_parquet(glue / f"cola/{split}-00000-of-00001.parquet")
    return root


@pytest.fixture
def fetching(cli, tmp_path):
    """`fetching(address, *args)`: a command that knows the hub at `address`, or none where that is empty."""

    def run(address, *args):
        home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        offline = {"HF_HUB_OFFLINE": "0" if address else "1", "HF_ENDPOINT": address or "http://127.0.0.1:9"}
        return cli(*args, **home, **offline, HF_HUB_CACHE=str(tmp_path / "hf/hub"))

    return run


def test_a_model_and_a_corpus_from_the_hub_and_then_offline(root, fetching, tmp_path):
    """`compress` fetches what it needs and no pickle; offline the same command gives the same student."""
    command = [
        "compress",
        "someone/tiny",
        "--layers",
        2,
        "--train",
        "pretrain",
        "--corpus",
        "hub:someone/text",
    ]
    command += ["--steps", 2, "--window", 16, "--batch", 2]
    with hub.serving(root) as (address, asked):
        done = fetching(address, *command, "--out", tmp_path / "online")
    assert done.returncode == 0, done.stderr
    assert any("model.safetensors" in line for line in asked)
    assert not any(line.endswith(".bin") for line in asked)
    assert (tmp_path / "hf/hub/models--someone--tiny/snapshots" / hub.COMMIT / "config.json").is_file()
    assert (tmp_path / "hf/hub/models--someone--tiny/refs/main").read_text() == hub.COMMIT
    done = fetching("", *command, "--out", tmp_path / "offline")
    assert done.returncode == 0, done.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("online", "offline")]
    assert weights[0] == weights[1]
    card = json.loads((tmp_path / "online/compression.json").read_text())
    assert card["teacher"]["name"] == "someone/tiny"


def test_glue_from_the_hub_and_then_offline(root, fetching, tmp_path):
    """Without --data the task's rows are the hub's; they are fetched once."""
    command = ["glue", root / "models/someone/tiny", "--task", "cola", "--epochs", 1]
    with hub.serving(root) as (address, _):
        done = fetching(address, *command, "--out", tmp_path / "online")
    assert done.returncode == 0, done.stderr
    assert "8" in done.stderr  # not as many rows as GLUE's
    done = fetching("", *command, "--out", tmp_path / "offline")
    assert done.returncode == 0, done.stderr


def test_clean_reads_a_corpus_from_the_hub(root, fetching, tmp_path):
    """hub:NAME for `clean` as well; offline it is the text that was fetched."""
    with hub.serving(root) as (address, _):
        done = fetching(address, "clean", "hub:someone/text", "--rules", "short", "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    done = fetching("", "clean", "hub:someone/text", "--rules", "short", "--out", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a/part-00000.jsonl").read_bytes() == (tmp_path / "b/part-00000.jsonl").read_bytes()


RETRIES = pytest.mark.slow  # datasets asks six times, for 23 seconds
REFUSED = {
    "teacher": (
        ["compress", "someone/nothing", "--layers", "2"],
        "someone/nothing: no such folder or file here",
    ),
    "corpus": (
        ["compress", "TINY", "--train", "pretrain", "--corpus", "hub:a/nothing"],
        "hub:a/nothing': cannot be",
    ),
    "clean": (["clean", "hub:a/nothing"], "hub:a/nothing': cannot be fetched"),
    "glue": (["glue", "TINY", "--task", "rte"], "nyu-mll/glue cannot be fetched"),
}


def refused(root, fetching, tmp_path, address, what):
    """The command `what` of REFUSED, with one line and nothing made."""
    command, words = REFUSED[what]
    command = [str(root / "models/someone/tiny") if word == "TINY" else word for word in command]
    done = fetching(address, *command, "--out", tmp_path / "out")
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_hub_does_not_have_is_one_line(root, fetching, tmp_path, what):
    """404: exit 2, one line that says which."""
    with hub.serving(root) as (address, _):
        refused(root, fetching, tmp_path, address, what)


@pytest.mark.parametrize(
    "what", ["teacher", *(pytest.param(w, marks=RETRIES) for w in ("corpus", "clean", "glue"))]
)
def test_a_hub_where_nobody_answers_is_one_line(root, fetching, tmp_path, what):
    """Connection refused: the same, and the retries on the way are not counted aloud."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused(root, fetching, tmp_path, f"http://127.0.0.1:{unused.getsockname()[1]}", what)
