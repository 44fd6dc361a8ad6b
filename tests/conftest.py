"""Tiny checkpoints with real tokenizers, and the command line as a process."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test waits for a hub; the libraries read this at import

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Return the number of items in the list; raise ValueError if there are none.",
    "A class is a template from which objects are made; a function is a named piece of work.",
    "def add(a, b): return a + b",
    "Numbers 0123456789, umlauts äöü, an emoji \U0001f600 and a dash – all must survive.",
]
TEXT = "\n\n".join(f"{i}: {a} {b}" for i in range(40) for a in SENTENCES for b in SENTENCES[i % 5 :])


def write_tokenizer(folder: Path, vocab: int = 400, positions: int = 64) -> int:
    """A byte-level BPE trained on SENTENCES in `folder`; returns its end-of-text id."""
    from toolchain.corpus.tokenizer import train_bpe

    return train_bpe(SENTENCES * 4, vocab, folder, positions)


GPT2 = {"n_layer": 4, "n_embd": 32, "n_head": 2, "n_positions": 64}
LLAMA = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def build_checkpoint(
    path: Path, family: str, *, seed: int = 0, dtype: str = "float32", **overrides: object
) -> Path:
    """A random causal LM of `family` (a transformers model_type) with weights large enough for errors to show."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path.mkdir(parents=True, exist_ok=True)
    fields = {**(GPT2 if family == "gpt2" else LLAMA), **overrides}
    eos = write_tokenizer(path, positions=64)
    config = AutoConfig.for_model(family, vocab_size=400, bos_token_id=eos, eos_token_id=eos, **fields)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.mul_(6.0)
            elif "norm" in name or "ln_" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
            else:
                weight.add_(torch.randn_like(weight) * 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_checkpoint(family, **overrides)`: a fresh folder with a tiny random checkpoint."""

    def make(family: str, **overrides: object) -> Path:
        return build_checkpoint(tmp_path_factory.mktemp("checkpoint") / family, family, **overrides)

    return make


@pytest.fixture(scope="session")
def gpt2_checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """A 4-layer GPT-2; read only."""
    return make_checkpoint("gpt2")


@pytest.fixture(scope="session")
def llama_checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """A 4-layer Llama with grouped queries and tied embeddings; read only."""
    return make_checkpoint("llama")


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small text file of many paragraphs."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with real GLUE tasks and text; a test that needs it is skipped where it is absent."""
    folder = Path(os.environ.get("TOOLCHAIN_DATA", "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here; set TOOLCHAIN_DATA to the folder with glue/ and lm/")
    return folder


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`cli(*args)` runs `toolchain` as a process, its caches in a folder of the test's own."""

    def run(*args: object, timeout: float = 180, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "toolchain", *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", **env},
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def ends() -> Callable[[str, float], bool]:
    """`ends(pid, seconds)`: whether that process has ended in time, if nobody has asked for its result yet."""

    def alive(pid: str) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def ended(pid: str, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (lives := alive(pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return not lives

    return ended
