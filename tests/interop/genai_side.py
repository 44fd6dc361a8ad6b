"""Runs in onnxruntime-genai's environment: opens an artifact by its genai_config.json; request in, answer out."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og


def generate(model: Any, prompts: list[list[int]], tokens: int, pad: int) -> list[list[int]]:
    """Greedy continuations of one batch of ids, padded on the right, where this runtime expects it."""
    longest = max(map(len, prompts))
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, batch_size=len(prompts), max_length=longest + tokens)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array([row + [pad] * (longest - len(row)) for row in prompts], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [generator.get_sequence(row)[longest:].tolist() for row in range(len(prompts))]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Tokens of each prompt alone and of all in a batch, with one buffer for past and present and with two."""
    found: dict[str, Any] = {}
    prompts, tokens, pad = request["prompts"], request["tokens"], request["pad"]
    for name, share in (("shared", True), ("apart", False)):
        config = og.Config(request["artifact"])
        config.overlay(json.dumps({"search": {"past_present_share_buffer": share}}))
        model = og.Model(config)
        alone = [generate(model, [prompt], tokens, pad)[0] for prompt in prompts]
        found[name] = {"alone": alone, "batch": generate(model, prompts, tokens, pad)}
    tokenizer = og.Tokenizer(model)
    found["ids"] = [tokenizer.encode(text).tolist() for text in request["texts"]]
    found["texts"] = [tokenizer.decode(ids) for ids in found["ids"]]
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(answer(json.loads(Path(sys.argv[1]).read_text()))))
