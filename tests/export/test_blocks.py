"""A vocabulary in parts: the same bytes, the same logits, and views that begin on pages."""

import numpy as np
import onnx
import pytest

from devices.runtime import Decoder
from export import blocks
from export.architecture import check
from export.builder import PAGE
from export.checkpoint import open_checkpoint
from export.inspection import inspect
from export.recipes import RECIPES

IDS = np.random.default_rng(0).integers(0, 400, (2, 24))
WIDE = {
    "gpt2": {"n_embd": 96, "n_head": 4},
    "llama": {"hidden_size": 64},
}
QUANTIZED = [name for name, recipe in RECIPES.items() if recipe.head_bits < 32]


@pytest.mark.parametrize("recipe", QUANTIZED)
@pytest.mark.parametrize(("family", "tied"), [("gpt2", True), ("llama", False)])
def test_parts_change_nothing(make_checkpoint, write_artifact, monkeypatch, family, tied, recipe):
    """Logits and the data file are bit for bit those of a head in one piece, and the graph passes inspection."""
    checkpoint = make_checkpoint(family, **WIDE[family], tie_word_embeddings=tied)
    whole = write_artifact(checkpoint, recipe)
    monkeypatch.setattr(blocks, "PART", 1 << 13)
    parts = write_artifact(checkpoint, recipe)
    data = [(artifact.path / "model.onnx.data").read_bytes() for artifact in (whole, parts)]
    assert data[0] == data[1]
    logits = [Decoder(artifact, threads=1).logits(IDS) for artifact in (whole, parts)]
    np.testing.assert_array_equal(*logits)
    arch = check(open_checkpoint(checkpoint))
    found = [
        inspect(artifact, arch, RECIPES[recipe], artifact.manifest["bytes"]) for artifact in (whole, parts)
    ]
    assert found[0]["bytes"] == found[1]["bytes"]
    more = found[1]["operators"]["MatMulNBits"] - found[0]["operators"]["MatMulNBits"]
    assert more == _count(parts) - 1 > 0


def _count(artifact):
    """How many parts the head has; each begins whole pages after the first, and together they are all rows."""
    graph = onnx.load(str(artifact.path / "model.onnx"), load_external_data=False).graph
    heads = [node for node in graph.node if node.name.startswith("logits.")]
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    places = [{e.key: e.value for e in tensors[node.input[1]].external_data} for node in heads]
    offsets = [int(place["offset"]) for place in places]
    assert all((offset - offsets[0]) % PAGE == 0 for offset in offsets)
    assert sum(tensors[node.input[1]].dims[0] for node in heads) == 400
    return len(heads)
