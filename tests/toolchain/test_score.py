"""Layers scored and chosen by measurement: against whole models run with hooks, and layers that do nothing."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest

from devices.errors import UserError
from devices.files import read_json
from toolchain.compress.run import compress
from toolchain.compress.score import SCORERS, TOKENS, measure, open_trunk
from toolchain.compress.select import MEASURED, SELECTORS, choose_measured
from toolchain.corpus import load, sample

FAMILIES = {
    "gpt2": ("gpt2", {}),
    "llama": ("llama", {}),
    "windowed": ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
}


@pytest.fixture(scope="module")
def blocks():
    """Three blocks of twelve tokens."""
    return np.random.default_rng(0).integers(0, 400, (3, 12))


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, make_checkpoint):
    """A 4-layer checkpoint: absolute positions, rotary ones, and masks that differ by layer."""
    family, overrides = FAMILIES[request.param]
    return make_checkpoint(family, **overrides)


def model_of(checkpoint: Path):
    """The whole model and the list its layers live in."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    return model, "h" if model.config.model_type == "gpt2" else "layers"


def states_of(checkpoint: Path, blocks):
    """The slow way: what goes into each layer and comes out of the last, float64 [layers+1, blocks, w, hidden]."""
    import torch

    model, name = model_of(checkpoint)
    layers, found = getattr(model.base_model, name), {}

    def note(i):
        def hook(module, args, out):
            found.setdefault(i, args[0])
            found[i + 1] = out[0] if isinstance(out, tuple) else out

        return hook

    for i, layer in enumerate(layers):
        layer.register_forward_hook(note(i))
    with torch.no_grad():
        model(torch.from_numpy(blocks))
    return np.stack([found[i].double().numpy() for i in range(len(layers) + 1)])


def loss_without(checkpoint: Path, kept, blocks) -> float:
    """The slow way: cross-entropy of a model whose list of layers is `kept`, as transformers runs it."""
    import torch

    model, name = model_of(checkpoint)
    cut = copy.deepcopy(model)
    setattr(cut.base_model, name, torch.nn.ModuleList(getattr(model.base_model, name)[i] for i in kept))
    cut.config.num_hidden_layers = len(kept)
    cut.base_model.config.num_hidden_layers = len(kept)
    if getattr(cut.config, "layer_types", None):
        cut.base_model.config.layer_types = [model.config.layer_types[i] for i in kept]
    with torch.no_grad():
        logits = cut(torch.from_numpy(blocks), use_cache=False).logits.double()
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    return float(torch.nn.functional.cross_entropy(flat, torch.from_numpy(blocks[:, 1:]).reshape(-1)))


def cosine(one, other):
    """Over the last dimension."""
    return (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)


def test_influence_is_the_formula(checkpoint, blocks):
    """1 - mean cosine of each layer's input and output over all tokens; the last layer's is before the norm."""
    states = states_of(checkpoint, blocks)
    expected = [1 - cosine(states[i], states[i + 1]).mean() for i in range(4)]
    found = SCORERS["block-influence"](open_trunk(checkpoint, blocks), [0, 1, 2, 3], 1)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("drop", [1, 2, 3, 4])
def test_angles_are_the_formula(checkpoint, blocks, drop):
    """arccos(cosine) / pi at each block's last token, for every run of so many layers, averaged over blocks."""
    states = states_of(checkpoint, blocks)[:, :, -1]
    expected = [
        np.mean(np.arccos(cosine(states[i], states[i + drop])) / math.pi) for i in range(4 - drop + 1)
    ]
    found = SCORERS["angular"](open_trunk(checkpoint, blocks), [0, 1, 2, 3], drop)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("kept", "drop"), [([0, 1, 2, 3], 1), ([0, 2, 3], 1), ([1, 3], 1), ([0, 1, 3], 2)])
def test_loss_is_that_of_the_cut_model(checkpoint, blocks, kept, drop):
    """For every run left out, the loss of the model that transformers runs without it."""
    expected = [
        loss_without(checkpoint, kept[:i] + kept[i + drop :], blocks) for i in range(len(kept) - drop + 1)
    ]
    found = SCORERS["perplexity"](open_trunk(checkpoint, blocks), kept, drop)
    assert found == pytest.approx(expected, rel=1e-4)


def idle(checkpoint: Path, layer: int, folder: Path) -> Path:
    """A copy of `checkpoint` whose `layer` adds nothing (what it would add is multiplied by zero).

    Its head is sure of what comes next, so that its own text has next to no loss.
    """
    import torch
    from transformers import AutoTokenizer

    model, name = model_of(checkpoint)
    ends = ("attn.c_proj", "mlp.c_proj", "self_attn.o_proj", "mlp.down_proj")
    with torch.no_grad():
        for path, module in getattr(model.base_model, name)[layer].named_modules():
            if path in ends:
                for weight in module.parameters():
                    weight.zero_()
        (model.base_model.ln_f if name == "h" else model.base_model.norm).weight.mul_(50)  # sure of itself
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


def own_text(checkpoint: Path):
    """Blocks that the model itself writes, greedily: without a layer that matters it says something else."""
    import torch

    model, _ = model_of(checkpoint)
    ids = torch.arange(4)[:, None] * 50 + 7
    with torch.no_grad():
        for _ in range(23):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids.numpy()


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("name", MEASURED)
def test_a_layer_that_does_nothing_goes_first(checkpoint, tmp_path, name, layer):
    """All three drop the layer that hands its input on, wherever it stands, and score it as no loss."""
    folder = idle(checkpoint, layer, tmp_path / "idle")
    text = own_text(folder)
    trunk, scored = open_trunk(folder, text), []

    def score(kept, drop):
        scored.append(SCORERS[name](trunk, kept, drop))
        return scored[-1]

    assert choose_measured(name, 4, 3, score) == [i for i in range(4) if i != layer]
    whole = loss_without(folder, range(4), text) if name == "perplexity" else 0.0
    assert scored[0][layer] == pytest.approx(whole, abs=1e-6)


def table(scores):
    """A scorer that looks its answers up, and what it was asked."""
    asked = []

    def score(kept, drop):
        asked.append((kept, drop))
        return [sum(scores[i] for i in kept[at : at + drop]) for at in range(len(kept) - drop + 1)]

    return score, asked


@pytest.mark.parametrize(
    ("name", "scores", "k", "kept"),
    [
        ("block-influence", [0.9, 0.1, 0.5, 0.2], 2, [0, 2]),
        ("block-influence", [0.1, 0.9, 0.2, 0.9], 2, [1, 3]),
        ("block-influence", [0.5, 0.5, 0.5, 0.5], 2, [0, 1]),
        ("block-influence", [0.9, 0.1, 0.1, 0.9], 3, [0, 1, 3]),
        ("angular", [9, 1, 2, 9, 0], 3, [0, 3, 4]),
        ("angular", [1, 1, 9, 9, 9], 3, [2, 3, 4]),
        ("angular", [9, 9, 9, 1, 1], 3, [0, 1, 2]),
        ("angular", [5, 5, 5, 5, 5], 2, [0, 1]),
        ("angular", [5, 1, 5, 5, 1], 1, [0]),
        ("perplexity", [0.9, 0.1, 0.5, 0.2], 2, [0, 2]),
        ("perplexity", [0.5, 0.5, 0.5, 0.5], 1, [0]),
    ],
)
def test_the_least_is_dropped(name, scores, k, kept):
    """By hand: the lowest scores go, a run in one piece, and of equal ones the deepest."""
    score, _ = table(scores)
    assert choose_measured(name, len(scores), k, score) == kept


def test_greedy_measures_again_after_each_layer():
    """Each round scores what is left: two layers that stand in for each other do not both go."""
    asked = []

    def score(kept, drop):
        asked.append(list(kept))
        return [1.0 if i in (1, 2) and {1, 2} <= set(kept) else 9.0 - i for i in kept]

    assert choose_measured("perplexity", 4, 2, score) == [0, 1]
    assert asked == [[0, 1, 2, 3], [0, 1, 3]]


@pytest.mark.parametrize("name", MEASURED)
def test_keeping_all_layers_measures_nothing(name):
    """K = layers is no choice: the scorer is not asked."""
    score, asked = table([1.0] * 5)
    assert choose_measured(name, 5, 5, score) == [0, 1, 2, 3, 4]
    assert asked == []


@pytest.mark.parametrize("k", [-1, 0, 5, 99])
@pytest.mark.parametrize("name", MEASURED)
def test_impossible_counts_are_one_line(name, k):
    """No layer, or more than there are."""
    with pytest.raises(UserError, match="the teacher has 4 layers; choose 1 to 4"):
        choose_measured(name, 4, k, table([1.0] * 4)[0])


def test_every_measured_strategy_has_its_parts():
    """A name has a chooser, a scorer and a number of tokens, and is no fixed strategy's."""
    assert list(MEASURED) == list(SCORERS) == list(TOKENS)
    assert not set(MEASURED) & set(SELECTORS)


def test_a_sample_is_drawn_from_the_whole_text(gpt2_checkpoint, corpus_file):
    """Seeded, in whole blocks, the count rounded up, never more than there is, an end mark after each document."""
    texts = load(str(corpus_file)).train
    one, again, other = (sample(texts, gpt2_checkpoint, 0, 16, 100, seed) for seed in (1, 1, 2))
    assert one.shape == (7, 16) and one.dtype == np.int64
    assert (one == again).all() and (one != other).any()
    assert (one == 0).any()
    everything = sample(texts, gpt2_checkpoint, None, 16, 10**9, 0)
    assert 7 < len(everything) < 10**6 and not (everything == 0).any()
    with pytest.raises(UserError, match="fill no block of"):
        sample(texts, gpt2_checkpoint, 0, 10**6, 10, 0)


@pytest.mark.parametrize("name", MEASURED)
def test_compress_records_what_it_chose_by(gpt2_checkpoint, corpus_file, tmp_path, name):
    """compression.json: method, text, tokens and every round's scores, from which the choice follows."""
    kept, selection = measure(gpt2_checkpoint, name, 4, 2, corpus=str(corpus_file), tokens=100, seed=3)
    compress(
        str(gpt2_checkpoint),
        tmp_path / "student",
        layers=2,
        select=name,
        select_corpus=str(corpus_file),
        select_tokens=100,
        seed=3,
    )
    made = read_json(tmp_path / "student" / "compression.json", "the record")
    assert made["keep"] == kept and made["select"] == name
    assert made["selection"] == selection
    text = load(str(corpus_file))
    assert selection["corpus"] == {"name": str(corpus_file), "sha256": text.sha256}
    assert (selection["tokens"], selection["window"], selection["seed"]) == (128, 64, 3)
    rounds = iter(selection["rounds"])
    assert choose_measured(name, 4, 2, lambda kept, drop: next(rounds)["scores"]) == kept
    assert len(selection["rounds"]) == (2 if name == "perplexity" else 1)
    card = (tmp_path / "student" / "README.md").read_text()
    assert f"{name} on 128 tokens" in card and card.count("lowest dropped") == len(selection["rounds"])


def test_the_held_out_part_is_never_scored_on(gpt2_checkpoint, corpus_file, tmp_path):
    """Another held-out part changes nothing, other train text does."""
    text = load(str(corpus_file))
    swapped = type(text)(text.name, text.sha256, text.train, text.train)
    one, other = (
        measure(gpt2_checkpoint, "block-influence", 4, 2, corpus=corpus, tokens=10**9)[1]["rounds"]
        for corpus in (text, swapped)
    )
    assert one == other
    held = type(text)(text.name, text.sha256, text.heldout, text.train)
    assert measure(gpt2_checkpoint, "block-influence", 4, 2, corpus=held, tokens=10**9)[1]["rounds"] != one


def test_a_fixed_strategy_records_no_measurement(gpt2_checkpoint, tmp_path):
    """`selection` is null where nothing was measured."""
    assert compress(str(gpt2_checkpoint), tmp_path / "student", layers=2)["selection"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layers", 2, "--select", "block-influense"], "did you mean block-influence"),
        (["--layers", 2, "--select", "perplexty"], "did you mean perplexity"),
        (["--layers", 2, "--select", "angular-distance"], "did you mean angular"),
        (["--layers", 5, "--select", "angular"], "the teacher has 4 layers; choose 1 to 4"),
        (["--layers", 0, "--select", "angular"], "--layers"),
        (["--layers", 2, "--select", "uniform", "--select-corpus", "stdlib"], "for strategies that measure"),
        (["--layers", 2, "--select-tokens", 99], "for strategies that measure"),
        (["--layers", 2, "--select", "angular", "--select-tokens", 0], "--select-tokens"),
        (["--keep", "0,1", "--select", "angular"], "give one of the two"),
        (["--layers", 2, "--select", "angular", "--init", "random"], "keeps no layer of the teacher"),
        (["--layers", 2, "--select", "angular", "--select-corpus", "none.txt"], "no such file or folder"),
        (["--layers", 2, "--select", "angular", "--select-corpus", "EMPTY"], "is empty"),
        (["--layers", 2, "--select", "angular", "--select-corpus", "LATIN"], "not UTF-8 at byte 2"),
    ],
)
def test_what_cannot_be_measured_is_one_line(gpt2_checkpoint, tmp_path, main, options, words):
    """Bad names, counts and texts: exit 2, one line, nothing written."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes("naïve café".encode("latin-1") * 9)
    places = {"EMPTY": tmp_path / "empty.txt", "LATIN": tmp_path / "latin.txt"}
    out = tmp_path / "student"
    done = main("compress", gpt2_checkpoint, "--out", out, *(places.get(o, o) for o in options))
    assert done.code == 2 and words in done.err, done.err
    assert len(done.err.splitlines()) == 1
    assert not out.exists()


def test_weights_that_are_no_numbers_choose_nothing(make_checkpoint, corpus_file, tmp_path):
    """NaN in a layer is told, with the strategy's name."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_checkpoint("gpt2")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.base_model.h[1].mlp.c_proj.weight.fill_(math.nan)
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="--select angular: layers score no number"):
        compress(str(folder), tmp_path / "out", layers=2, select="angular", select_corpus=str(corpus_file))
