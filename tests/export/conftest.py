import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from devices.artifact import Artifact
from export.architecture import check
from export.build import describe_model
from export.checkpoint import open_checkpoint
from export.graph import write_graph
from export.recipes import RECIPES, Recipe


@pytest.fixture
def parity_here(monkeypatch, tmp_path_factory):
    """The PyTorch reference in this process, its cache shared by the session: what a child costs is saved."""
    from export import answers, reference

    os.environ.setdefault("TOOLCHAIN_TEST_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ["TOOLCHAIN_TEST_CACHE"])
    monkeypatch.setattr(answers, "_run_child", reference.main)


@pytest.fixture(scope="session")
def write_artifact(tmp_path_factory):
    """`write_artifact(checkpoint, recipe="fp32")`, a name or a Recipe: an unsealed artifact that runs."""

    def write(checkpoint: Path, recipe: str | Recipe = "fp32") -> Artifact:
        folder = tmp_path_factory.mktemp("artifact")
        opened = open_checkpoint(checkpoint)
        arch, chosen = check(opened), recipe if isinstance(recipe, Recipe) else RECIPES[recipe]
        manifest = {
            "kind": arch.kind,
            "name": "test",
            "model": describe_model(arch),
            "recipe": {"name": chosen.name},
            "bytes": write_graph(opened, arch, chosen, folder, "test"),
        }
        return Artifact(folder, manifest, "")

    return write


@pytest.fixture(scope="session")
def make_classifier(tmp_path_factory, make_checkpoint):
    """`make_classifier(family, **overrides)`: a fine-tuned checkpoint's form: a score matrix, no head."""

    def make(family: str, **overrides: object) -> Path:
        path = tmp_path_factory.mktemp("classifier") / family
        shutil.copytree(make_checkpoint(family, **overrides), path)
        weights = load_file(path / "model.safetensors")
        weights.pop("lm_head.weight", None)
        config = json.loads((path / "config.json").read_text())
        width = config.get("n_embd") or config["hidden_size"]
        weights["score.weight"] = np.random.default_rng(0).normal(size=(2, width)).astype(np.float32)
        save_file(weights, path / "model.safetensors", {"format": "pt"})
        kind = "GPT2" if family == "gpt2" else "Llama"
        config |= {"architectures": [f"{kind}ForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}
        (path / "config.json").write_text(json.dumps({**config, "pad_token_id": config["eos_token_id"]}))
        return path

    return make


@pytest.fixture(scope="session")
def torch_logits():
    """`torch_logits(checkpoint, ids)`: PyTorch's logits of ids [batch, sequence] in float64 and float32."""
    import torch
    from transformers import AutoModelForCausalLM

    def compute(checkpoint: Path, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.inference_mode():
            tokens = torch.from_numpy(ids)
            single = model.eval()(tokens).logits.numpy()
            return model.double()(tokens).logits.numpy(), single

    return compute
