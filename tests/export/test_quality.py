import itertools
import math

import numpy as np
import pytest

from devices.errors import CheckFailed, UserError
from devices.runtime import Decoder
from devices.text import encode_text, load_tokenizer
from export import quality, reference
from export.architecture import check
from export.checkpoint import open_checkpoint
from export.quality import figures, measure, sample, stepped


@pytest.fixture
def cut(gpt2_checkpoint, corpus_file):
    """`cut(tokens, batch=1)`: windows of the corpus for the tiny GPT-2."""
    arch = check(open_checkpoint(gpt2_checkpoint))
    return lambda tokens, batch=1: sample(gpt2_checkpoint, arch, corpus_file, tokens, batch)


@pytest.fixture(scope="module")
def model(gpt2_checkpoint):
    """The tiny GPT-2 in PyTorch."""
    return reference._load(gpt2_checkpoint, classifier=False)


def answers(model, ids):
    """What the reference process would answer."""
    import torch

    with torch.inference_mode():
        return reference.text(model, ids)


def test_figures_by_hand():
    """Perplexities, their ratio, agreement away from ties and the mean distance are what they are by hand."""
    wanted = {
        "top": np.array([[1, 2, 3]]),
        "margin": np.array([[0.5, 1e-5, 2.0]]),
        "nll": np.array([[1.0, 2.0]]),
    }
    found = {"top": np.array([[1, 9, 4]]), "nll": np.array([[1.5, 1.9]])}
    got = figures(found, wanted, noise=1e-4)
    assert got["perplexity"]["pytorch"] == pytest.approx(math.exp(1.5))
    assert got["perplexity_ratio"] == pytest.approx(math.exp(0.2))
    assert got["nll_error"] == pytest.approx(0.3)
    assert (got["compared"], got["argmax_agreement"]) == (2, 0.5)
    with pytest.raises(CheckFailed, match="no numbers"):
        figures({**found, "nll": np.array([[np.nan, 1]])}, wanted, 1e-4)


@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_the_reference_in_pieces_is_the_whole(
    model, cut, torch_logits, gpt2_checkpoint, monkeypatch, at_once
):
    """Top tokens, margins and likelihoods come out alike, however few windows' logits are held together."""
    monkeypatch.setattr(reference, "LOGITS_AT_ONCE", at_once)
    ids = cut(300).ids
    got, (logits, _) = answers(model, ids), torch_logits(gpt2_checkpoint, ids)
    ordered = np.sort(logits, -1)
    log_sums = np.log(np.exp(logits).sum(-1))
    hits = np.take_along_axis(logits[:, :-1], ids[:, 1:, None], -1)[..., 0]
    assert (got["top"] == logits.argmax(-1)).all()
    np.testing.assert_allclose(got["margin"], ordered[..., -1] - ordered[..., -2], atol=1e-4)
    np.testing.assert_allclose(got["nll"], log_sums[:, :-1] - hits, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_float_artifact_is_as_good_as_pytorch(model, cut, write_artifact, gpt2_checkpoint, batch):
    """All at once and by cached steps, alone or in batches: PyTorch's perplexity and PyTorch's argmax."""
    windows = cut(400, batch)
    found = measure(write_artifact(gpt2_checkpoint), windows, answers(model, windows.ids), 1e-4, steps=2)
    for view, count in (("whole", windows.ids.size), ("cached", 33 * (2 if batch == 1 else 3))):
        assert found[view]["perplexity_ratio"] == pytest.approx(1, abs=1e-5)
        assert found[view]["argmax_agreement"] == 1.0
        assert found[view]["compared"] == pytest.approx(count, abs=2)
    assert found["cached_from_whole"]["max_error"] < 1e-4
    assert found["text"]["batch"] == batch and found["text"]["tokens"] == windows.ids.size


def test_a_wrong_step_shows_in_the_cached_figures(model, cut, write_artifact, gpt2_checkpoint, monkeypatch):
    """What goes wrong in cached steps alone is seen there, and as a difference between the two ways."""
    step, windows = Decoder.step, cut(256)
    monkeypatch.setattr(Decoder, "step", lambda self, ids: np.roll(step(self, ids), 1, -1))
    found = measure(write_artifact(gpt2_checkpoint), windows, answers(model, windows.ids), 1e-4, steps=4)
    assert found["whole"]["argmax_agreement"] == 1.0
    assert found["cached"]["argmax_agreement"] < 0.5 and found["cached"]["perplexity_ratio"] > 1.05
    assert (
        found["cached_from_whole"]["max_error"] > 1 and found["cached_from_whole"]["argmax_agreement"] < 0.5
    )


def test_windows_are_spread_over_the_text(cut, gpt2_checkpoint, corpus_file):
    """Windows are pieces of the text that do not overlap, from all of it, the same in every run."""
    ids = encode_text(load_tokenizer(gpt2_checkpoint), corpus_file.read_text())
    windows = cut(512).ids
    assert windows.shape == (8, 64) and (windows == cut(512).ids).all()
    starts = sorted(next(i for i in range(len(ids)) if ids[i : i + 64] == row.tolist()) for row in windows)
    assert all(b - a >= 64 for a, b in itertools.pairwise(starts))
    assert starts[0] == 0 and starts[-1] > len(ids) * 0.8


def test_a_short_text_is_one_window(gpt2_checkpoint, tmp_path):
    """A text below a window is taken whole; one without two tokens, or another tokenizer's, is refused."""
    arch, text = check(open_checkpoint(gpt2_checkpoint)), tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.")
    assert len(sample(gpt2_checkpoint, arch, text, 4096, 8).ids) == 1
    text.write_text("T")
    with pytest.raises(UserError, match="too few"):
        sample(gpt2_checkpoint, arch, text, 4096, 1)
    small = check(open_checkpoint(gpt2_checkpoint)).__class__(**{**vars(arch), "vocab": 20})
    text.write_text("The quick brown fox")
    with pytest.raises(UserError, match="the model knows 20 tokens"):
        sample(gpt2_checkpoint, small, text, 4096, 1)


def test_large_models_step_less(cut):
    """Steps are counted in bytes read: all windows of a small model, one batch of a huge one."""
    windows = cut(1024, batch=2)
    assert stepped(windows, 5_000_000) == 16
    assert stepped(windows, int(quality.STEP_BYTES / 32 / 3)) == 6
    assert stepped(windows, 10**13) == 2
