"""Bad input to `toolchain compress`, by the dozen: one line, exit 2, and nothing that looks finished."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "how small? say --layers K"),
        (["--layers", "0"], "0 is not in the range x>=1"),
        (["--layers", "-1"], "-1 is not in the range"),
        (["--layers", "two"], "'two' is not a valid integer"),
        (["--layers", "5"], "the teacher has 4 layers; choose 1 to 4"),
        (["--layers", "2", "--select", "psuedo-uniform"], "did you mean pseudo-uniform"),
        (["--layers", "2", "--select", "best"], "unknown strategy 'best'"),
        (["--layers", "4", "--select", "bottom-half"], "cannot keep 4 of 4 layers"),
        (["--keep", "0,4"], "no layer 4; the teacher's are 0 to 3"),
        (["--keep", "0,0"], "layer 0 stands there twice"),
        (["--keep", "a,b"], "'a' is no layer number"),
        (["--keep", "-1"], "'-1' is no layer number"),
        (["--keep", ""], "'' is no layer number"),
        (["--keep", "0,1", "--layers", "3"], "names 2 layers, --layers says 3"),
        (["--keep", "0,1", "--select", "uniform"], "give one of the two"),
        (["--layers", "2", "--init", "randon"], "did you mean random?"),
        (["--keep", "0,1", "--init", "random"], "keeps no layer of the teacher"),
        (["--layers", "2", "--train", "pretrian"], "did you mean pretrain?"),
        (["--layers", "2", "--tokens", "100"], "--tokens: says how to train, and --train is none"),
        (["--layers", "2", "--corpus", "x.txt"], "--corpus: says how to train"),
        (["--layers", "2", "--objective", "logits"], "--objective: says how to train"),
        (
            ["--layers", "2", "--cache-teacher", "x"],
            "--cache-teacher: needs the teacher, and --train is none",
        ),
        (["--layers", "2", "--alpha", "0.5"], "--alpha: needs the teacher, and --train is none"),
        (["--layers", "2", "--train", "pretrain", "--objective", "logits"], "use it with --train distill"),
        (["--layers", "2", "--train", "distill", "--objective", "logit"], "did you mean logits?"),
        (["--layers", "2", "--train", "distill", "--objective", "lm"], "unknown objective 'lm'"),
        (["--layers", "2", "--train", "pretrain", "--tokens", "0"], "0 is not in the range"),
        (["--layers", "2", "--train", "pretrain", "--lr", "-1"], "-1.0 is not in the range"),
        (["--layers", "2", "--train", "pretrain", "--lr", "nan"], "--lr nan: must be a number above 0"),
        (["--layers", "2", "--train", "pretrain", "--lr", "inf"], "--lr inf: must be a number above 0"),
        (["--layers", "2", "--train", "distill", "--alpha", "2"], "2.0 is not in the range"),
        (["--layers", "2", "--train", "distill", "--temperature", "0"], "0.0 is not in the range"),
        (["--layers", "2", "--train", "pretrain", "--tokens", "9", "--steps", "9"], "give one of the two"),
        (["--layers", "2", "--train", "pretrain", "--window", "65"], "the model has 64 positions"),
        (["--layers", "2", "--train", "pretrain", "--alpha", "0.5"], "--alpha 0.5: needs the teacher"),
        (["--layers", "2", "--train", "pretrain", "--temperature", "2"], "--temperature 2.0: needs the"),
        (["--layers", "2", "--frobnicate"], "No such option"),
    ],
)
def test_arguments(
    arguments: list[str], says: str, gpt2_checkpoint: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    """Arguments that cannot be meant: one line that says which and what to do."""
    refused(main("compress", gpt2_checkpoint, "--out", tmp_path / "s", *arguments), says)
    assert not list(tmp_path.iterdir())


def refused(done: Any, says: str) -> None:
    """Exit 2 and one line on stderr that holds `says` (what was announced before stays above it)."""
    assert done.code == 2, (done.out, done.err)
    last = done.err.splitlines()[-1]
    assert last.startswith("toolchain: ")
    assert says in last, last
    assert "Traceback" not in done.err


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of the folder's config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def cut_file(folder: Path, size: int) -> None:
    """Keep the first `size` bytes of the weights (from the end, where negative)."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no such folder or file"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json: no such file"),
    "config no JSON": (lambda d: (d / "config.json").write_text("{"), "not valid JSON"),
    "config a list": (lambda d: (d / "config.json").write_text("[]"), "must be a JSON object"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no model.safetensors"),
    "pickled weights": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        "pickled weights are never opened",
    ),
    "weights empty": (lambda d: cut_file(d, 0), "truncated or corrupt safetensors"),
    "weights cut in the header": (lambda d: cut_file(d, 200), "truncated or corrupt safetensors"),
    "weights cut in the data": (lambda d: cut_file(d, -1), "truncated or corrupt safetensors"),
    "bytes after the weights": (
        lambda d: (d / "model.safetensors").open("ab").write(b"xx"),
        "truncated or corrupt safetensors",
    ),
    "weights are text": (
        lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
        "truncated or corrupt safetensors",
    ),
    "unknown architecture": (lambda d: edit_config(d, model_type="t5"), "unknown architecture 't5'"),
    "near architecture": (lambda d: edit_config(d, model_type="gpt-2"), "did you mean gpt2"),
    "no architecture": (lambda d: edit_config(d, model_type=None), "unknown architecture ''"),
    "more layers than weights": (lambda d: edit_config(d, n_layer=5), "tensor transformer.h.4"),
    "fewer layers than weights": (
        lambda d: edit_config(d, n_layer=3),
        "hold more than config.json's 3 layers",
    ),
    "another width": (lambda d: edit_config(d, n_embd=64), "config.json says"),
    "another vocabulary": (lambda d: edit_config(d, vocab_size=401), "config.json says"),
    "no layer count": (lambda d: edit_config(d, n_layer=None), "n_layer must be a positive whole number"),
    "quantized": (
        lambda d: edit_config(d, quantization_config={"quant_method": "gptq"}),
        "weights are quantized already",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_teachers(damage: str, gpt2_checkpoint: Path, tmp_path: Path, main: Callable[..., Any]) -> None:
    """A teacher that is damaged, contradicts itself or is not supported: refused, nothing written."""
    spoil, says = DAMAGE[damage]
    shutil.copytree(gpt2_checkpoint, tmp_path / "teacher")
    spoil(tmp_path / "teacher")
    refused(main("compress", tmp_path / "teacher", "--out", tmp_path / "s", "--layers", 2), says)
    assert {path.name for path in tmp_path.iterdir()} <= {"teacher"}


@pytest.mark.parametrize("content", ["{broken", "", "{}", "[]", None])
@pytest.mark.parametrize("train", ["none", "pretrain"])
def test_tokenizers(
    content: str | None,
    train: str,
    gpt2_checkpoint: Path,
    corpus_file: Path,
    tmp_path: Path,
    main: Callable[..., Any],
) -> None:
    """A damaged tokenizer.json is the teacher's, and named so; none at all is said, and only training needs it."""
    teacher = tmp_path / "teacher"
    shutil.copytree(gpt2_checkpoint, teacher)
    file = teacher / "tokenizer.json"
    file.unlink() if content is None else file.write_text(content)
    words = ["compress", teacher, "--out", tmp_path / "s", "--layers", 2, "--train", train]
    done = main(*words, *(["--corpus", corpus_file] if train == "pretrain" else []))
    if content is None and train == "none":
        assert done.code == 0 and f"{teacher}: has no tokenizer.json, so the student has none" in done.err
        return
    refused(done, f"{teacher}: has no tokenizer.json" if content is None else f"{file}: not a tokenizer")
    assert done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


@pytest.mark.parametrize("existing", ["folder", "file"])
def test_out_exists(existing: str, gpt2_checkpoint: Path, tmp_path: Path, main: Callable[..., Any]) -> None:
    """What is there stays there without --force; a file is never replaced."""
    out = tmp_path / "s"
    out.mkdir() if existing == "folder" else out.write_text("mine")
    refused(main("compress", gpt2_checkpoint, "--out", out, "--layers", 2), "already exists")
    if existing == "file":
        refused(main("compress", gpt2_checkpoint, "--out", out, "--layers", 2, "--force"), "is a file")
        assert out.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file or folder"),
        ("", "is empty"),
        ("\n \n", "holds no text to train on"),
        ("Three short words.", "name a larger one or a smaller --window"),
    ],
    ids=["missing", "empty", "blank", "shorter than one block"],
)
def test_corpora(
    content: str | None, says: str, gpt2_checkpoint: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    """A corpus that is missing, empty or shorter than a block: one line, and no student is left."""
    corpus = tmp_path / "corpus.txt"
    if content is not None:
        corpus.write_text(content)
    words = ["compress", gpt2_checkpoint, "--out", tmp_path / "s", "--layers", 2, "--train", "pretrain"]
    refused(main(*words, "--corpus", corpus, "--heldout", corpus), says)
    assert {path.name for path in tmp_path.iterdir()} <= {"corpus.txt"}


def test_a_loss_that_is_no_number_names_the_last_good_snapshot(
    gpt2_checkpoint: Path, corpus_file: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    """Exit 2, the step and the snapshot, which is there; no student is published."""
    few = ["--steps", 6, "--window", 16, "--batch", 2, "--snapshot-every", 1, "--heldout-blocks", 2]
    words = ["compress", gpt2_checkpoint, "--layers", 2, "--train", "pretrain", "--corpus", corpus_file, *few]
    done = main(*words, "--lr", "1e30", "--warmup", 0, "--out", tmp_path / "out")
    last = done.err.splitlines()[-1]
    found = re.search(r"the loss is (?:nan|inf) at step \d, the last good snapshot is (\S+);", last)
    assert done.code == 2 and found, done.err
    assert (Path(found[1]) / "model.safetensors").is_file() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "encoding"),
    [
        (["compress", "TEACHER", "--layers", 2, "--train", "pretrain"], "latin-1"),
        (["compress", "TEACHER", "--layers", 2, "--train", "distill"], "utf-16"),
        (["evaluate", "TEACHER"], "latin-1"),
    ],
)
def test_a_corpus_in_another_encoding_is_one_line(
    gpt2_checkpoint: Path, tmp_path: Path, main: Callable[..., Any], command: list[Any], encoding: str
) -> None:
    """Exit 2, the file and what to do; nothing was said or made before."""
    (tmp_path / "corpus.txt").write_bytes(("Ein schöner Tag am See.\n\n" * 50).encode(encoding))
    words = [gpt2_checkpoint if word == "TEACHER" else word for word in command]
    done = main(*words, "--corpus", tmp_path / "corpus.txt", "--out", tmp_path / "out")
    assert done.code == 2 and "corpus.txt" in done.err and "UTF-8" in done.err
    assert len(done.err.splitlines()) == 1 and not (tmp_path / "out").exists()
