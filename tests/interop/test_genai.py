import json

import pytest

from devices.runtime import Decoder

pytestmark = pytest.mark.interop
NAMES = [
    "teacher-fp32",
    "teacher-int8",
    "llama-int8",
    "llama-16-int8",
    "mistral-fp32",
    "qwen2-fp32",
    "qwen3-fp32",
]
TOKENS = 24


@pytest.fixture(scope="module", params=NAMES)
def decoder(request, artifact):
    """Our runtime on an artifact."""
    return Decoder(artifact(request.param), threads=1)


@pytest.fixture(scope="module")
def answer(decoder, texts, ask):
    """What onnxruntime-genai made of the same artifact by its genai_config.json."""
    pad = json.loads((decoder.artifact.path / "genai_config.json").read_text())["model"]["pad_token_id"]
    prompts = [decoder.encode(text) for text in texts]
    request = {"artifact": str(decoder.artifact.path), "prompts": prompts, "tokens": TOKENS, "pad": pad}
    return ask("onnxruntime-genai", "genai_side.py", {**request, "texts": texts})


@pytest.mark.parametrize("cache", ["shared", "apart"])
@pytest.mark.parametrize("rows", ["alone", "batch"])
def test_it_generates_our_tokens(decoder, answer, texts, until_end, cache, rows):
    """Greedy tokens are ours, past and present in one buffer or two, a prompt alone or in a batch."""
    ours = [decoder.generate(text, max_new_tokens=TOKENS).ids for text in texts]
    # In a batch all rows go on until the longest has all its tokens.
    theirs = [until_end(decoder, ids)[:TOKENS] for ids in answer[cache][rows]]
    assert [ids[: len(row)] for ids, row in zip(theirs, ours, strict=True)] == ours
    assert max(map(len, ours)) == TOKENS


def test_its_tokenizer_is_ours(decoder, answer, texts):
    """It reads tokenizer.json to the same ids, and back to the same text."""
    assert answer["ids"] == [decoder.encode(text) for text in texts]
    assert answer["texts"] == texts
