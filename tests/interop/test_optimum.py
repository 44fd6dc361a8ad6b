import numpy as np
import pytest

from bench.quality import perplexity, windows
from devices.runtime import Classifier, Decoder

pytestmark = pytest.mark.interop
NAMES = ["teacher-fp32", "teacher-int8", "llama-fp32", "llama-int8", "llama-16-fp32"]
TOKENS = 24


@pytest.fixture(scope="module", params=NAMES)
def decoder(request, artifact):
    """Our runtime on an artifact."""
    return Decoder(artifact(request.param), threads=1)


@pytest.fixture(scope="module")
def block(decoder, corpus_file):
    """Ids [8, 48] of a text."""
    return windows(decoder.tokenizer.encode(corpus_file.read_text(encoding="utf-8")).ids, 48, 8)


@pytest.fixture(scope="module")
def answer(decoder, block, texts, ask):
    """What ORTModelForCausalLM made of the same artifact."""
    request = {
        "artifact": str(decoder.artifact.path),
        "texts": texts,
        "tokens": TOKENS,
        "ids": block.tolist(),
    }
    return ask("optimum-onnx", "optimum_side.py", {"do": "decode", **request})


def test_it_finds_the_inputs(decoder, answer):
    """All it sees is what it feeds: the number of logits to keep has a default and is not asked for."""
    pasts = {name for name in answer["inputs"] if name.startswith("past_key_values.")}
    assert len(pasts) == 2 * decoder.artifact.model["layers"]
    assert set(answer["inputs"]) - pasts <= {"input_ids", "attention_mask", "position_ids"}


def test_its_tokenizer_is_ours(decoder, answer, texts):
    """AutoTokenizer reads the artifact's tokenizer to the same ids."""
    assert answer["ids"] == [decoder.encode(text) for text in texts]


@pytest.mark.parametrize("how", ["alone", "bound"])
def test_it_generates_our_tokens(decoder, answer, texts, until_end, how):
    """Greedy tokens of one prompt, its past growing from nothing, are those of our fixed cache.

    Also with outputs bound to memory, whose sizes it works out from the names of their dimensions.
    """
    ours = [decoder.generate(text, max_new_tokens=TOKENS).ids for text in texts]
    assert [until_end(decoder, ids) for ids in answer[how]] == ours
    assert max(map(len, ours)) == TOKENS


def test_a_batch_padded_on_the_left_is_its_rows(decoder, answer, until_end):
    """Rows of a batch, padded as transformers pads prompts, go on as each of them does alone."""
    alone, batch = ([until_end(decoder, ids) for ids in answer[key]] for key in ("alone", "batch"))
    assert batch == alone


def test_it_scores_our_perplexity(decoder, block, answer):
    """Loss over all positions, which needs all logits, is ours on the same ids."""
    ours = perplexity(decoder.logits, block, batch=len(block))["value"]
    assert answer["perplexity"] == pytest.approx(ours, rel=1e-4)


@pytest.fixture(scope="module", params=["gpt2-fp32", "gpt2-int8", "llama-fp32"])
def classified(request, classifier, texts, ask):
    """(Our runtime on a classifier, what ORTModelForSequenceClassification made of it)."""
    folder = classifier(*request.param.split("-"))
    answer = ask(
        "optimum-onnx", "optimum_side.py", {"do": "classify", "artifact": str(folder), "texts": texts}
    )
    return Classifier(folder, threads=1), answer


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_batch_is_classified_as_its_rows(classified, texts, side):
    """Logits of texts padded in one batch are those of each text alone."""
    ours, answer = classified
    alone = np.concatenate([ours.predict([(text, None)]) for text in texts])
    np.testing.assert_allclose(answer[side], alone, atol=1e-3)


def test_a_pipeline_says_our_labels(classified, texts):
    """The text-classification pipeline gives each text the label that our logits do."""
    ours, answer = classified
    labels = ours.artifact.manifest["task"]["labels"]
    best = ours.predict([(text, None) for text in texts]).argmax(1)
    assert answer["labels"] == [labels[at] for at in best]
