"""llama.cpp, through the C functions that llama-cpp-python binds: no copy of the logits, no sampler chain."""

import json
from pathlib import Path
from typing import Any

import contract
import numpy as np

# GGUF's names of GPT-2's tensors: ours after `transformer.`, theirs, whether stored [in, out] by GPT-2.
TOP = {
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f.weight": "output_norm.weight",
    "ln_f.bias": "output_norm.bias",
}
LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
FTYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0", "Q4_0": "MOSTLY_Q4_0"}


def generate(request: dict[str, Any]) -> dict[str, Any]:
    """Greedy; the context holds the workload's tokens, the cache is 16-bit (llama.cpp's default)."""
    import llama_cpp as llama

    settings = request["settings"]
    context = len(request["ids"]) + request["new"]

    def load() -> tuple[Any, Any]:
        llama.llama_backend_init()
        chosen = llama.llama_model_default_params()
        chosen.use_mmap, chosen.n_gpu_layers = True, 0
        chosen.use_extra_bufts = settings["repack"]
        model = llama.llama_model_load_from_file(request["model"].encode(), chosen)
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max = context, 1
        params.n_batch = params.n_ubatch = max(len(request["ids"]), 1)
        params.n_threads = params.n_threads_batch = request["threads"]
        params.flash_attn_type = int(settings["flash"])
        params.no_perf = True
        state = llama.llama_init_from_model(model, params)
        if not model or not state:
            raise RuntimeError("llama.cpp opened neither model nor context; its reason is on standard error")
        vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

        def feed(ids: list[int]) -> int:
            tokens = (llama.llama_token * len(ids))(*ids)
            # A batch made this way asks for the last token's logits and no others.
            if llama.llama_decode(state, llama.llama_batch_get_one(tokens, len(ids))):
                raise RuntimeError("llama_decode failed")
            return int(np.ctypeslib.as_array(llama.llama_get_logits_ith(state, -1), (vocab,)).argmax())

        def prompt(ids: list[int]) -> int:
            llama.llama_memory_clear(llama.llama_get_memory(state), False)
            return feed(ids)

        return prompt, lambda token: feed([token])

    return contract.stepwise(request, load)


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """A GGUF of the variant's type, quantized by llama.cpp itself from a float one (a GGUF as it is)."""
    import llama_cpp as llama

    out, source = Path(request["out"]), Path(request["checkpoint"])
    whole = source if source.suffix == ".gguf" else out / "whole.gguf"
    if whole != source:
        _write(source, whole)
    params = llama.llama_model_quantize_default_params()
    name, _, pure = request["variant"].partition(" ")
    params.ftype = getattr(llama, f"LLAMA_FTYPE_{FTYPES[name]}")
    params.pure = bool(pure)  # every matrix in that type; otherwise the vocabulary gets more bits
    params.allow_requantize = True  # SmolLM2's Q4_1 values are what every peer is given
    made = out / "model.gguf"
    if llama.llama_model_quantize(str(whole).encode(), str(made).encode(), params):
        raise RuntimeError(f"llama.cpp cannot quantize {whole}")
    if whole != source:
        whole.unlink()
    return {}


def _write(checkpoint: Path, out: Path) -> None:
    """GPT-2's weights as a float32 GGUF. Ids go in and come out, so the vocabulary holds made-up words."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(str(out), "gpt2")
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{n}" for n in range(config["vocab_size"])])
    writer.add_token_types([gguf.TokenType.NORMAL] * config["vocab_size"])
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    tensors = {
        k.removeprefix("transformer."): v for k, v in load_file(checkpoint / "model.safetensors").items()
    }
    names = dict(TOP)
    for layer in range(config["n_layer"]):
        for ours, theirs in LAYER.items():
            for part in ("weight", "bias"):
                names[f"h.{layer}.{ours}.{part}"] = f"blk.{layer}.{theirs}.{part}"
    for ours, theirs in names.items():
        tensor = tensors[ours].astype(np.float32)
        if ".c_" in ours and tensor.ndim == 2:  # GPT-2 stores these [in, out]
            tensor = np.ascontiguousarray(tensor.T)
        writer.add_tensor(theirs, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    contract.answer({"generate": generate, "convert": convert})
