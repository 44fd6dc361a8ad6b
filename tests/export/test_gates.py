import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from devices.errors import CheckFailed, UserError
from export.blame import Trial, advice
from export.build import export, summary
from export.gates import REPORT_ONLY, Gates, default_gates, failures
from export.recipes import RECIPES


def text_quality(ratio, agreement, error=0.1, tokens=1000):
    """A quality on text as one view."""
    figures = {
        "perplexity_ratio": ratio,
        "argmax_agreement": agreement,
        "nll_error": error,
        "compared": tokens,
    }
    return {"whole": figures}


def task_quality(pytorch, artifact):
    """A quality on a labelled task."""
    return {"task": {"name": "t", "metric": "f1", "rows": 100, "pytorch": pytorch, "artifact": artifact}}


def grid(rng, shape, levels):
    """Weights that `levels` steps hold exactly, in every block of 32 along the second axis."""
    found = rng.integers(levels[0], levels[1] + 1, shape)
    found[:, ::32], found[:, 1::32] = levels
    return found.astype(np.float32)


@pytest.fixture(scope="module")
def bad_down(gpt2_checkpoint, tmp_path_factory):
    """A tiny GPT-2 whose matrices fit 4 bits, all but `down`: there, one weight in each block is 40 times the rest."""
    path = tmp_path_factory.mktemp("checkpoint") / "bad-down"
    shutil.copytree(gpt2_checkpoint, path)
    weights, rng = load_file(path / "model.safetensors"), np.random.default_rng(0)
    for name, old in weights.items():
        if name.endswith("wte.weight"):
            weights[name] = grid(rng, old.shape, (-127, 127)) * np.float32(old.std() / 73)
        elif name.endswith("mlp.c_proj.weight"):
            new = rng.normal(size=old.T.shape).astype(np.float32) * old.std()
            new[:, ::32] *= 40 / np.abs(new[:, ::32]) * old.std()
            weights[name] = np.ascontiguousarray(new.T)
        elif old.ndim == 2 and "c_" in name:
            new = grid(rng, old.T.shape, (-8, 7)) * np.float32(old.std() / 4.6)
            weights[name] = np.ascontiguousarray(new.T)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


def test_defaults_are_the_recipes_bits():
    """int8 +0.5 % and 99 %, int4 +6 % and 93 %, a labelled task one point; in float, parity holds the text."""
    assert default_gates(RECIPES["int8"]) == Gates(0.5, 99.0, 1.0)
    assert default_gates(RECIPES["int4"]) == Gates(6.0, 93.0, 1.0)
    assert default_gates(RECIPES["fp32"]) == Gates(None, None, 1.0)


def test_what_fails_is_said():
    """Each gate that does not hold is said once, with its figure, its limit and the worse of two views."""
    gates = Gates(0.5, 99.0, 1.0)
    assert failures(text_quality(1.005, 0.99), gates) == {}
    both = text_quality(1.004, 0.985) | {"cached": text_quality(1.02, 0.98, tokens=500)["whole"]}
    assert failures(both, gates) == {
        "perplexity_rise": "perplexity rises by 2.00 % by cached steps (500 tokens), at most 0.5 % may be",
        "agreement": "argmax is PyTorch's at 98.00 % by cached steps (500 tokens), at least 99 % must be",
    }
    assert failures(both, REPORT_ONLY) == {}
    assert failures(text_quality(float("nan"), 1.0), gates).keys() == {"perplexity_rise"}


def test_one_point_is_allowed():
    """A metric exactly one point lower holds, a hair more does not; a better artifact holds."""
    gates = Gates(metric_drop=1.0)
    assert failures(task_quality(0.91, 0.90), gates) == {}
    assert failures(task_quality(0.5, 0.9), gates) == {}
    assert failures(task_quality(0.91, 0.899), gates) == {
        "metric_drop": "the metric falls by 1.10 points (f1, 100 rows of t), at most 1 may be"
    }


def test_the_cheapest_part_that_is_enough_is_named():
    """Of parts that are each enough, the one that costs least; else what buys most; else more bits."""
    now, gates = text_quality(1.2, 0.7, 0.5), Gates(6.0, 93.0)
    down = Trial(("down",), 8, text_quality(1.01, 0.96, 0.1), 3_000_000)
    first = Trial(("first",), 8, text_quality(1.05, 0.94, 0.2), 1_000_000)
    head = Trial(("embedding", "head"), 32, text_quality(1.1, 0.8, 0.3), 10)
    none = Trial(("o",), 8, text_quality(1.19, 0.71, 0.49), 10)
    assert advice(now, [down, head, first, none], gates, "9 tokens") == (
        "Keep first at 8 bits: perplexity +5.00 %, argmax 94.00 %, +1.00 MB "
        "(without: perplexity +20.00 %, argmax 70.00 %; 9 tokens)"
    )
    some = advice(now, [none, head], gates, "9 tokens")
    assert some.startswith("No part alone is enough; what buys most is embedding and head in float: ")
    assert advice(now, [none], gates, "9 tokens") == "No part alone helps; choose a recipe with more bits"


def test_a_gate_that_fails_names_the_part(bad_down, corpus_file, tmp_path, cli):
    """Exit 1, one message with gate, figure, limit and the part that hurts, and no folder is left."""
    asked = ["--quality-text", corpus_file, "--quality-tokens", 1024]
    done = cli("export", bad_down, "--out", tmp_path / "out", "--int4", *asked)
    *before, last = done.stderr.strip().splitlines()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert last.startswith("toolchain: int4: ") and not any(line.startswith("toolchain:") for line in before)
    assert "argmax is PyTorch's at" in last and "at least 93 % must be" in last
    assert "Keep down at 8 bits" in last and "MB (without" in last
    for part in ("embedding", "qkv", "o", "up", "down", "first", "last"):
        assert any(line.startswith(f"{part} ") for line in before)
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]


def test_without_gates_it_is_written_and_said(bad_down, corpus_file, tmp_path, parity_here):
    """Figures beyond every limit are reported where no gate is asked for."""
    manifest = export(
        bad_down, tmp_path / "out", "int4", quality_text=corpus_file, quality_tokens=512, gates=REPORT_ONLY
    )
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())["quality"]
    assert found == manifest["quality"] and found["whole"]["argmax_agreement"] < 0.93
    assert found["gates"] == {"perplexity_rise": None, "agreement": None, "metric_drop": None}
    assert {"text", "whole", "cached", "cached_from_whole", "neighbours"} <= set(found)
    assert manifest["seconds"].keys() == {"graph", "pytorch", "checks"}
    assert manifest["graph"]["operators"]["MatMulNBits"] == 17
    assert sum(line.startswith("quality ") for line in summary(manifest, tmp_path / "out")) == 2


def test_a_limit_may_be_named(bad_down, corpus_file, tmp_path, parity_here):
    """A gate that is given replaces the recipe's, in either direction."""
    wanted = {"quality_text": corpus_file, "quality_tokens": 256}
    export(bad_down, tmp_path / "wide", "int4", gates=Gates(1000.0, 1.0), **wanted)
    with pytest.raises(CheckFailed, match=r"argmax is PyTorch's at .* at least 100 % must be"):
        export(bad_down, tmp_path / "narrow", "int8", gates=Gates(agreement=100.0), **wanted)
    assert not (tmp_path / "narrow").exists()


def test_a_classifier_is_judged(make_classifier, tmp_path, parity_here):
    """What the judge finds is in the manifest; a metric that falls too far leaves nothing, and each part is tried."""
    path, said = make_classifier("gpt2"), []
    scores = iter([0.80, 0.80, 0.80, 0.90, 0.80, 0.80, 0.80, 0.80, 0.80])

    def judge(artifact):
        return {"name": "t", "metric": "f1", "rows": 9, "pytorch": 0.9, "artifact": next(scores)}

    with pytest.raises(CheckFailed, match=r"falls by 10.00 points .* Keep qkv in float: f1 0.9000"):
        export(path, tmp_path / "out", "int8", judge=judge, progress=said.append)
    assert not (tmp_path / "out").exists() and any(line.startswith("last in float") for line in said)
    scores = iter([0.895])
    manifest = export(path, tmp_path / "out", "int8", judge=judge)
    assert manifest["quality"]["task"]["artifact"] == 0.895
    assert summary(manifest, tmp_path / "out")[-1].startswith("quality: f1 0.8950 on 9 rows of t")


def test_a_decoder_has_no_labelled_task(gpt2_checkpoint, tmp_path, parity_here):
    """A labelled task for a decoder is the user's slip."""
    with pytest.raises(UserError, match="labelled tasks are for classifiers"):
        export(gpt2_checkpoint, tmp_path / "out", judge=lambda artifact: {})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--no-gates", "--min-agreement", "90"], "one or the other"),
        (["--task", "docs-kind"], "--task is for a classifier"),
        (["--quality-text", "nowhere.txt"], "no such text file"),
        (["--min-agreement", "101"], "101"),
    ],
)
def test_a_slip_is_one_line(gpt2_checkpoint, tmp_path, cli, options, says):
    """Options that contradict each other, or a text that is not there: exit 2 and one line."""
    done = cli("export", gpt2_checkpoint, "--out", tmp_path / "out", "--int8", *options)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and says in done.stderr
    assert not (tmp_path / "out").exists()
