"""The supported architectures, as data: how each model_type is built and what its tensors are called."""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Family:
    """How one model_type is built and what its tensors and config keys are called.

    `config` maps our words to config.json's. `layer` maps a slot (norm1, q, gate, ...) to the tensor's name
    after the layer's prefix and its two dimensions (in, out) in the words of `sizes`; with `conv1d`, weights
    are stored [in, out] (GPT-2), otherwise [out, in]. `biases` says which slots have one: always (True) or
    where the config key that is named is true.
    """

    norm: str  # "layer" (LayerNorm) or "rms" (RMSNorm)
    position: str  # "learned" or "rotary"
    config: Mapping[str, str]
    prefixes: tuple[str, ...]
    embedding: str
    positions: str | None
    final_norm: str
    layer_prefix: str
    layer: Mapping[str, tuple[str, str, str]]
    biases: Mapping[str, bool | str]
    conv1d: bool = False
    head_norm: bool = False  # RMSNorm over each head of query and key
    window_switch: str | None = None  # config key that must be true for `sliding_window` to count


GPT2_KEYS = {
    "layers": "n_layer",
    "hidden": "n_embd",
    "heads": "n_head",
    "inner": "n_inner",
    "positions": "n_positions",
    "eps": "layer_norm_epsilon",
    "activation": "activation_function",
}
LLAMA_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "inner": "intermediate_size",
    "positions": "max_position_embeddings",
    "eps": "rms_norm_eps",
    "activation": "hidden_act",
}
GPT2 = Family(
    norm="layer",
    position="learned",
    config=GPT2_KEYS,
    prefixes=("transformer.", ""),
    embedding="wte.weight",
    positions="wpe.weight",
    final_norm="ln_f",
    layer_prefix="h.{}.",
    layer={
        "norm1": ("ln_1", "hidden", ""),
        "qkv": ("attn.c_attn", "hidden", "qkv"),
        "o": ("attn.c_proj", "q", "hidden"),
        "norm2": ("ln_2", "hidden", ""),
        "up": ("mlp.c_fc", "hidden", "inner"),
        "down": ("mlp.c_proj", "inner", "hidden"),
    },
    biases=dict.fromkeys(("norm1", "qkv", "o", "norm2", "up", "down"), True),
    conv1d=True,
)
LLAMA = Family(
    norm="rms",
    position="rotary",
    config=LLAMA_KEYS,
    prefixes=("model.", ""),
    embedding="embed_tokens.weight",
    positions=None,
    final_norm="norm",
    layer_prefix="layers.{}.",
    layer={
        "norm1": ("input_layernorm", "hidden", ""),
        "q": ("self_attn.q_proj", "hidden", "q"),
        "k": ("self_attn.k_proj", "hidden", "kv"),
        "v": ("self_attn.v_proj", "hidden", "kv"),
        "o": ("self_attn.o_proj", "q", "hidden"),
        "norm2": ("post_attention_layernorm", "hidden", ""),
        "gate": ("mlp.gate_proj", "hidden", "inner"),
        "up": ("mlp.up_proj", "hidden", "inner"),
        "down": ("mlp.down_proj", "inner", "hidden"),
    },
    biases={
        **dict.fromkeys(("q", "k", "v", "o"), "attention_bias"),
        **dict.fromkeys(("gate", "up", "down"), "mlp_bias"),
    },
)
FAMILIES: dict[str, Family] = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": replace(LLAMA, biases={}),
    "qwen2": replace(LLAMA, biases={"q": True, "k": True, "v": True}, window_switch="use_sliding_window"),
    "qwen3": replace(
        LLAMA,
        biases=dict.fromkeys(("q", "k", "v", "o"), "attention_bias"),
        layer={
            **LLAMA.layer,
            "q_norm": ("self_attn.q_norm", "head_dim", ""),
            "k_norm": ("self_attn.k_norm", "head_dim", ""),
        },
        head_norm=True,
        window_switch="use_sliding_window",
    ),
}
GELUS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # by tanh
ACTIVATIONS = (*GELUS, "gelu", "relu", "silu", "swish")
# Kinds of rotary positions, each with the numbers it needs.
ROPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
HEAD = "lm_head.weight"
SCORE = "score.weight"
