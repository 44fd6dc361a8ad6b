from dataclasses import replace

import numpy as np
import pytest

from devices.artifact import Artifact
from devices.runtime import Decoder
from export.architecture import check, describe_model
from export.calibrate import SLOTS, layer_inputs
from export.checkpoint import open_checkpoint
from export.graph import write_graph
from export.recipes import RECIPES
from export.smooth import calibrated

IDS = np.random.default_rng(0).integers(0, 400, (3, 32))
FAMILIES = {
    "gpt2": {},
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
}


@pytest.fixture(scope="session", params=FAMILIES)
def checkpoint(request, make_checkpoint):
    """A tiny model of each kind: grouped heads, biases, head norms."""
    return make_checkpoint(request.param, **FAMILIES[request.param])


def write(checkpoint, folder, recipe, ids=None):
    """The decoder of an artifact by `recipe`, calibrated on `ids` if any are given."""
    folder.mkdir()
    opened = open_checkpoint(checkpoint)
    arch = check(opened)
    made = () if ids is None else (calibrated(opened, arch, recipe, ids),)
    write_graph(opened, arch, recipe, folder, "test", *made)
    manifest = {"kind": "decoder", "name": "t", "model": describe_model(arch), "recipe": {"name": "t"}}
    return Decoder(Artifact(folder, manifest, ""), threads=1)


def test_smoothing_changes_no_logits(checkpoint, tmp_path):
    """The factors cancel: a float graph of smoothed weights is the model, and its weights are others."""
    plain = write(checkpoint, tmp_path / "plain", RECIPES["fp32"])
    smooth = write(checkpoint, tmp_path / "smooth", replace(RECIPES["fp32"], smooth=0.5), IDS)
    expected = plain.logits(IDS)
    np.testing.assert_allclose(smooth.logits(IDS), expected, atol=1e-4 * max(1, np.abs(expected).max()))
    data = [(tmp_path / name / "model.onnx.data").read_bytes() for name in ("plain", "smooth")]
    assert data[0] != data[1]


def test_inputs_are_evened_out(checkpoint):
    """After smoothing the spread of channels, largest by mean, is smaller where there was a factor to use."""
    opened = open_checkpoint(checkpoint)
    arch, recipe = check(opened), replace(RECIPES["fp32"], smooth=0.5)
    source = calibrated(opened, arch, recipe, IDS)(opened, arch, recipe, None)
    for i, inputs in enumerate(layer_inputs(opened, arch, IDS, moments=())):
        for slot in ("qkv", "o", "up", "down") if i < arch.layers else ():
            before = inputs[slot].largest
            after = before / source._factors(i, slot)
            if slot == "down" and arch.model_type == "gpt2":
                np.testing.assert_array_equal(before, after)
            else:
                assert after.max() / after.mean() < before.max() / before.mean()


def test_the_head_is_told_what_it_reads(checkpoint):
    """The head's second moment, which a tied table wants before any layer, is that of the final norm's outputs."""
    opened = open_checkpoint(checkpoint)
    arch, recipe = check(opened), replace(RECIPES["int4"], method="gptq", head_bits=4)
    source = calibrated(opened, arch, recipe, IDS)(opened, arch, recipe, None)
    *_, last = layer_inputs(opened, arch, IDS, moments=SLOTS)
    np.testing.assert_array_equal(source.moment(arch.layers, "head"), last["head"].moment)
    assert source.moment(0, "o") is not None  # the layers' own run is where it was


def test_a_head_in_four_bits_is_nearer_with_gptq(make_checkpoint, tmp_path):
    """What only the head is quantized for: its logits are nearer to the model's than those of a rounded one."""
    checkpoint = make_checkpoint("llama", tie_word_embeddings=False)
    plain = replace(RECIPES["fp32"], head_bits=4, head_block=16)
    expected = write(checkpoint, tmp_path / "float", RECIPES["fp32"]).logits(IDS)
    errors = []
    for method in ("rtn", "gptq"):
        recipe = replace(plain, method=method, accuracy_level=0, search=True)
        found = write(checkpoint, tmp_path / method, recipe, IDS).logits(IDS)
        errors.append(((found - expected) ** 2).mean())
    assert errors[1] < errors[0]


def test_moments_are_those_of_the_smoothed_inputs(checkpoint):
    """What GPTQ is told of a product's inputs is true of the weights it is given."""
    opened = open_checkpoint(checkpoint)
    arch = check(opened)
    plain, smooth = (
        calibrated(opened, arch, recipe, IDS)(opened, arch, recipe, None)
        for alpha in (0.0, 0.5)
        for recipe in [replace(RECIPES["int4"], method="gptq", smooth=alpha)]
    )
    for i in range(arch.layers):
        for slot, rows in (("qkv", "q"), ("o", ""), ("down", "")):
            outputs = []
            for source in (plain, smooth):
                weight = source.matrix(i, slot)[: arch.hidden] if rows else source.matrix(i, slot)
                outputs.append(np.einsum("oi,ij,oj->o", weight, source.moment(i, slot), weight))
            np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-3)
