"""Artifacts as `export` writes them, and the environments in which other projects' tools open them."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from devices.runtime import Decoder
from export.build import export

HERE = Path(__file__).parent
TEACHER = HERE.parents[1] / "toolchain" / "assets" / "teacher"
# Tiny models with random weights: heads too small for the attention operator to rotate and heads that it
# rotates, heads wider than hidden / heads, biases, a window shorter than what is generated.
TINY: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-16": {"hidden_size": 64},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
}
TEXTS = [
    "Return the number of",
    "The class",
    "A function that takes a list of strings and returns",
    "0123456789 äöü \U0001f600",
]


def environment(name: str) -> Path:
    """The folder of an environment; the test is skipped where nobody has made it.

    optimum-onnx's may be the one that its measurement as a peer uses: PEERS names that folder.
    """
    peers = os.environ.get("PEERS") if name == "optimum-onnx" else None
    folder = Path(peers or os.environ.get("INTEROP") or ".cache/interop") / name
    if not (folder / "ready").is_file():  # the last thing that is written there
        pytest.skip(f"{folder} is not here; make it with `make interop`")
    return folder.absolute()


@pytest.fixture(scope="session")
def interop_folder() -> Callable[[str], Path]:
    """`interop_folder(name)`: the folder of an environment."""
    return environment


@pytest.fixture(scope="session")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, dict[str, Any]], dict[str, Any]]:
    """`ask(name, script, request)`: what that script answers in the environment called `name`, offline."""

    def run(name: str, script: str, request: dict[str, Any]) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("asked")
        (folder / "request").write_text(json.dumps(request))
        command = [environment(name) / "bin" / "python", HERE / script, folder / "request", folder / "answer"]
        quiet = {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            list(map(str, command)), env={**kept, **quiet}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((folder / "answer").read_text())

    return run


@pytest.fixture(scope="session")
def artifact(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`artifact("teacher-int8")`: the folder of a model, the demo's teacher or one of TINY, and a recipe."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            model, recipe = name.rsplit("-", 1)
            checkpoint = (
                TEACHER if model == "teacher" else make_checkpoint(model.split("-")[0], **TINY[model])
            )
            made[name] = tmp_path_factory.mktemp("artifact") / name
            export(checkpoint, made[name], recipe, parity=False)
        return made[name]

    return make


@pytest.fixture(scope="session")
def classifier(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """`classifier(family, recipe)`: the folder of a classifier of three labels with random weights."""

    def make(family: str, recipe: str) -> Path:
        checkpoint = tmp_path_factory.mktemp("classifier") / family
        shutil.copytree(make_checkpoint(family), checkpoint)
        weights = load_file(checkpoint / "model.safetensors")
        weights.pop("lm_head.weight", None)
        weights["score.weight"] = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
        save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
        config = json.loads((checkpoint / "config.json").read_text())
        kind = {"gpt2": "GPT2", "llama": "Llama"}[family] + "ForSequenceClassification"
        labels = {"0": "bad", "1": "fair", "2": "good"}
        config |= {"architectures": [kind], "id2label": labels, "pad_token_id": config["eos_token_id"]}
        (checkpoint / "config.json").write_text(json.dumps(config))
        export(checkpoint, checkpoint.with_name(recipe), recipe, parity=False)
        return checkpoint.with_name(recipe)

    return make


@pytest.fixture(scope="session")
def until_end() -> Callable[[Decoder, list[int]], list[int]]:
    """`until_end(decoder, ids)`: ids before the first end token, as our runtime gives them."""

    def cut(decoder: Decoder, ids: list[int]) -> list[int]:
        ends = [at for at, token in enumerate(ids) if token in decoder.special["eos"]]
        return ids[: ends[0]] if ends else ids

    return cut


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Prompts of different lengths."""
    return TEXTS
