import numpy as np
import pytest

from export.architecture import check
from export.calibrate import SLOTS, layer_inputs, sample_model, sample_text
from export.checkpoint import open_checkpoint

IDS = np.random.default_rng(0).integers(0, 400, (3, 24))
READERS = {
    "gpt2": {"qkv": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
    "llama": {
        "qkv": "self_attn.q_proj",
        "o": "self_attn.o_proj",
        "up": "mlp.gate_proj",
        "down": "mlp.down_proj",
    },
}


def torch_inputs(checkpoint, family, ids):
    """What PyTorch's modules read, [tokens, in], by (layer, slot) and "head"."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    layers = model.transformer.h if family == "gpt2" else model.model.layers
    seen = {}

    def watch(module, key):
        def keep(_, args):
            seen[key] = args[0].flatten(0, 1).numpy()

        module.register_forward_pre_hook(keep)

    def keep_size(i):
        def keep(_, args, out):
            out = out[0] if isinstance(out, tuple) else out
            weights = 1 / (out.double() ** 2).mean(-1)
            seen[i, "weights"] = (weights / weights.mean(-1, keepdim=True)).flatten().numpy()

        return keep

    for i, layer in enumerate(layers):
        layer.register_forward_hook(keep_size(i))
        for slot, name in READERS[family].items():
            watch(layer.get_submodule(name), (i, slot))
    watch(model.lm_head, "head")
    with torch.inference_mode():
        model(torch.from_numpy(ids))
    return seen


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_against_pytorch(request, make_checkpoint, family):
    """Largest magnitudes and second moments of every product's input are those of PyTorch's modules.

    Where keys are made, a row's first token weighs as much again as the whole row; what is added to the
    residual stream is weighed by its mean square.
    """
    # Heads of 8 are rotated outside the attention operator, heads of 16 by it.
    checkpoint = make_checkpoint(family, **({"head_dim": 16} if family == "qwen3" else {}))
    opened = open_checkpoint(checkpoint)
    expected = torch_inputs(checkpoint, "gpt2" if family == "gpt2" else "llama", IDS)
    found = list(layer_inputs(opened, check(opened), IDS, moments=SLOTS))
    assert len(found) == 5 and list(found[4]) == ["head"]
    for key, x in expected.items():
        if key[1] == "weights":
            continue
        inputs = found[4]["head"] if key == "head" else found[key[0]][key[1]]
        np.testing.assert_allclose(inputs.largest, np.abs(x).max(0), rtol=1e-3, atol=1e-4)
        weights = np.ones(len(x))
        if (
            key != "head" and key[1] == "qkv"
        ):  # a row's first token counts as often as the row has tokens, too
            weights[:: IDS.shape[1]] += IDS.shape[1]
        elif key != "head" and key[1] in ("o", "down"):
            weights = expected[key[0], "weights"]
        wanted = (x * weights[:, None]).T @ x.astype(np.float64)
        np.testing.assert_allclose(inputs.moment, wanted, rtol=1e-3, atol=1e-3 * wanted.diagonal().max())


def test_moments_only_where_asked_for(llama_checkpoint):
    """Smoothing alone costs no second moments."""
    opened = open_checkpoint(llama_checkpoint)
    for inputs in layer_inputs(opened, check(opened), IDS, moments=()):
        assert all(found.moment is None for found in inputs.values())


def test_the_text_is_sampled_throughout(gpt2_checkpoint, corpus_file, tmp_path):
    """Rows as long as the model reads, from the file's beginning to its end; short texts give few or none."""
    arch = check(open_checkpoint(gpt2_checkpoint))
    ids = sample_text(corpus_file, gpt2_checkpoint, arch)
    assert ids.shape[1] == 64 and len({tuple(row) for row in ids.tolist()}) == len(ids) == 16
    short = tmp_path / "short.txt"
    short.write_text("One line.")
    assert sample_text(short, gpt2_checkpoint, arch) is None
    assert sample_text(corpus_file, tmp_path, arch) is None


def test_the_model_writes_its_own_text(gpt2_checkpoint):
    """Samples are ids of the model's, rows differ, and one checkpoint gives one text."""
    opened = open_checkpoint(gpt2_checkpoint)
    ids = sample_model(opened, check(opened))
    assert ids.shape == (16, 64) and ids.min() >= 0 and ids.max() < 400
    assert len({tuple(row) for row in ids.tolist()}) == 16
    np.testing.assert_array_equal(ids, sample_model(opened, check(opened)))
