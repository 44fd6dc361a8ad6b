import re
from dataclasses import replace
from math import prod

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from devices.errors import CheckFailed
from export.architecture import check
from export.checkpoint import open_checkpoint
from export.inspection import examine, inspect
from export.recipes import RECIPES
from export.running import optimized


@pytest.fixture(scope="module")
def subject(gpt2_checkpoint, write_artifact):
    """`subject(recipe)`: artifact, architecture, recipe and stored bytes of a tiny GPT-2."""

    def make(recipe, checkpoint=gpt2_checkpoint):
        chosen = recipe if not isinstance(recipe, str) else RECIPES[recipe]
        artifact = write_artifact(checkpoint, chosen)
        return artifact, check(open_checkpoint(checkpoint)), chosen, artifact.manifest["bytes"]

    return make


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_exported_is_as_it_should_be(make_checkpoint, subject, family, recipe, tied):
    """Every family and recipe passes, and the bytes that run are those that were written."""
    checkpoint = make_checkpoint(family, tie_word_embeddings=tied)
    artifact, arch, chosen, written = subject(recipe, checkpoint)
    found = inspect(artifact, arch, chosen, written)
    assert found["nodes"] == sum(found["operators"].values())
    for kind in ("int8", "int4"):
        assert found["bytes"].get(kind, 0) == written.get(kind, 0)
    assert found["bytes"]["float32"] == pytest.approx(written["float32"], rel=0.01)
    products = {"fp32": (0, 0), "rows": (1, _matrices(arch) - 1)}.get(
        recipe if recipe == "fp32" else chosen.kernel, (_matrices(arch), 0)
    )
    counted = [found["operators"].get(kind, 0) for kind in ("MatMulNBits", "MatMulIntegerToFloat")]
    assert tuple(counted) == products


def _matrices(arch):
    sides = 3 if arch.family.head_norm or arch.family.position == "rotary" else 1
    return arch.layers * (sides + 3 + ("gate" in arch.family.layer)) + 1


def test_a_part_that_is_kept_in_float_may_be(subject):
    """What a recipe keeps in float passes by that recipe, and is named by one that does not."""
    artifact, arch, kept, written = subject(replace(RECIPES["int8"], parts={"down": 32}))
    assert inspect(artifact, arch, kept, written)["operators"]["MatMul"] == arch.layers
    with pytest.raises(CheckFailed, match=r"MatMul .* is not one this recipe is made of"):
        inspect(artifact, arch, RECIPES["int8"], written)
    other = replace(RECIPES["int8"], parts={"up": 32})
    with pytest.raises(CheckFailed, match=r"layers\.0\.down\.weight \[128, 32\] is left in float"):
        inspect(artifact, arch, other, written)


def test_a_copy_that_onnx_runtime_makes_is_found(subject):
    """A Reshape of the tied vocabulary is folded at loading into a second copy in memory: it is named."""
    artifact, arch, recipe, written = subject("int8")
    path = artifact.path / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "embedding.weight")
    shape = numpy_helper.from_array(np.array(tensor.dims, np.int64), "same_shape")
    model.graph.initializer.append(shape)
    head = next(node for node in model.graph.node if node.name == "logits")
    head.input[1] = "again"
    model.graph.node.insert(0, helper.make_node("Reshape", ["embedding.weight", "same_shape"], ["again"]))
    onnx.save(model, str(path))
    with pytest.raises(CheckFailed, match=r"embedding.view, again are vocabulary-sized, 1 may be"):
        inspect(artifact, arch, recipe, written)


def _node(graph, kind, name=""):
    return next(node for node in graph.node if node.op_type == kind and name in node.name)


def _dequantized(graph, folder):
    node = _node(graph, "MatMulNBits", "up")
    node.op_type = "DequantizeLinear"


def _cast(graph, folder):
    node = _node(graph, "MatMulNBits", "up")
    graph.node.append(helper.make_node("Cast", [node.input[1]], ["cast"], to=onnx.TensorProto.FLOAT))


def _copied(graph, folder):
    node = _node(graph, "MatMulNBits", "layers.1.up")
    tensor = next(t for t in graph.initializer if t.name == node.input[1])
    place = {e.key: e.value for e in tensor.external_data}
    data = np.fromfile(folder / place["location"], np.uint8, prod(tensor.dims), offset=int(place["offset"]))
    graph.initializer.append(numpy_helper.from_array(data.reshape(tensor.dims), "copy"))
    _node(graph, "MatMulNBits", "layers.2.up").input[1] = "copy"


def _strange(graph, folder):
    graph.node.append(helper.make_node("Einsum", ["a"], ["b"], name="odd"))


def _widened(graph, folder):
    node = _node(graph, "MatMulNBits", "layers.1.up")
    graph.initializer.append(numpy_helper.from_array(np.zeros((128, 32), np.float32), "wide"))
    node.input[1] = "wide"


def _grown(graph, folder):
    for i in range(2):
        many = np.full((1 << 19, 2), i, np.uint8)
        graph.initializer.append(numpy_helper.from_array(many, f"more.{i}"))


BROKEN = {
    "dequantized": (_dequantized, r"operator DequantizeLinear \(layers.0.up\) is not one"),
    "cast in every run": (_cast, r"layers.0.up.weight is worked on by Cast in every run"),
    "a copy": (_copied, r"layers.1.up.weight is stored twice, again as copy"),
    "a strange operator": (_strange, r"operator Einsum \(odd\) is not one"),
    "left in float": (_widened, r"wide \[128, 32\] is left in float"),
    "more than was written": (_grown, r"bytes of int8 weights run where \d+ were written"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_should_not_run_is_named(subject, case):
    """A graph that runs with such a thing in it fails, with the tensor's or the operator's name."""
    artifact, arch, recipe, written = subject("int8")
    graph = optimized(artifact)
    change, message = BROKEN[case]
    change(graph, artifact.path)
    with pytest.raises(CheckFailed, match=message) as caught:
        examine(graph, artifact, arch, recipe, written)
    assert "\n" not in str(caught.value) and re.match("int8: in the graph that runs, ", str(caught.value))


def test_layers_of_the_checkpoint_may_be_equal(make_checkpoint, subject):
    """A model whose layers are doubled has equal weights twice; that is no copy of ours."""
    from safetensors.numpy import load_file, save_file

    path = make_checkpoint("gpt2")
    weights = load_file(path / "model.safetensors")
    for name in list(weights):
        if ".h.1." in name:
            weights[name] = weights[name.replace(".h.1.", ".h.0.")].copy()
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    artifact, arch, recipe, written = subject("int8", path)
    inspect(artifact, arch, recipe, written)
