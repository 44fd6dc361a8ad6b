import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from devices.artifact import open_artifact
from devices.errors import CheckFailed, UserError
from devices.runtime import Classifier, Decoder
from export import answers, build, parity
from export.build import export, summary
from export.checkpoint import identity
from export.recipes import RECIPES

GLUE = {
    "schema": 1,
    "task": "docs-kind",
    "columns": {"text_a": "text", "label": "label"},
    "labels": ["class", "function"],
    "metric": "accuracy",
    "problem": "classification",
    "max_tokens": 32,
    "value": 0.9,
}


@pytest.fixture
def no_pytorch(monkeypatch):
    """Any start of the PyTorch reference is a failure."""
    monkeypatch.setattr(answers, "_run_child", lambda arguments: pytest.fail("PyTorch was asked"))


@pytest.fixture
def copied(tmp_path):
    """`copied(checkpoint)`: a copy that may be changed."""
    return lambda checkpoint: Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def classifier_checkpoint(request, make_classifier):
    """A fine-tuned checkpoint with glue.json."""
    path = make_classifier(request.param)
    (path / "glue.json").write_text(json.dumps(GLUE))
    return path


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_artifact_is_whole(request, tmp_path, parity_here, family, recipe):
    """What is written verifies, generates, says where it comes from and how far it is from PyTorch."""
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    manifest = export(checkpoint, tmp_path / "out", recipe)
    artifact = open_artifact(tmp_path / "out")
    assert artifact.manifest == manifest and artifact.kind == "decoder" and artifact.recipe == recipe
    assert manifest["lineage"]["checkpoint"] == {"name": family, "sha256": identity(checkpoint)}
    assert {"config.json", "generation_config.json", "tokenizer.json", "model.onnx.data"} <= set(
        manifest["files"]
    )
    assert sum(manifest["bytes"].values()) >= manifest["files"]["model.onnx.data"]["size"] * 0.9
    figures = manifest["parity"]
    assert figures["tokens"] == 3 * 64 and figures["perplexity"]["pytorch"] > 1
    if recipe == "fp32":
        assert figures["greedy_equal"] and figures["greedy_tokens"] == 16
        assert figures["max_error"] <= figures["limit"] and figures["cached_max_error"] <= figures["limit"]
    else:
        assert set(manifest["bytes"]) >= {"int4" if recipe == "int4-all" else "int8", "scales"}
        assert figures["perplexity_ratio"] == pytest.approx(1, abs=0.05 if recipe == "int8" else 0.8)
        # Activations are quantized row by row: how many positions go in together hardly matters.
        assert figures["cached_from_whole"] < figures["max_error"] + 1e-3
    assert len(Decoder(artifact, threads=1).generate("The quick", max_new_tokens=4).ids) <= 4
    assert any("parity" in line for line in summary(manifest, tmp_path / "out"))


def test_int8_is_closer_than_int4(gpt2_checkpoint, tmp_path, parity_here):
    """More bits, less error: the recipes are what they say."""
    errors = [
        export(gpt2_checkpoint, tmp_path / r, r)["parity"]["max_error"] for r in ("fp32", "int8", "int4")
    ]
    assert errors[0] * 10 < errors[1] < errors[2]


def test_a_second_recipe_asks_no_pytorch(gpt2_checkpoint, tmp_path, parity_here, monkeypatch):
    """The reference of a checkpoint is computed once; a damaged copy of it is computed again."""
    asked = []
    child = answers._run_child
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(answers, "_run_child", lambda arguments: asked.append(1) or child(arguments))
    export(gpt2_checkpoint, tmp_path / "1")
    export(gpt2_checkpoint, tmp_path / "2", "int8")
    assert len(asked) == 1
    for file in (tmp_path / "cache").rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    export(gpt2_checkpoint, tmp_path / "3", "int8")
    assert len(asked) == 2


def test_the_cache_is_bounded(gpt2_checkpoint, tmp_path, parity_here, monkeypatch):
    """Old references go when new ones come."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "toolchain" / "reference" / "parity"
    folder.mkdir(parents=True)
    for i in range(20):
        (folder / f"{i}.npz").write_bytes(b"old")
    export(gpt2_checkpoint, tmp_path / "out")
    assert len(list(folder.iterdir())) == answers.KEPT


@pytest.mark.parametrize("name", ["layers.2.up.weight", "layers.1.qkv.bias", "embedding.weight"])
def test_a_tampered_weight_fails_and_leaves_nothing(
    gpt2_checkpoint, tmp_path, parity_here, monkeypatch, name
):
    """A graph with one wrong tensor is found by parity; no artifact is left and the message names figures."""
    import onnx

    def tampered(checkpoint, arch, recipe, folder, *rest):
        stored = build_graph(checkpoint, arch, recipe, folder, *rest)
        model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        place = next(t for t in model.graph.initializer if t.name == name)
        if not place.external_data:
            place.raw_data = (np.frombuffer(place.raw_data, np.float32) + 0.1).tobytes()
            onnx.save(model, str(folder / "model.onnx"))
            return stored
        entry = {e.key: e.value for e in place.external_data}
        data = np.memmap(folder / "model.onnx.data", np.float32, "r+", int(entry["offset"]), (64,))
        data[:] += 0.1
        data.flush()
        return stored

    build_graph = build.write_graph
    monkeypatch.setattr(build, "write_graph", tampered)
    with pytest.raises(CheckFailed, match=r"parity: .*error is .* from PyTorch .*the limit is"):
        export(gpt2_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_other_greedy_tokens_fail(gpt2_checkpoint, tmp_path, parity_here, monkeypatch):
    """Greedy tokens that differ where PyTorch was sure are a failure; where it was not, they are none."""
    true = answers._run_child

    def wrong(arguments, margin):
        true(arguments)
        with np.load(arguments[-1]) as file:
            found = dict(file)
        found["parity.greedy"][5] += 1
        found["parity.margins"][5] = margin
        np.savez(arguments[-1], **found)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))
    monkeypatch.setattr(answers, "_run_child", lambda arguments: wrong(arguments, 1.0))
    with pytest.raises(CheckFailed, match="greedy tokens differ from PyTorch's after 5"):
        export(gpt2_checkpoint, tmp_path / "out")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.setattr(answers, "_run_child", lambda arguments: wrong(arguments, 1e-6))
    assert export(gpt2_checkpoint, tmp_path / "out")["parity"]["greedy_tokens"] == 5


def test_a_broken_quantized_graph_fails(gpt2_checkpoint, tmp_path, parity_here, monkeypatch):
    """Perplexity twice PyTorch's is no rounding error: the artifact is not written."""
    monkeypatch.setattr(parity, "BROKEN", 0.5)
    with pytest.raises(CheckFailed, match="int8 multiplies perplexity by"):
        export(gpt2_checkpoint, tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()


def test_without_parity(gpt2_checkpoint, tmp_path, no_pytorch):
    """--no-parity starts no PyTorch, and the manifest says null, not passed."""
    manifest = export(gpt2_checkpoint, tmp_path / "out", parity=False)
    assert manifest["parity"] is None and open_artifact(tmp_path / "out").manifest["parity"] is None
    assert summary(manifest, tmp_path / "out")[-1] == "parity: not checked"


@pytest.mark.parametrize("recipe", RECIPES)
def test_classifiers(classifier_checkpoint, tmp_path, parity_here, recipe):
    """A classifier's artifact has no cache, reads the last real token of padded rows and names its task."""
    manifest = export(classifier_checkpoint, tmp_path / "out", recipe)
    assert manifest["kind"] == "classifier"
    assert manifest["task"] == {
        "name": "docs-kind",
        **{key: GLUE[key] for key in ("columns", "labels", "metric", "problem")},
    }
    assert manifest["lineage"]["glue"] == GLUE
    assert manifest["parity"]["max_error"] < (1e-4 if recipe == "fp32" else 10)
    classifier = Classifier(tmp_path / "out", threads=1)
    assert {v.name for v in classifier.session.get_inputs()} == {"input_ids", "attention_mask"}
    rows = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7], [9]]
    together = classifier.logits(rows)
    alone = np.concatenate([classifier.logits([row]) for row in rows])
    assert together.shape == (3, 2)
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_classifier_without_a_task(classifier_checkpoint, tmp_path, copied, no_pytorch):
    """Somebody else's classifier, without glue.json, is exported with the labels of its config."""
    path = copied(classifier_checkpoint)
    (path / "glue.json").unlink()
    assert export(path, tmp_path / "out", parity=False)["task"]["labels"] == ["a", "b"]


def test_lineage_is_carried(gpt2_checkpoint, tmp_path, copied, no_pytorch):
    """compression.json and training.json of the checkpoint are found again in the manifest."""
    path = copied(gpt2_checkpoint)
    (path / "compression.json").write_text('{"keep": [0, 2]}')
    (path / "training.json").write_text('{"steps": 3}')
    lineage = export(path, tmp_path / "out", parity=False)["lineage"]
    assert lineage["compression"] == {"keep": [0, 2]} and lineage["training"] == {"steps": 3}


def _cut(path):
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-100])


def _config(**change):
    def apply(path):
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **change}))

    return apply


BAD = {
    "truncated weights": (_cut, "truncated or corrupt"),
    "no config": (lambda p: (p / "config.json").unlink(), "config.json"),
    "more layers": (_config(n_layer=6), "config.json and the weights disagree"),
    "fewer layers": (_config(n_layer=2), "more than config.json's 2 layers"),
    "other width": (_config(n_embd=64), "config.json says"),
    "bad lineage": (lambda p: (p / "compression.json").write_text("{"), "compression.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints_leave_nothing(gpt2_checkpoint, tmp_path, copied, no_pytorch, case):
    """What cannot be exported is refused in one line, and no folder remains."""
    change, expected = BAD[case]
    path = copied(gpt2_checkpoint)
    change(path)
    with pytest.raises(UserError, match=expected) as caught:
        export(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_places_that_are_refused(gpt2_checkpoint, tmp_path, copied, no_pytorch):
    """An existing folder is kept without --force; the checkpoint is never replaced by its own artifact."""
    path = copied(gpt2_checkpoint)
    (tmp_path / "out").mkdir()
    for out, force, expected in (
        (tmp_path / "out", False, "already exists"),
        (path, True, "is the checkpoint itself"),
        (path / "out", True, "lies in it"),
        (tmp_path, True, "holds the checkpoint"),
    ):
        with pytest.raises(UserError, match=expected):
            export(path, out, force=force, parity=False)
    assert (path / "model.safetensors").is_file()
    export(path, tmp_path / "out", force=True, parity=False)


def test_unknown_recipe(gpt2_checkpoint, tmp_path, no_pytorch):
    """A recipe that does not exist is answered with the near ones."""
    with pytest.raises(UserError, match="unknown recipe 'int9': did you mean int"):
        export(gpt2_checkpoint, tmp_path / "out", "int9")


def test_an_interrupt_leaves_nothing(gpt2_checkpoint, tmp_path, monkeypatch):
    """Ctrl-C while the graph is written leaves neither artifact nor staging folder."""

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "inspect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(gpt2_checkpoint, tmp_path / "out", parity=False)
    assert list(tmp_path.iterdir()) == []


def test_the_command(gpt2_checkpoint, tmp_path, cli):
    """`toolchain export`, with PyTorch in a child process: lines for people, the manifest with --json."""
    done = cli("export", gpt2_checkpoint, "--out", tmp_path / "a", "--int8", "--no-gates")
    assert done.returncode == 0, done.stderr
    assert "decoder, int8, 4 layers" in done.stdout and "argmax agreement" in done.stdout
    assert f"next: toolchain generate {tmp_path / 'a'}" in done.stdout
    done = cli(
        "export", gpt2_checkpoint, "--out", tmp_path / "b", "--recipe", "int4", "--json", "--no-parity"
    )
    assert json.loads(done.stdout)["recipe"]["name"] == "int4"
    done = cli("export", gpt2_checkpoint, "--out", tmp_path / "c", "--int4", "--int8")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    done = cli("export", gpt2_checkpoint, "--out", tmp_path / "a")
    assert done.returncode == 2 and "--force" in done.stderr


def test_the_device_picks_the_kernel(classifier_checkpoint, tmp_path, cli):
    """--device takes 8-bit rows for a processor that does not saturate; an unknown device is one line."""
    done = cli(
        "export",
        classifier_checkpoint,
        "--out",
        tmp_path / "a",
        "--int8",
        "--device",
        "cortex-a72",
        "--no-parity",
    )
    assert done.returncode == 0, done.stderr
    assert open_artifact(tmp_path / "a").manifest["recipe"]["name"] == "int8-vnni"
    done = cli("export", classifier_checkpoint, "--out", tmp_path / "b", "--int8", "--device", "cortex-a77")
    assert done.returncode == 2 and "did you mean cortex-a7" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "b").exists()
    options = ("--recipe", "int8-vnni", "--device", "x86-mini-pc")
    done = cli("export", classifier_checkpoint, "--out", tmp_path / "b", *options)
    assert done.returncode == 2 and "use int8-dynamic" in done.stderr and not (tmp_path / "b").exists()
