"""genai_config.json: how onnxruntime-genai, ONNX Runtime's own generation library, opens an artifact.

It holds the names of the graph's inputs and outputs, the counts that size the cache, the special tokens and
the sampling to start from. Source: https://onnxruntime.ai/docs/genai/reference/config.html and
`make_genai_config` of onnxruntime-genai 0.18's model builder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devices.artifact import GRAPH
from devices.cache import PAST, PRESENT
from devices.files import read_json, write_json
from devices.text import special_ids
from export.architecture import Architecture
from export.attention import wants_positions

CONFIG = "genai_config.json"
# Its runtime types by model_type. It knows "gpt2" as well, and means a cache that holds keys and values in one
# tensor per layer; "decoder" is any decoder whose keys and values are apart.
RUNTIME_TYPES = {
    "gpt2": "decoder",
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
# What a generation_config.json says of sampling and the runtime calls by the same name.
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")


def write_genai_config(folder: Path, arch: Architecture) -> None:
    """Write genai_config.json into the artifact's `folder`, which holds its configuration files already.

    None is written for a classifier or an architecture that onnxruntime-genai has no runtime type for.
    UserError where generation_config.json or config.json cannot be read.
    """
    generation = folder / "generation_config.json"
    settings = read_json(generation, "how the model generates") if generation.is_file() else {}
    found = genai_config(arch, special_ids(folder), settings)
    if found is not None:
        write_json(folder / CONFIG, found)


def genai_config(
    arch: Architecture, special: Mapping[str, list[int]], generation: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The content of genai_config.json, or None where the runtime cannot run the model.

    `special` maps `bos`, `eos` and `pad` to ids, as `devices.text.special_ids` finds them; `generation` is a
    generation_config.json.
    """
    if arch.kind != "decoder" or arch.model_type not in RUNTIME_TYPES:
        return None
    sampling = {key: generation[key] for key in SAMPLING if isinstance(generation.get(key), int | float)}
    return {
        "model": {
            "type": RUNTIME_TYPES[arch.model_type],
            "vocab_size": arch.vocab,
            "context_length": arch.positions,
            **_tokens(special),
            "decoder": _decoder(arch),
        },
        # One buffer for past and present: the attention operator writes into it, nothing is copied. The
        # runtime allocates it for max_length positions, which a caller lowers to what is needed.
        "search": {
            "do_sample": False,
            **sampling,
            "max_length": arch.positions,
            "past_present_share_buffer": True,
        },
    }


def _tokens(special: Mapping[str, list[int]]) -> dict[str, Any]:
    """Special tokens; a batch is padded with the first end token where the model names no padding."""
    found: dict[str, Any] = {}
    if special["bos"]:
        found["bos_token_id"] = special["bos"][0]
    if special["eos"]:
        found["eos_token_id"] = special["eos"]
    padding = special["pad"] or special["eos"]
    return {**found, "pad_token_id": padding[0]} if padding else found


def _decoder(arch: Architecture) -> dict[str, Any]:
    """Counts, and names of inputs and outputs, %d for the layer's number."""
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    if wants_positions(arch):
        inputs["position_ids"] = "position_ids"
    for side in ("key", "value"):
        inputs[f"past_{side}_names"] = f"{PAST}%d.{side}"
    outputs = {f"present_{side}_names": f"{PRESENT}%d.{side}" for side in ("key", "value")}
    return {
        "filename": GRAPH,
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "hidden_size": arch.hidden,
        "head_size": arch.head_dim,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "num_hidden_layers": arch.layers,
        "inputs": inputs,
        "outputs": {"logits": "logits", **outputs},
    }
