import os
from pathlib import Path

import numpy as np
import pytest

from devices.artifact import Artifact
from export.architecture import check
from export.build import describe_model
from export.checkpoint import open_checkpoint
from export.graph import write_graph
from export.recipes import RECIPES


@pytest.fixture
def parity_here(monkeypatch, tmp_path_factory):
    """The PyTorch reference in this process, its cache shared by the session: what a child costs is saved."""
    from export import parity, reference

    os.environ.setdefault("TOOLCHAIN_TEST_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ["TOOLCHAIN_TEST_CACHE"])
    monkeypatch.setattr(parity, "_run_child", reference.main)


@pytest.fixture(scope="session")
def write_artifact(tmp_path_factory):
    """`write_artifact(checkpoint, recipe="fp32")`: an unsealed artifact that the runtime opens."""

    def write(checkpoint: Path, recipe: str = "fp32") -> Artifact:
        folder = tmp_path_factory.mktemp("artifact")
        opened = open_checkpoint(checkpoint)
        arch = check(opened)
        write_graph(opened, arch, RECIPES[recipe], folder, "test")
        manifest = {
            "kind": arch.kind,
            "name": "test",
            "model": describe_model(arch),
            "recipe": {"name": recipe},
        }
        return Artifact(folder, manifest, "")

    return write


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
