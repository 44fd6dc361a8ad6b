"""The decoder: one cache, any batch, the same logits by every way through it."""

import json

import numpy as np
import onnx
import pytest

from devices.artifact import seal
from devices.errors import UserError
from devices.runtime import Decoder
from devices.sampling import Sampling


@pytest.fixture(scope="module")
def decoder(decoder_folder):
    """One decoder for the file."""
    return Decoder(decoder_folder, threads=1)


def random_ids(decoder, *shape, seed=0):
    """Ids of the decoder's vocabulary, never the end token 0."""
    return np.random.default_rng(seed).integers(1, decoder.artifact.model["vocab"], shape)


def test_prompt_and_steps_equal_the_whole_block(decoder):
    """A prompt and cached steps give the logits that all positions at once give."""
    ids = random_ids(decoder, 1, 12)
    whole = decoder.logits(ids)
    found = [decoder.prefill(ids[:, :5])] + [decoder.step(ids[:, at]) for at in range(5, 12)]
    np.testing.assert_allclose(np.stack(found, axis=1), whole[:, 4:], atol=1e-4)


def test_rows_of_different_length_do_not_see_each_other(decoder):
    """Right-padded rows of a batch give what each gives alone, in the prompt and after it."""
    rows = [list(random_ids(decoder, n, seed=n)) for n in (3, 9, 1, 6)]
    more = random_ids(decoder, 4, 5, seed=99)
    together = [decoder.prefill(rows)] + [decoder.step(more[:, at]) for at in range(5)]
    for row, prompt in enumerate(rows):
        alone = [decoder.prefill([prompt])] + [decoder.step(more[row : row + 1, at]) for at in range(5)]
        np.testing.assert_allclose(np.stack(together)[:, row], np.stack(alone)[:, 0], atol=1e-4)


def test_the_cache_is_one_buffer_that_no_step_replaces(decoder_folder):
    """Past and present are the same memory: a step writes one position into it and keeps the rest."""
    decoder = Decoder(decoder_folder, threads=1)
    ids = random_ids(decoder, 1, 6)
    decoder.prefill(ids[:, :5])
    cache = decoder.cache
    buffers = {name: cache.buffers[name].copy() for name in cache.buffers}
    decoder.step(ids[:, 5])
    assert decoder.cache is cache
    for name, before in buffers.items():
        after = cache.buffers[name]
        assert np.array_equal(before[:, :, :5], after[:, :, :5]), name
        assert not before[:, :, 5].any() and after[:, :, 5].any(), name
        assert not after[:, :, 6:].any(), name


def test_logits_leave_a_generation_alone(decoder):
    """Scoring a block between two steps does not change the second."""
    ids = random_ids(decoder, 1, 6)
    decoder.prefill(ids[:, :5])
    expected = decoder.step(ids[:, 5])
    decoder.prefill(ids[:, :5])
    decoder.logits(random_ids(decoder, 3, 8))
    np.testing.assert_array_equal(decoder.step(ids[:, 5]), expected)


def test_greedy_generation_is_the_argmax_of_scoring(decoder):
    """Greedy text is what choosing the best token by whole-block scoring gives."""
    ids = list(random_ids(decoder, 4, seed=3))
    found = decoder.generate(ids, max_new_tokens=8)
    for token in found.ids:
        assert token == int(decoder.logits([ids])[0, -1].argmax())
        ids.append(token)
    assert found.finish_reason in ("length", "eos")


def test_a_batch_generates_what_each_prompt_does_alone(decoder):
    """Sequences of a batch do not move each other, drawn ones included, and stop on their own."""
    rows = [list(random_ids(decoder, n, seed=n)) for n in (2, 7, 4)]
    batch = decoder.generate_batch(rows, max_new_tokens=12)
    assert batch == [decoder.generate(row, max_new_tokens=12) for row in rows]


def test_rows_stop_early_at_an_end_token(decoder_folder):
    """A row that meets the end token ends there with reason eos; the others go on to their length."""
    decoder = Decoder(decoder_folder, threads=1)
    rows = [list(random_ids(decoder, n, seed=n)) for n in (2, 7, 4)]
    free = decoder.generate_batch(rows, max_new_tokens=10)
    decoder.special["eos"] = [free[1].ids[3]]
    ended = decoder.generate_batch(rows, max_new_tokens=10)
    assert ended[1].finish_reason == "eos"
    assert ended[1].ids == free[1].ids[: free[1].ids.index(free[1].ids[3])]
    for row in (0, 2):
        cut = free[row].ids
        if free[1].ids[3] not in cut:
            assert ended[row] == free[row]


def test_one_seed_is_one_text(decoder):
    """The same seed draws the same tokens, another seed others."""
    warm = Sampling(temperature=1.5, seed=1)
    first = decoder.generate("the cat", 16, warm)
    assert first == decoder.generate("the cat", 16, warm)
    assert first.ids != decoder.generate("the cat", 16, Sampling(temperature=1.5, seed=2)).ids


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"eos_token_id": 5}, [5]),
        ({"eos_token_id": [5, 7]}, [5, 7]),
        ({"eos_token_id": None}, [0]),
        ({}, [0]),
    ],
)
def test_end_tokens_come_from_the_generation_config(own_artifact, config, expected):
    """generation_config.json names one end token or several; where it names none, config.json does."""
    (own_artifact / "generation_config.json").write_text(json.dumps(config))
    reseal(own_artifact)
    assert Decoder(own_artifact, threads=1).special["eos"] == expected


@pytest.mark.parametrize("value", ["5", 1.5, [1, "2"], {"a": 1}, True, -1])
def test_a_malformed_end_token_is_one_line(own_artifact, value):
    """An end token that is no id is a UserError naming the file and the key."""
    (own_artifact / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    reseal(own_artifact)
    with pytest.raises(UserError, match=r"generation_config.json: eos_token_id"):
        Decoder(own_artifact, threads=1)


def test_an_artifact_without_tokenizer_runs_on_ids(own_artifact):
    """Token ids in, token ids out needs no tokenizer; a text does and is told so."""
    (own_artifact / "tokenizer.json").unlink()
    reseal(own_artifact)
    decoder = Decoder(own_artifact, threads=1)
    assert len(decoder.generate([1, 2, 3], 4).ids) <= 4
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        decoder.generate("text", 4)


def test_the_context_can_be_filled_to_the_last_position(decoder):
    """Every position of the context is usable, and one more is an error, not a wrong answer."""
    positions = decoder.context
    assert len(decoder.prefill(random_ids(decoder, 1, positions - 1))) == 1
    decoder.step([1])
    with pytest.raises(UserError, match=f"{positions + 1} tokens do not fit the {positions} positions"):
        decoder.step([1])


BAD_CALLS = {
    "prompt too long": lambda d: d.prefill([[1] * 49]),
    "generation too long": lambda d: d.generate([1] * 40, max_new_tokens=9),
    "block too long": lambda d: d.logits([[1] * 49]),
    "no rows": lambda d: d.prefill([]),
    "empty row": lambda d: d.prefill([[1], []]),
    "empty ids": lambda d: d.generate([], 4),
    "id beyond the vocabulary": lambda d: d.prefill([[100000]]),
    "negative id": lambda d: d.logits([[-1]]),
    "flat ids": lambda d: d.logits([1, 2, 3]),
    "wrong batch": lambda d: (d.prefill([[1]]), d.step([1, 2])),
    "no new tokens": lambda d: d.generate([1], 0),
    "empty stop": lambda d: d.generate([1], 4, stop=[""]),
    "context 0": lambda d: Decoder(d.artifact, context=0),
    "context beyond positions": lambda d: Decoder(d.artifact, context=49),
    "threads 0": lambda d: Decoder(d.artifact, threads=0),
    "negative threads": lambda d: Decoder(d.artifact, threads=-2),
    "step first": lambda d: Decoder(d.artifact, threads=1).step([1]),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_one_line(decoder, name):
    """What does not fit is a UserError of one line that says what to do."""
    with pytest.raises(UserError) as caught:
        BAD_CALLS[name](decoder)
    assert "\n" not in str(caught.value)


def test_a_classifier_is_no_decoder(classifier_folder):
    """An artifact of the other kind is refused by its kind."""
    with pytest.raises(UserError, match="is a classifier"):
        Decoder(classifier_folder)


@pytest.mark.parametrize("junk", [b"", b"not a graph", b"\x08\x0a"])
def test_a_graph_that_does_not_load_is_one_line(own_artifact, junk):
    """A model.onnx that is no graph, though the manifest vouches for it, is a UserError naming the file."""
    (own_artifact / "model.onnx").write_bytes(junk)
    reseal(own_artifact)
    with pytest.raises(UserError, match=r"model\.onnx: ONNX Runtime .* cannot load it") as caught:
        Decoder(own_artifact, threads=1)
    assert "\n" not in str(caught.value)


def reseal(folder):
    """Make the manifest vouch for what is in the folder now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    seal(folder, {key: value for key, value in manifest.items() if key not in ("schema", "files")})


@pytest.mark.parametrize("how", ["../outside.data", "absolute", "sub/../../outside.data"])
def test_weights_outside_the_folder_are_never_read(own_artifact, how):
    """A graph whose data lies outside its folder does not load, whatever the manifest vouches for."""
    outside = own_artifact.parent / "outside.data"
    (own_artifact / "model.onnx.data").rename(outside)
    model = onnx.load(own_artifact / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(outside) if how == "absolute" else how
    (own_artifact / "model.onnx").write_bytes(model.SerializeToString())
    reseal(own_artifact)
    with pytest.raises(UserError, match="cannot load it"):
        Decoder(own_artifact, threads=1)
