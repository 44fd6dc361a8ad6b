"""Architectures whose graph is traced: artifacts like any other, or one line that says why not."""

import json
import shutil
from collections import Counter

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from devices.artifact import open_artifact
from devices.errors import UserError
from devices.runtime import Classifier, Decoder
from export import fallback, tracing
from export.build import export

# Of torch's own making.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning")

WINDOWED = {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
# Fields over those of the tiny checkpoints in conftest.py. OPT has learned positions and biases everywhere.
OPT = {"num_hidden_layers": 2, "word_embed_proj_dim": 32, "ffn_dim": 64}
SLOW = {
    "gpt_neox": {"num_hidden_layers": 2, "tie_word_embeddings": False},
    "gemma": {"num_hidden_layers": 2, "head_dim": 16},
    "gemma2": {"num_hidden_layers": 2, **WINDOWED},
    "gemma3_text": {
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        **WINDOWED,
    },
}
EACH = [("opt", OPT), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW.items())]


@pytest.fixture(scope="module")
def traced_here():
    """The tracing in this process: what a child costs is saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fallback, "_run_child", tracing.main)
        yield


@pytest.fixture(scope="module")
def opt_checkpoint(make_checkpoint):
    """A 2-layer OPT; read only."""
    return make_checkpoint("opt", **OPT)


@pytest.fixture
def artifact(make_checkpoint, tmp_path, traced_here, parity_here):
    """`artifact(family, fields, recipe)`: an exported artifact and the lines that were said."""

    def make(family, fields, recipe="fp32"):
        said = []
        export(make_checkpoint(family, **fields), tmp_path / "out", recipe, progress=said.append)
        return open_artifact(tmp_path / "out"), said

    return make


@pytest.fixture
def changed(opt_checkpoint, tmp_path):
    """`changed(**config)`: a copy of the OPT checkpoint with other words in its config.json."""

    def change(**fields):
        path = shutil.copytree(opt_checkpoint, tmp_path / "checkpoint")
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | fields))
        return path

    return change


def matrices(folder):
    """Shapes of the stored weights with two dimensions or more, views as one, and the graph's operators, counted."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    weights = [t for t in graph.initializer if not t.name.endswith((".scales", ".zeros"))]
    places = [next((e.value for e in t.external_data if e.key == "offset"), t.name) for t in weights]
    shapes = {(at, *t.dims) for at, t in zip(places, weights, strict=True) if len(t.dims) > 1}
    return Counter(tuple(shape) for _, *shape in shapes), Counter(node.op_type for node in graph.node)


@pytest.mark.parametrize(("family", "fields"), EACH)
def test_a_traced_artifact_is_the_model(artifact, family, fields):
    """It computes what PyTorch does, runs in our runtime by every way through it, and stores no table twice."""
    found, said = artifact(family, fields)
    assert said[0].startswith(f"{family}: not one of the families whose graph this project writes itself")
    _figures_hold(found.manifest)
    _keeps_the_last(found)
    _rows_and_steps_agree(Decoder(found, threads=1))
    shapes, _ = matrices(found.path)
    assert shapes[(400, 32)] + shapes[(32, 400)] == (1 if fields.get("tie_word_embeddings", True) else 2)
    weights = 4 * found.model["parameters"]
    assert weights * 0.9 < (found.path / "model.onnx.data").stat().st_size < weights * 1.1 + 4096 * 8
    assert b"site-packages" not in (found.path / "model.onnx").read_bytes()


def _figures_hold(manifest):
    assert manifest["cache"] == "growing" and "onnxscript" in manifest["versions"]
    model, figures = manifest["model"], manifest["parity"]
    assert (model["layers"], model["hidden"], model["heads"], model["vocab"]) == (2, 32, 4, 400)
    assert model["positions"] == 64
    assert figures["greedy_tokens"] == 16
    assert max(figures["max_error"], figures["cached_max_error"]) <= figures["limit"]


def _keeps_the_last(found):
    """`logits_to_keep` is an input with a default: all positions without it, the last n with it."""
    session = Decoder(found, threads=1).session
    assert "logits_to_keep" not in {value.name for value in session.get_inputs()}
    feeds = {"input_ids": np.array([[5, 6, 7, 8]]), "attention_mask": np.ones((1, 4), np.int64)}
    feeds["position_ids"] = np.arange(4)[None]
    for value in session.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    whole = session.run(["logits"], feeds)[0]
    last = session.run(["logits"], {**feeds, "logits_to_keep": np.array(2)})[0]
    assert whole.shape == (1, 4, 400)
    np.testing.assert_allclose(last, whole[:, 2:], atol=1e-4)


def _rows_and_steps_agree(decoder):
    """Right-padded rows of a batch, prompt and steps, have the logits of their own whole blocks."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 400, n) for n in (3, 17, 1, 8)]
    more = rng.integers(0, 400, (4, 12))
    found = [decoder.prefill(rows)] + [decoder.step(column) for column in more.T]
    for row, prompt in enumerate(rows):
        whole = decoder.logits([[*prompt, *more[row]]])[0, len(prompt) - 1 :]
        np.testing.assert_allclose(np.stack(found)[:, row], whole, atol=1e-4)
    assert decoder.generate([5] * 50, max_new_tokens=14).finish_reason in ("length", "eos")


@pytest.mark.parametrize(
    ("family", "fields", "recipe"),
    [
        ("opt", OPT, "int8"),
        pytest.param("opt", OPT, "int4", marks=pytest.mark.slow),
        *(pytest.param(*pair, "int8", marks=pytest.mark.slow) for pair in SLOW.items()),
    ],
)
def test_a_traced_graph_is_quantized(artifact, family, fields, recipe):
    """Every matrix is in blocks, embedding and head one table where they are tied, and perplexity stays."""
    found, _ = artifact(family, fields, recipe)
    assert found.manifest["parity"]["perplexity_ratio"] == pytest.approx(
        1, abs=0.8 if recipe == "int4" else 0.05
    )
    shapes, operators = matrices(found.path)
    assert all(len(shape) == 3 for shape in shapes), shapes
    assert shapes[(400, 1, 32)] == (1 if fields.get("tie_word_embeddings", True) else 2)
    assert operators["Gemm"] == 0 and operators["MatMul"] == 2 * 2  # attention's own, which hold no weight
    assert len(Decoder(found, threads=1).generate([5, 6, 7], max_new_tokens=4).ids) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fp32", "int8"])
def test_a_traced_classifier(opt_checkpoint, tmp_path, traced_here, parity_here, recipe):
    """A classifier is traced, too: no cache, and each row read at its last real token."""
    path = shutil.copytree(opt_checkpoint, tmp_path / "checkpoint")
    weights = load_file(path / "model.safetensors")
    weights.pop("lm_head.weight", None)
    weights["score.weight"] = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config |= {"architectures": ["OPTForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}
    (path / "config.json").write_text(json.dumps(config))
    manifest = export(path, tmp_path / "out", recipe)
    assert manifest["kind"] == "classifier" and manifest["cache"] is None
    assert manifest["task"]["labels"] == ["a", "b"]
    assert manifest["parity"]["max_error"] < (1e-4 if recipe == "fp32" else 10)
    classifier = Classifier(tmp_path / "out", threads=1)
    rows = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7], [9]]
    alone = np.concatenate([classifier.logits([row]) for row in rows])
    np.testing.assert_allclose(classifier.logits(rows), alone, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model_type": "gemma22"}, "unknown architecture 'gemma22': did you mean gemma2"),
        ({"model_type": "t5"}, "unknown architecture 't5'"),
        ({"model_type": "x", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, "unknown architecture 'x'"),
        ({"num_hidden_layers": 1}, "beyond config.json's layers"),
        ({"num_hidden_layers": 3}, "tensor .* missing; config.json and the weights disagree"),
        ({"hidden_size": 64}, "transformers cannot load it"),
        ({"model_type": "bert"}, "config.json and the weights disagree"),
        ({"quantization_config": {"bits": 4}}, "checkpoint/config.json: the weights are quantized already"),
    ],
)
def test_what_is_not_traced(changed, tmp_path, traced_here, fields, expected):
    """An unknown type and weights that are not the config's are one line, and no folder remains."""
    with pytest.raises(UserError, match=expected) as caught:
        export(changed(**fields), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(("family", "fields"), [("mamba", {}), ("bert", {"intermediate_size": 32})])
def test_models_without_a_key_value_cache(make_checkpoint, tmp_path, traced_here, family, fields):
    """A model that keeps another state than keys and values, or none, is refused in one line."""
    with pytest.raises(UserError, match=f"{family} has no key-value cache in every layer"):
        export(make_checkpoint(family, **fields), tmp_path / "out")


@pytest.mark.slow
def test_a_mixture_of_experts_stays_in_float(make_checkpoint, tmp_path, traced_here, parity_here):
    """What no operator reads quantized is refused where the recipe quantizes, and exported as fp32."""
    path = make_checkpoint("mixtral", num_hidden_layers=1, num_local_experts=32, intermediate_size=64)
    with pytest.raises(
        UserError, match=r"int8: .* has no quantized form in a traced graph; export .* as fp32"
    ):
        export(path, tmp_path / "out", "int8")
    assert export(path, tmp_path / "out")["parity"]["greedy_tokens"] == 16


def test_the_child_process(changed, tmp_path, cli):
    """The tracing runs as a process of its own, whose one line is the command's: exit code 2."""
    done = cli("export", changed(model_type="gemma22"), "--out", tmp_path / "out")
    assert done.returncode == 2
    notice, line = done.stderr.splitlines()
    assert "exported by tracing (torch.onnx), slower and larger" in notice
    assert "did you mean gemma2" in line


@pytest.mark.slow
def test_the_command(opt_checkpoint, tmp_path, cli):
    """`toolchain export`, `generate` and `evaluate` take a traced model like any other."""
    done = cli("export", opt_checkpoint, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "slower and larger" in done.stderr and "decoder, fp32, 2 layers" in done.stdout
    done = cli("generate", tmp_path / "out", "The quick", "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr
