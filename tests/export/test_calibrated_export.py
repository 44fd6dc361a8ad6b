import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from bench.quality import perplexity, windows
from devices.runtime import Decoder
from devices.text import encode_text, load_tokenizer
from export.build import export, summary
from export.recipes import RECIPES
from toolchain.corpus import calibration_file, heldout_file


@pytest.fixture
def recipe(monkeypatch):
    """`recipe(**fields)`: the name of a recipe that is int4 with other fields."""

    def add(**fields):
        monkeypatch.setitem(RECIPES, "test", replace(RECIPES["int4"], name="test", **fields))
        return "test"

    return add


def test_the_demo_teacher_in_four_bits(tmp_path, recipe):
    """Calibrated on the train part of its corpus, GPTQ costs no more held-out perplexity than rounding."""
    teacher = Path(str(resources.files("toolchain") / "assets" / "teacher"))
    text = heldout_file("stdlib").read_text(encoding="utf-8")
    ids = windows(encode_text(load_tokenizer(teacher), text[:60_000]), 256, 8)
    found = {}
    for method in ("rtn", "gptq"):
        name = recipe(method=method, smooth=0.0)
        out = tmp_path / method
        export(teacher, out, name, parity=False, calibration_text=calibration_file("stdlib", tmp_path))
        found[method] = perplexity(Decoder(out, threads=1).logits, ids)["value"]
    assert found["gptq"] <= found["rtn"]


def test_the_manifest_says_on_what(gpt2_checkpoint, corpus_file, tmp_path, recipe):
    """A text is named by its hash; without one the model's own samples are used, and both are repeatable."""
    name = recipe(method="gptq", smooth=0.5)
    made = [export(gpt2_checkpoint, tmp_path / "a", name, parity=False, calibration_text=corpus_file)]
    made += [export(gpt2_checkpoint, tmp_path / out, name, parity=False) for out in "bc"]
    records = [manifest["calibration"] for manifest in made]
    assert records[0]["on"] == "text" and len(records[0]["sha256"]) == 64 and records[0]["tokens"] > 500
    assert records[1] == {"on": "samples", "sha256": None, "tokens": 16 * 64}
    data = [manifest["files"]["model.onnx.data"]["sha256"] for manifest in made]
    assert data[1] == data[2] != data[0]
    assert export(gpt2_checkpoint, tmp_path / "d", "int8", parity=False)["calibration"] is None


@pytest.mark.parametrize("name", ["int8-dynamic", "int8-vnni"])
def test_int8_by_rows_is_smoothed_where_there_is_a_text(gpt2_checkpoint, corpus_file, tmp_path, name):
    """With a text the weights are others than without; without one no samples are written, and it is said."""
    plain = export(gpt2_checkpoint, tmp_path / "a", name, parity=False)
    assert plain["calibration"]["on"] == "nothing"
    assert any("--calibrate" in line for line in summary(plain, tmp_path / "a"))
    smooth = export(gpt2_checkpoint, tmp_path / "b", name, parity=False, calibration_text=corpus_file)
    assert smooth["calibration"]["on"] == "text" and smooth["bytes"] == plain["bytes"]
    data = [manifest["files"]["model.onnx.data"]["sha256"] for manifest in (plain, smooth)]
    assert data[0] != data[1]


def test_a_classifier_is_calibrated_on_text_alone(tmp_path, make_checkpoint, corpus_file, recipe):
    """It cannot write any: without a text its weights are rounded to nearest, and the summary says so."""
    path = make_checkpoint("gpt2")
    config = json.loads((path / "config.json").read_text())
    config |= {"architectures": ["GPT2ForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}
    (path / "config.json").write_text(json.dumps({**config, "pad_token_id": config["eos_token_id"]}))
    _add_score(path)
    name = recipe(method="gptq")
    manifest = export(path, tmp_path / "a", name, parity=False)
    assert manifest["calibration"] == {"on": "nothing", "sha256": None, "tokens": 0}
    assert any("not calibrated" in line for line in summary(manifest, tmp_path / "a"))
    manifest = export(path, tmp_path / "b", name, parity=False, calibration_text=corpus_file)
    assert manifest["calibration"]["on"] == "text"


def _add_score(path):
    from safetensors.numpy import load_file, save_file

    weights = load_file(path / "model.safetensors")
    weights["score.weight"] = np.ones((2, 32), np.float32)
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def test_a_text_on_the_command_line(gpt2_checkpoint, tmp_path, cli):
    """--calibrate names a text; one that is not there is refused in one line."""
    done = cli("export", gpt2_checkpoint, "--out", tmp_path / "a", "--calibrate", tmp_path / "none.txt")
    assert done.returncode == 2 and "no such text file" in done.stderr and len(done.stderr.splitlines()) == 1
