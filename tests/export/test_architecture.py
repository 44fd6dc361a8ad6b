import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from devices.errors import UserError
from export.architecture import check, describe, expected_tensors, layer_tensors, parameters
from export.checkpoint import open_checkpoint
from export.families import HEAD

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 12, "n_head": 3, "n_positions": 16, "vocab_size": 20}
SLIDING = {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 10,
    "max_position_embeddings": 16,
    "vocab_size": 20,
    "rms_norm_eps": 1e-5,
}
QWEN2 = {**LLAMA, "model_type": "qwen2"}
CLASSIFIER = {"architectures": ["GPT2ForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}}


def zeros(*shape):
    """A float32 tensor of zeros."""
    return np.zeros(shape, np.float32)


def write(path, config, change=lambda weights: None):
    """A checkpoint with zeros for every tensor that `config` promises, after `change` to them."""
    path.mkdir()
    weights = {name: zeros(*shape) for name, shape in expected_tensors(describe(config)).items()}
    change(weights)
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return open_checkpoint(path)


def test_gpt2_is_described():
    """GPT-2's defaults: tied, GELU by tanh, an inner size of four hidden sizes, packed query-key-value."""
    arch = describe(GPT2)
    assert (arch.head_dim, arch.kv_heads, arch.inner, arch.tied) == (4, 3, 48, True)
    assert (arch.activation, arch.kind, arch.scales) == ("gelu_new", "decoder", (0.5, 0.5))
    assert layer_tensors(arch, 1)["qkv.weight"] == ("transformer.h.1.attn.c_attn.weight", (12, 36))


@pytest.mark.parametrize(
    ("change", "says"),
    [({"n_layer": 0}, "n_layer must be a positive"), ({"model_type": "opt"}, "unknown architecture 'opt'")],
)
def test_a_config_without_sense_is_named_by_its_place(tmp_path, change, says):
    """Of several models' configs, the message names the one that is wrong, and names it once."""
    write(tmp_path / "model", GPT2)
    (tmp_path / "model" / "config.json").write_text(json.dumps(GPT2 | change))
    with pytest.raises(UserError) as caught:
        check(open_checkpoint(tmp_path / "model"))
    assert str(caught.value).startswith(f"{tmp_path}/model/config.json: {says}")
    assert str(caught.value).count("config.json") == 1


def test_scales_follow_gpt2s_switches():
    """GPT-2's two rarely used attention switches change the scale."""
    assert describe({**GPT2, "scale_attn_weights": False}).scales == (1.0, 1.0)
    assert describe({**GPT2, "scale_attn_by_inverse_layer_idx": True}).scales == (0.5, 0.25)


def test_llama_is_described():
    """Grouped heads, untied by default, rotary settings in the old and the new form."""
    arch = describe({**LLAMA, "rope_theta": 5e5})
    assert (arch.heads, arch.kv_heads, arch.head_dim, arch.tied) == (6, 2, 2, False)
    assert arch.rope == {"rope_theta": 5e5, "rope_type": "default"}
    new = describe({**LLAMA, "rope_parameters": {"rope_theta": 7.0, "rope_type": "linear", "factor": 2.0}})
    assert new.rope == {"rope_theta": 7.0, "rope_type": "linear", "factor": 2.0}
    assert layer_tensors(arch, 0)["k.weight"] == ("model.layers.0.self_attn.k_proj.weight", (4, 12))


def test_biases_and_head_norms_by_family():
    """Qwen2 has biases on query, key and value; Qwen3 norms on heads; Llama neither unless asked."""
    assert describe(QWEN2).biases == {"q", "k", "v"}
    assert describe(LLAMA).biases == set()
    assert describe({**LLAMA, "attention_bias": True}).biases == {"q", "k", "v", "o"}
    assert "q_norm.weight" in layer_tensors(describe({**LLAMA, "model_type": "qwen3", "head_dim": 8}), 0)


@pytest.mark.parametrize(
    ("change", "windows"),
    [
        ({"model_type": "mistral", "sliding_window": 8}, (8, 8)),
        ({"model_type": "mistral", "sliding_window": None}, (None, None)),
        ({"model_type": "llama", "sliding_window": 8}, (None, None)),
        ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": False}, (None, None)),
        (
            {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
            (None, 8),
        ),
        ({**SLIDING, "layer_types": ["sliding_attention", "full_attention"]}, (8, None)),
    ],
)
def test_windows(change, windows):
    """Sliding windows are read as transformers reads them, layer by layer."""
    assert describe({**LLAMA, **change}).windows == windows


@pytest.mark.parametrize(
    "config", [GPT2, LLAMA, QWEN2, {**GPT2, **CLASSIFIER}], ids=lambda c: c["model_type"]
)
def test_a_whole_checkpoint_checks(tmp_path, config):
    """A checkpoint that holds what its config promises is accepted and its weights are counted."""
    arch = check(write(tmp_path / "m", config))
    assert parameters(arch) == sum(np.prod(shape) for shape in expected_tensors(arch).values())


def test_names_without_prefix(tmp_path):
    """GPT-2 as its first publishers saved it, without `transformer.`, is accepted."""

    def strip(weights):
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)

    assert check(write(tmp_path / "m", GPT2, strip)).prefix == ""


def test_a_stored_head_decides_whether_it_is_tied(tmp_path):
    """A head equal to the embedding is tied, one that differs is not, whatever the config says."""
    equal = write(
        tmp_path / "1", GPT2, lambda w: w.update({"lm_head.weight": np.zeros((20, 12), np.float32)})
    )
    other = write(tmp_path / "2", GPT2, lambda w: w.update({HEAD: zeros(20, 12) + 1}))
    assert check(equal).tied and not check(other).tied


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "bert"}, "unknown architecture 'bert'"),
        ({"model_type": None}, "unknown architecture"),
        ({"n_layer": 0}, "n_layer"),
        ({"n_layer": "two"}, "n_layer"),
        ({"n_layer": True}, "n_layer"),
        ({"vocab_size": None}, "vocab_size"),
        ({"n_head": 5}, "n_embd 12 is not a multiple of n_head 5"),
        ({"activation_function": "tanhh"}, "unknown activation"),
        ({"quantization_config": {"bits": 4}}, "quantized already"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon"),
        ({"layer_norm_epsilon": True}, "layer_norm_epsilon"),
        ({"activation_function": ["relu"]}, "unknown activation"),
        ({"architectures": 1}, "architectures must be a list"),
        ({**CLASSIFIER, "id2label": {"no": "no", "yes": "yes"}}, "id2label"),
        ({**CLASSIFIER, "id2label": {"1": "no", "2": "yes"}}, "id2label"),
        ({**CLASSIFIER, "id2label": 2}, "id2label"),
        (
            {**LLAMA, "num_key_value_heads": 4},
            "num_attention_heads 6 is not a multiple of num_key_value_heads 4",
        ),
        ({**LLAMA, "rms_norm_eps": [1e-6]}, "rms_norm_eps"),
        ({**LLAMA, "rope_theta": "10000"}, "rope_theta"),
        ({**LLAMA, "rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({**LLAMA, "rope_parameters": ["linear"]}, "rope_parameters must be an object"),
        ({**LLAMA, "rope_scaling": {"type": ["linear"]}}, "unknown rope type"),
        ({**LLAMA, "rope_scaling": {"type": "linear"}}, "factor"),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": "2"}}, "factor"),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 2}}, "low_freq_factor"),
        ({**LLAMA, **SLIDING, "layer_types": 2}, "layer_types must be a list"),
        ({**LLAMA, **SLIDING, "sliding_window": "8"}, "sliding_window"),
        ({**LLAMA, **SLIDING, "max_window_layers": "1"}, "max_window_layers"),
        ({**LLAMA, "rope_scaling": {"type": "yarn", "factor": 2}}, "unknown rope type 'yarn'"),
        ({**LLAMA, "rope_parameters": {"partial_rotary_factor": 0.5}}, "partial rotary"),
        (
            {**LLAMA, "model_type": "mistral", "sliding_window": 8, "layer_types": ["sliding_attention"]},
            "layer_types",
        ),
    ],
)
def test_configs_without_sense_are_refused(change, expected):
    """A config that is not supported or contradicts itself is one line that names what is wrong."""
    with pytest.raises(UserError, match=expected) as caught:
        describe({**GPT2, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w.pop("transformer.wpe.weight"), "wpe.weight missing"),
        (lambda w: [w.pop(n) for n in list(w) if ".h.1." in n], "and 11 more missing"),
        (lambda w: w.update({"transformer.ln_f.bias": zeros(13)}), r"\[13\].*\[12\]"),
        (
            lambda w: w.update({"transformer.h.2.ln_1.weight": zeros(12)}),
            "more than .* 2 layers",
        ),
    ],
)
def test_tensors_that_contradict_the_config_are_refused(tmp_path, change, expected):
    """Missing, misshapen and surplus tensors are refused, the first by name and the others by number."""
    with pytest.raises(UserError, match=expected):
        check(write(tmp_path / "m", GPT2, change))


def test_description_is_frozen():
    """An architecture is data: a change makes a new one."""
    arch = describe(GPT2)
    assert replace(arch, layers=1).layers == 1 and arch.layers == 2
