"""The runtime on graphs as they are exported, of both families."""

import numpy as np
import pytest

from devices.runtime import Decoder
from export.build import export


@pytest.fixture(scope="module", params=["gpt2-fp32", "llama-fp32", "gpt2-int8", "llama-int4"])
def decoder(request, gpt2_checkpoint, llama_checkpoint, tmp_path_factory):
    """A decoder of each family, whole and quantized."""
    family, recipe = request.param.split("-")
    out = tmp_path_factory.mktemp("artifact") / request.param
    export(gpt2_checkpoint if family == "gpt2" else llama_checkpoint, out, recipe, parity=False)
    return Decoder(out, threads=1)


def test_padded_rows_and_cached_steps_are_what_whole_blocks_are(decoder):
    """Each row of a right-padded batch, prompt and steps, has the logits of its own whole block."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 400, n) for n in (3, 17, 1, 8)]
    more = rng.integers(0, 400, (4, 6))
    found = [decoder.prefill(rows)] + [decoder.step(more[:, at]) for at in range(6)]
    for row, prompt in enumerate(rows):
        whole = decoder.logits([[*prompt, *more[row]]])[0, len(prompt) - 1 :]
        np.testing.assert_allclose(np.stack(found)[:, row], whole, atol=2e-3, rtol=1e-3)


def test_a_full_context_generates(decoder):
    """Prompt and new tokens may fill every position."""
    found = decoder.generate([5] * (decoder.context - 8), max_new_tokens=8)
    assert len(found.ids) == 8 or found.finish_reason == "eos"
