"""A step moves nothing: caches, inputs and logits have their places; rows and tokens come off where asked."""

import numpy as np
import pytest

from devices import cache as caches
from devices.errors import UserError
from devices.runtime import Decoder


@pytest.fixture
def decoder(decoder_folder):
    """A decoder of the test's own."""
    return Decoder(decoder_folder, threads=1)


def random_ids(decoder, *shape, seed=0):
    """Ids of the decoder's vocabulary, never the end token 0."""
    return np.random.default_rng(seed).integers(1, decoder.artifact.model["vocab"], shape)


def places(decoder):
    """Where a step's memory lies: the caches, its inputs, and what ONNX Runtime writes to."""
    step = decoder.cache._step
    arrays = [*decoder.cache.buffers.values(), step.ids, step.positions, step.mask, step.logits]
    outputs = [value.data_ptr() for value in step.binding.get_outputs()]
    return [array.ctypes.data for array in arrays], outputs


@pytest.mark.parametrize("rows", [1, 3])
def test_steps_allocate_nothing(decoder, rows):
    """From step to step every array stays where it is, and present outputs are the past's own buffers."""
    ids = random_ids(decoder, rows, 20)
    decoder.prefill(ids[:, :5])
    decoder.step(ids[:, 5])
    inside, outputs = places(decoder)
    for at in range(6, 20):
        decoder.step(ids[:, at], copy=False)
        assert places(decoder) == (inside, outputs)
    buffers = [buffer.ctypes.data for buffer in decoder.cache.buffers.values()]
    assert outputs == [*buffers, decoder.cache._step.logits.ctypes.data]


def test_a_new_prompt_reuses_the_cache(decoder):
    """A second prompt of as many rows gets the same cache, and none of what the first one wrote is seen."""
    expected = Decoder(decoder.artifact, threads=1).prefill([[7, 8, 9]])
    decoder.prefill([list(range(1, 30))])
    cache = decoder.cache
    np.testing.assert_array_equal(decoder.prefill([[7, 8, 9]]), expected)
    assert decoder.cache is cache


def test_logits_are_the_callers_unless_they_are_not_wanted(decoder):
    """What step returns stays as it was; with copy=False the next step overwrites it."""
    decoder.prefill([[1, 2]])
    held, lent = decoder.step([3]), decoder.step([4], copy=False)
    before, seen = held.copy(), lent.copy()
    decoder.step([5])
    np.testing.assert_array_equal(held, before)
    assert not np.array_equal(lent, seen)


def test_several_tokens_at_once_are_the_steps_one_by_one(decoder):
    """extend gives each token the logits its own step gives, and keeps as many as asked."""
    ids = random_ids(decoder, 12)
    decoder.prefill([ids[:4]])
    expected = np.stack([decoder.step([token])[0] for token in ids[4:]])
    decoder.prefill([ids[:4]])
    found = np.concatenate([decoder.extend(ids[4:7]), decoder.extend(ids[7:8]), decoder.extend(ids[8:])])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    decoder.rewind(8)
    np.testing.assert_allclose(decoder.extend(ids[8:], keep=2), expected[-2:], atol=1e-4)


def test_what_is_rewound_was_never_fed(decoder):
    """After rewind the next tokens get the logits they get without the detour."""
    ids = random_ids(decoder, 10)
    decoder.prefill([ids[:6]])
    expected = decoder.step([ids[6]])
    decoder.prefill([ids[:4]])
    decoder.extend([9, 9, 9, 9, 9])
    decoder.rewind(4)
    assert decoder.length == 4
    decoder.extend(ids[4:6])
    np.testing.assert_allclose(decoder.step([ids[6]]), expected, atol=1e-4)


def test_a_row_that_is_dropped_leaves_the_others_alone(decoder):
    """Rows that stay have the logits they have alone; the last one stands where the dropped one stood."""
    rows = [list(random_ids(decoder, n, seed=n)) for n in (3, 9, 5, 7)]
    decoder.prefill(rows)
    decoder.step([1, 2, 3, 4])
    decoder.drop(1)
    found = decoder.step([5, 6, 7])
    decoder.drop(2)
    last = decoder.step([8, 9])
    alone = {}
    for row, tokens in {0: [1, 5, 8], 3: [4, 6, 9], 2: [3, 7]}.items():
        decoder.prefill([rows[row]])
        alone[row] = [decoder.step([token])[0] for token in tokens]
    np.testing.assert_allclose(found, [alone[0][1], alone[3][1], alone[2][1]], atol=1e-4)
    np.testing.assert_allclose(last, [alone[0][2], alone[3][2]], atol=1e-4)


def test_rows_that_ended_are_not_computed(decoder, monkeypatch):
    """A row that met its end leaves the batch: later steps run the rows still under way and no more."""
    rows = [list(random_ids(decoder, n, seed=n)) for n in (2, 7, 4)]
    free = decoder.generate_batch(rows, max_new_tokens=10)
    end = free[1].ids[3]
    decoder.special["eos"] = [end]
    sizes = []
    step = caches.Cache.step
    monkeypatch.setattr(
        caches.Cache, "step", lambda self, ids, total: sizes.append(len(ids)) or step(self, ids, total)
    )
    found = decoder.generate_batch(rows, max_new_tokens=10)
    lasted = [len(one.ids) + (one.finish_reason == "eos") for one in found]
    assert min(lasted) < max(lasted) == 10
    assert sizes == [sum(last > done for last in lasted) for done in range(1, 10)]


def test_a_failed_step_can_be_repeated(decoder):
    """A step that is refused changes nothing: the next one goes on where the last good one ended."""
    decoder.prefill([[1, 2, 3]])
    expected = Decoder(decoder.artifact, threads=1).prefill([[1, 2, 3, 4]])
    with pytest.raises(UserError):
        decoder.step([10**6])
    np.testing.assert_allclose(decoder.step([4]), expected, atol=1e-4)


def test_extend_is_for_one_row(decoder):
    """Several tokens on a past of several rows are refused in one line, as is anything before a prompt."""
    with pytest.raises(UserError, match="extend before prefill"):
        decoder.extend([1, 2])
    decoder.prefill([[1], [2]])
    with pytest.raises(UserError, match="extend is for one row"):
        decoder.extend([1, 2])
    decoder.prefill([[1]])
    with pytest.raises(UserError, match="rewind to -1"):
        decoder.rewind(-1)
    with pytest.raises(UserError, match="49 tokens do not fit the 48 positions"):
        decoder.extend([1] * 48)
