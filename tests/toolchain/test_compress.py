"""The whole command: what a good run leaves, what a bad one does not, and how a killed one goes on."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devices.errors import UserError
from export.checkpoint import identity, open_checkpoint
from toolchain.compress import run, truncate
from toolchain.compress.run import compress
from toolchain.compress.trainer import Training
from toolchain.compress.unfinished import unfinished


def files(folder: Path) -> set[str]:
    """Names in `folder`, hidden ones too."""
    return {path.name for path in folder.iterdir()}


def test_a_student_and_its_papers(gpt2_checkpoint: Path, tmp_path: Path) -> None:
    """compression.json says which teacher, which layers and which student; the card says it to people."""
    said: list[str] = []
    out = tmp_path / "student"
    result = compress(str(gpt2_checkpoint), out, layers=2, command="toolchain compress ...", say=said.append)
    written = json.loads((out / "compression.json").read_text())
    assert written == result
    assert written["schema"] == 1
    assert written["teacher"]["name"] == gpt2_checkpoint.name
    assert written["teacher"]["sha256"] == identity(gpt2_checkpoint)
    assert written["student"]["sha256"] == identity(out)
    assert (written["teacher"]["layers"], written["student"]["layers"]) == (4, 2)
    assert (written["init"], written["select"], written["keep"]) == ("truncate", "pseudo-uniform", [0, 3])
    assert (written["train"], written["objective"], written["training"]) == ("none", None, None)
    counted = sum(len(open_checkpoint(out).read(name).ravel()) for name in open_checkpoint(out).tensors)
    assert written["student"]["parameters"] == counted
    assert {"torch", "transformers", "python"} <= set(written["versions"])
    assert said == [f"{out}: layers 0,3 of gpt2's 4 (pseudo-uniform)"]
    assert files(tmp_path) == {"student"}
    assert not {run.WORK, ".config.json.partial"} & files(out)


def test_the_card_is_read_by_the_hub_s_library(gpt2_checkpoint: Path, tmp_path: Path) -> None:
    """Front matter: base model, library, tags, and the license that the teacher's card states."""
    import shutil

    from huggingface_hub import ModelCard

    teacher = tmp_path / "teacher"
    shutil.copytree(gpt2_checkpoint, teacher)
    (teacher / "README.md").write_text("---\nlicense: mit\n---\n# Teacher\n")
    compress(str(teacher), tmp_path / "student", layers=2, command="toolchain compress teacher --layers 2")
    card = ModelCard.load(tmp_path / "student/README.md")
    assert card.data.base_model == "teacher"
    assert card.data.license == "mit"
    assert card.data.library_name == "transformers"
    assert "layer-truncation" in card.data.tags
    assert "toolchain compress teacher --layers 2" in card.text
    assert "Layers 0, 3 of teacher's 4" in card.text


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["--keep", "0,2"], [0, 2]),
        (["--keep", "3,0"], [0, 3]),
        (["--keep", "0,2", "--layers", "2"], [0, 2]),
        (["--layers", "3", "--select", "uniform"], [0, 1, 2]),
        (["--layers", "2", "--select", "top-half"], [2, 3]),
        (["--layers", "4"], [0, 1, 2, 3]),
        (["--layers", "1"], [0]),
    ],
)
def test_layers_by_name_or_by_strategy(
    arguments: list[str], kept: list[int], gpt2_checkpoint: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    """--keep and --select both end in the same list, which compression.json records."""
    assert main("compress", gpt2_checkpoint, "--out", tmp_path / "s", *arguments).code == 0
    assert json.loads((tmp_path / "s/compression.json").read_text())["keep"] == kept


def test_random_choice_follows_the_seed(gpt2_checkpoint: Path, tmp_path: Path) -> None:
    """The seed that drew the layers is recorded, and draws them again."""
    for name in ("a", "b"):
        compress(str(gpt2_checkpoint), tmp_path / name, layers=2, select="random", seed=7)
    a, b = (json.loads((tmp_path / name / "compression.json").read_text()) for name in ("a", "b"))
    assert a["keep"] == b["keep"]
    assert a["seed"] == 7
    assert a["student"]["sha256"] == b["student"]["sha256"]


def test_control_student(gpt2_checkpoint: Path, tmp_path: Path) -> None:
    """--init random: as many layers, fresh weights, and the record keeps no layers."""
    result = compress(str(gpt2_checkpoint), tmp_path / "s", layers=2, init="random", seed=1)
    assert (result["init"], result["select"], result["keep"]) == ("random", None, None)
    assert result["student"]["layers"] == 2
    assert "fresh random weights (seed 1)" in (tmp_path / "s/README.md").read_text()


def test_json_on_stdout(gpt2_checkpoint: Path, tmp_path: Path, main: Callable[..., Any]) -> None:
    """--json prints what compression.json holds, and nothing else on stdout."""
    done = main("compress", gpt2_checkpoint, "--out", tmp_path / "s", "--layers", 2, "--json")
    assert json.loads(done.out) == json.loads((tmp_path / "s/compression.json").read_text())


def test_cutting_needs_no_torch(gpt2_checkpoint: Path, tmp_path: Path) -> None:
    """Plain truncation imports neither torch nor transformers; the same process proves it."""
    code = (
        "import sys; from pathlib import Path; from toolchain.compress.run import compress\n"
        "compress(sys.argv[1], Path(sys.argv[2]), layers=2)\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, gpt2_checkpoint, tmp_path / "s"], check=True)


def test_force_replaces(gpt2_checkpoint: Path, tmp_path: Path) -> None:
    """An existing folder is refused; with force it is replaced whole."""
    out = tmp_path / "s"
    compress(str(gpt2_checkpoint), out, layers=3)
    (out / "mine.txt").write_text("old")
    with pytest.raises(UserError, match="already exists"):
        compress(str(gpt2_checkpoint), out, layers=2)
    assert json.loads((out / "config.json").read_text())["n_layer"] == 3
    compress(str(gpt2_checkpoint), out, layers=2, force=True)
    assert json.loads((out / "config.json").read_text())["n_layer"] == 2
    assert "mine.txt" not in files(out)


@pytest.mark.parametrize("where", ["", "inside", "inside/deeper"])
def test_the_teacher_is_never_touched(where: str, gpt2_checkpoint: Path, tmp_path: Path) -> None:
    """--out may not be the teacher's folder, in it, or around it, not even with force."""
    import shutil

    teacher = tmp_path / "models/teacher"
    shutil.copytree(gpt2_checkpoint, teacher)
    before = identity(teacher)
    for folder in (teacher, teacher.parent):  # as of folders that --force would replace
        (folder / "training.json").write_text("{}")
    for out in (teacher / where, tmp_path / "models"):
        with pytest.raises(UserError, match="overlaps the teacher's folder"):
            compress(str(teacher), out, layers=2, force=True)
    assert identity(teacher) == before
    assert files(tmp_path) == {"models"}


def test_no_disk_space(
    gpt2_checkpoint: Path, tmp_path: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk in the middle of the weights: one line, exit 2, nothing left."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(truncate, "copy_inherited", full)
    done = main("compress", gpt2_checkpoint, "--out", tmp_path / "s", "--layers", 2)
    assert done.code == 2
    assert "no space left on device; free some disk" in done.err.splitlines()[-1]
    assert files(tmp_path) == set()


def test_interrupted_while_cutting(gpt2_checkpoint: Path, tmp_path: Path) -> None:
    """Ctrl-C to the process while it writes weights: exit 130, one line, nothing left."""
    code = (
        # A child of a shell's background job ignores SIGINT; a terminal's does not.
        "import signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from toolchain.compress import truncate\nfrom toolchain.cli import main\n"
        "whole = truncate.stream\n"
        "def slow(*args):\n    whole(*args)\n    print('cutting', flush=True)\n    time.sleep(60)\n"
        "truncate.stream = slow\nmain(sys.argv[1:])"
    )
    words = ["compress", gpt2_checkpoint, "--out", tmp_path / "s", "--layers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "cutting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("toolchain: interrupted")
    assert "Traceback" not in err
    assert files(tmp_path) == set()


def record(training: Training) -> dict[str, Any]:
    """A training record as `train` returns it, without the training."""
    return {
        "objective": training.objective,
        "corpus": {"name": "text", "sha256": "0" * 64, "tokens": 640},
        "tokens": 640,
        "steps": 10,
        "hours": 0.01,
        "perplexity": {"before": 90.0, "after": 30.0, "tokens": 63, "window": 64},
    }


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Training replaced by a stand-in that snapshots, fails the first time, and notes how it was called."""
    calls: list[dict[str, Any]] = []

    def stand_in(
        model: Path, work: Path, training: Training, teacher: Path | None, corpus: Any
    ) -> dict[str, Any]:
        calls.append({"training": training, "teacher": teacher, "resumed": (work / "snapshots").exists()})
        assert open_checkpoint(model).tensors
        (work / "snapshots/checkpoint-5").mkdir(parents=True, exist_ok=True)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return record(training)

    monkeypatch.setattr("toolchain.compress.train.train", stand_in)
    return calls


def test_an_interrupted_training_goes_on(
    gpt2_checkpoint: Path, tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    """The same request finds its snapshots again; the finished student holds no trace of them."""
    out, said = tmp_path / "s", []
    for _ in range(2):
        try:
            result = compress(
                str(gpt2_checkpoint),
                out,
                layers=2,
                train="distill",
                training=Training(objective="logits"),
                say=said.append,
            )
        except KeyboardInterrupt:
            assert not out.exists()
    assert [call["resumed"] for call in trained] == [False, True]
    assert trained[1]["teacher"] == gpt2_checkpoint
    assert "going on with the unfinished run found here" in said
    assert files(tmp_path) == {"s"}
    assert run.WORK not in files(out)
    assert (result["train"], result["objective"]) == ("distill", "logits")
    assert result["training"]["perplexity"]["after"] == 30.0
    assert "90.00 before, 30.00 after" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": 3}, "layers 2, now 3"),
        ({"training": Training(lr=1e-3)}, "(lr 0.0005, now 0.001);"),
        ({"init": "random"}, "init truncate, now random"),
        ({"seed": 1}, "(seed 0, now 1);"),
        ({"seed": 1, "training": Training(seed=1)}, "(seed 0, now 1);"),
        ({"select": "first"}, "select pseudo-uniform, now first"),
        ({"train": "none", "training": None}, "train pretrain, now none"),
    ],
)
def test_another_request_drops_no_snapshots_without_force(
    change: dict[str, Any], says: str, gpt2_checkpoint: Path, tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    """Refused, saying what differs; with force it starts anew, and never continues from another's snapshots."""
    asked = {"layers": 2, "train": "pretrain", "training": Training()}
    with pytest.raises(KeyboardInterrupt):
        compress(str(gpt2_checkpoint), tmp_path / "s", **asked)
    with pytest.raises(UserError, match="of another request") as refused:
        compress(str(gpt2_checkpoint), tmp_path / "s", **(asked | change))
    assert says in str(refused.value) and "--force" in str(refused.value)
    assert (tmp_path / ".s.staging" / run.WORK / "snapshots/checkpoint-5").is_dir()
    said: list[str] = []
    compress(str(gpt2_checkpoint), tmp_path / "s", **(asked | change), force=True, say=said.append)
    assert "was for another request" in said[0]
    assert not any(call["resumed"] for call in trained)
    assert len(trained) == (1 if change.get("train") == "none" else 2)


def test_a_torn_student_is_made_again(
    gpt2_checkpoint: Path, tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    """A kill while the trained weights were written: the resumed run cuts anew before it goes on."""
    asked: dict[str, Any] = {"layers": 2, "train": "pretrain", "training": Training()}
    with pytest.raises(KeyboardInterrupt):
        compress(str(gpt2_checkpoint), tmp_path / "s", **asked)
    (tmp_path / ".s.staging/model.safetensors").write_bytes(b"torn")
    compress(str(gpt2_checkpoint), tmp_path / "s", **asked)
    assert trained[1]["resumed"]


def test_another_text_starts_anew(
    gpt2_checkpoint: Path, tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    """The same command on a corpus that changed under its name does not go on from the old text's snapshots."""
    text = tmp_path / "text.txt"
    asked: dict[str, Any] = {"layers": 2, "train": "pretrain"}
    asked["training"] = Training(corpus=str(text), heldout=str(text))
    said: list[str] = []
    text.write_text("One paragraph.")
    with pytest.raises(KeyboardInterrupt):
        compress(str(gpt2_checkpoint), tmp_path / "s", **asked)
    text.write_text("Another paragraph.")
    with pytest.raises(UserError, match=r"of another request \(another corpus\)"):
        compress(str(gpt2_checkpoint), tmp_path / "s", **asked)
    compress(str(gpt2_checkpoint), tmp_path / "s", **asked, force=True, say=said.append)
    assert "was for another request" in said[0]
    assert [call["resumed"] for call in trained] == [False, False]


def test_an_interrupt_at_the_end_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before the finished folder is published, or while snapshots are removed: all is found again."""
    import shutil

    from devices import files as device_files

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def once(say: Callable[[str], object] = lambda line: None) -> None:
        with unfinished(tmp_path / "s", {"a": 1}, force=True, say=say) as staging:
            (staging / run.WORK / "snapshots/checkpoint-5").mkdir(parents=True, exist_ok=True)
            (staging / "model.safetensors").write_bytes(b"whole")

    with monkeypatch.context() as patch:
        patch.setattr(device_files, "_publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            once()
    said: list[str] = []
    once(said.append)
    assert said == ["going on with the unfinished run found here"]
    assert files(tmp_path) == {"s"} and files(tmp_path / "s") == {"model.safetensors"}
    real = shutil.rmtree

    def stopped(path: Path, **options: Any) -> None:
        real(path, **options) if not str(path).endswith(".work") or not path.exists() else interrupt()

    shutil.rmtree(tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            once()
    assert files(tmp_path / "s") == {"model.safetensors"}


def test_helping_processes_leave_a_plain_cut_alone(
    gpt2_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without training there is nothing to help with: a second process returns quietly, writing nothing."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert compress(str(gpt2_checkpoint), tmp_path / "s", layers=2) == {}
    assert files(tmp_path) == set()


FAULTS = {
    "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/1: file write "
    "failed": "no space left on device; free some disk",
    "Error while serializing: I/O error: No space left on device (os error 28)": "no space left on device",
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes": "smaller --batch",
    "CUDA out of memory. Tried to allocate 20.00 MiB.": "smaller --batch or --window",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_room_while_training(
    fault: str,
    gpt2_checkpoint: Path,
    corpus_file: Path,
    tmp_path: Path,
    main: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk or memory in torch's or safetensors' own words: one line that says what to do."""

    def full(*_: object) -> None:
        raise RuntimeError(fault)

    monkeypatch.setattr("toolchain.compress.train.train", full)
    words = ["compress", gpt2_checkpoint, "--out", tmp_path / "s", "--layers", 2, "--train", "pretrain"]
    done = main(*words, "--corpus", corpus_file)
    assert done.code == 2
    assert FAULTS[fault] in done.err.splitlines()[-1]
    assert files(tmp_path) == set()


def test_a_failure_before_the_first_snapshot_leaves_nothing(
    gpt2_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that never began has nothing to go on from: the staging folder is removed."""

    def refuse(*_: object) -> None:
        raise UserError("corpus: is empty; name another")

    monkeypatch.setattr("toolchain.compress.train.train", refuse)
    with pytest.raises(UserError):
        compress(str(gpt2_checkpoint), tmp_path / "s", layers=2, train="pretrain", training=Training())
    assert files(tmp_path) == set()


def test_pretrain_and_distill_for_real(
    gpt2_checkpoint: Path, corpus_file: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    """A few steps of each through the command line: perplexities and budget in the record, student opens."""
    from transformers import AutoModelForCausalLM

    options = ["--corpus", corpus_file, "--steps", 3, "--batch", 2, "--window", 16, "--layers", 2]
    for mode, objective in {"pretrain": "lm", "distill": "logits"}.items():
        out = tmp_path / mode
        done = main("compress", gpt2_checkpoint, "--out", out, "--train", mode, *options)
        assert done.code == 0, done.err
        written = json.loads((out / "compression.json").read_text())
        assert written["objective"] == objective
        assert written["training"]["tokens"] == 3 * 2 * 16
        assert written["training"]["perplexity"]["before"] > 1
        assert written["student"]["sha256"] == identity(out)
        _, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert files(out) == files(tmp_path / "pretrain")
    assert files(tmp_path) == {"pretrain", "distill"}


@pytest.mark.slow
def test_two_processes_make_one_student(gpt2_checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    """Under `accelerate launch` with two processes the same command leaves one whole student."""
    words = ["compress", gpt2_checkpoint, "--out", tmp_path / "s", "--layers", 2, "--train", "distill"]
    words += ["--corpus", corpus_file, "--steps", 3, "--batch", 2, "--window", 16]
    launch = "-m accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no"
    port = 20000 + os.getpid() % 20000
    done = subprocess.run(
        [sys.executable, *launch.split(), f"--main_process_port={port}", "-m", "toolchain", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == {"s"}
    assert json.loads((tmp_path / "s/compression.json").read_text())["training"]["steps"] == 3


def test_killed_training_resumes_for_real(
    gpt2_checkpoint: Path, corpus_file: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    """SIGKILL after a snapshot; the same command again ends where an undisturbed run ends."""
    words = ["compress", gpt2_checkpoint, "--layers", 2, "--train", "pretrain", "--corpus", corpus_file]
    words += ["--steps", 100, "--batch", 2, "--window", 16, "--snapshot-every", 5]
    killed, whole = ([*map(str, words), "--out", str(tmp_path / name)] for name in ("killed", "whole"))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-m", "toolchain", *killed], **quiet)
    snapshots = tmp_path / ".killed.staging" / run.WORK / "snapshots"
    while process.poll() is None and not list(snapshots.glob("checkpoint-*/trainer_state.json")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed").exists()
    done = main(*killed)
    assert done.code == 0
    assert "going on with the unfinished run" in done.err
    assert main(*whole).code == 0
    one, other = (
        json.loads((tmp_path / name / "compression.json").read_text())["training"]
        for name in ("killed", "whole")
    )
    assert one["steps"] == other["steps"] == 100
    assert one["perplexity"]["after"] == pytest.approx(other["perplexity"]["after"], rel=1e-5)


def test_a_model_is_trained_on_whole(gpt2_checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    """Without a word about layers, --train goes on with all of them: a model is fine-tuned on a text."""
    made = compress(
        str(gpt2_checkpoint),
        tmp_path / "tuned",
        train="pretrain",
        training=Training(corpus=str(corpus_file), steps=2, batch=2, window=16),
    )
    assert made["keep"] == [0, 1, 2, 3] and made["select"] == "all" and made["training"]["steps"] == 2
