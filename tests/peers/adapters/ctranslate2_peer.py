"""CTranslate2: its Generator holds the loop, a callback for each token takes the time."""

import json
import time
from pathlib import Path
from typing import Any

import contract


def generate(request: dict[str, Any]) -> dict[str, Any]:
    """Greedy through `generate_batch` with one thread pool and no ending; it takes tokens, not ids.

    Names of tokens are looked up before the clock starts. It runs all but the prompt's last token first and
    the last one as a step, which is how it gets away with the last position's logits alone.
    """
    import ctranslate2

    generator = ctranslate2.Generator(
        request["model"],
        device="cpu",
        compute_type=request["settings"]["compute"],
        inter_threads=1,
        intra_threads=request["threads"],
    )
    load_s, at_load = time.perf_counter() - contract.BEGAN, contract.memory()
    names = json.loads((Path(request["model"]) / "vocabulary.json").read_text())
    prompt = [names[token] for token in request["ids"]]

    def run(new: int) -> tuple[float, list[float], list[int]]:
        times: list[float] = []
        tokens: list[int] = []

        def heard(step: Any) -> bool:
            times.append(time.perf_counter())
            tokens.append(step.token_id)
            return False

        start = time.perf_counter()
        generator.generate_batch(
            [prompt],
            max_length=new,
            min_length=new,
            sampling_topk=1,
            beam_size=1,
            include_prompt_in_result=False,
            end_token=[],
            callback=heard,
        )
        return start, times, tokens

    run(1)
    at_prompt = contract.memory()
    run(1 + contract.WARM_STEPS)
    return contract.timed(load_s, at_load, at_prompt, *run(request["new"]))


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """CTranslate2's own converter, from the HF folder."""
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(request["checkpoint"])
    converter.convert(request["out"], quantization=request["variant"], force=True)
    return {}


if __name__ == "__main__":
    contract.answer({"generate": generate, "convert": convert})
