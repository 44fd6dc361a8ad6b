import tracemalloc

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from devices.runtime import Decoder
from devices.session import saturates
from export.architecture import check
from export.builder import LARGE, PAGE, Builder, typed, value
from export.checkpoint import Checkpoint, open_checkpoint
from export.graph import write_graph
from export.quantize import quantize_columns
from export.recipes import RECIPES
from export.weights import Source, _row_product

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "gpt2": ("gpt2", {}),
    "gpt2, untied, exact gelu, odd width": (
        "gpt2",
        {"n_embd": 40, "n_head": 5, "tie_word_embeddings": False, "activation_function": "gelu"},
    ),
    "gpt2, scaled by layer": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"},
    ),
    "llama, heads of 8": ("llama", {}),
    "llama, heads of 16, untied": ("llama", {"head_dim": 16, "tie_word_embeddings": False}),
    "llama, every bias": ("llama", {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "llama, scaled positions": ("llama", {"head_dim": 16, "rope_parameters": LLAMA3}),
    "llama, bfloat16": ("llama", {"head_dim": 16, "dtype": "bfloat16"}),
    "mistral, window": ("mistral", {"head_dim": 16, "sliding_window": 5}),
    "qwen2": ("qwen2", {"hidden_size": 64}),
    "qwen2, window from layer 2": (
        "qwen2",
        {"hidden_size": 64, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, heads of 24": ("qwen3", {"head_dim": 24}),
}
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 400, (3, 24))


def cached(decoder: Decoder, ids: np.ndarray, prompt: int) -> np.ndarray:
    """Logits from position `prompt` - 1 on: a prompt, then one id at a time."""
    found = [decoder.prefill(ids[:, :prompt]), *(decoder.step(column) for column in ids[:, prompt:].T)]
    return np.stack(found, 1)


@pytest.mark.parametrize("case", MODELS)
def test_every_family_computes_what_pytorch_does(make_checkpoint, write_artifact, torch_logits, case):
    """Logits of a float graph, at once and step by step, are as close to float64 as PyTorch's float32 is."""
    family, overrides = MODELS[case]
    path = make_checkpoint(family, **overrides)
    double, single = torch_logits(path, IDS)
    decoder = Decoder(write_artifact(path), threads=1)
    limit = max(2 * np.abs(single - double).max(), 1e-4)
    assert double.std() > 0.3  # or nothing would show
    assert np.abs(decoder.logits(IDS) - double).max() <= limit
    assert np.abs(cached(decoder, IDS, 7) - double[:, 6:]).max() <= limit


@pytest.mark.parametrize("recipe", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_padding_on_the_right_changes_nothing(request, write_artifact, family, recipe):
    """A short row beside a long one gives the logits it gives alone, in the prompt and in later steps."""
    decoder = Decoder(write_artifact(request.getfixturevalue(f"{family}_checkpoint"), recipe), threads=1)
    rows = [IDS[0, :9], IDS[1, :4]]
    together = [decoder.prefill(rows), decoder.step(IDS[:2, 20])]
    for i, row in enumerate(rows):
        alone = [decoder.prefill([row]), decoder.step(IDS[i : i + 1, 20])]
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(a[0], b[i], atol=2e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_growing_past_gives_what_one_buffer_gives(request, write_artifact, family):
    """Past and present as separate, growing tensors, as other tools feed them, are accepted and agree."""
    decoder = Decoder(write_artifact(request.getfixturevalue(f"{family}_checkpoint")), threads=1)
    model, session = decoder.artifact.model, decoder.session
    names = [v.name for v in session.get_inputs() if v.name.startswith("past")]
    past = {n: np.zeros((3, model["kv_heads"], 0, model["head_dim"]), np.float32) for n in names}
    found, start = [], 0
    for end in (7, *range(8, 25)):
        feeds = {
            "input_ids": IDS[:, start:end],
            "attention_mask": np.ones((3, end), np.int64),
            "position_ids": np.tile(np.arange(start, end), (3, 1)),
            **past,
        }
        given = {v.name for v in session.get_inputs()}
        logits, *presents = session.run(None, {n: a for n, a in feeds.items() if n in given})
        past, start = dict(zip(names, presents, strict=True)), end
        assert presents[0].shape[2] == end
        found.append(logits[:, -1])
    np.testing.assert_allclose(np.stack(found, 1), cached(decoder, IDS, 7), atol=1e-5)


def test_logits_to_keep_has_a_default(gpt2_checkpoint, write_artifact):
    """Who does not feed logits_to_keep gets all positions; n gives the last n."""
    session = Decoder(write_artifact(gpt2_checkpoint), threads=1).session
    assert [v.name for v in session.get_overridable_initializers()] == ["logits_to_keep"]
    feeds = {
        "input_ids": IDS,
        "attention_mask": np.ones_like(IDS),
        "position_ids": np.tile(np.arange(24), (3, 1)),
        **{
            v.name: np.zeros((3, v.shape[1], 0, v.shape[3]), np.float32)
            for v in session.get_inputs()
            if v.name.startswith("past")
        },
    }
    whole = session.run(["logits"], feeds)[0]
    last = session.run(["logits"], {**feeds, "logits_to_keep": np.array(2)})[0]
    assert whole.shape == (3, 24, 400) and last.shape == (3, 2, 400)
    np.testing.assert_allclose(last, whole[:, -2:], atol=1e-5)


def optimized(folder, tmp_path):
    """The graph as ONNX Runtime runs it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return onnx.load(str(tmp_path / "optimized.onnx"), load_external_data=False).graph


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_tied_vocabulary_is_stored_once(request, write_artifact, family, recipe):
    """Embedding and head read the same bytes of the data file; nothing else is as large."""
    folder = write_artifact(request.getfixturevalue(f"{family}_checkpoint"), recipe).path
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    large = [t for t in graph.initializer if t.dims and t.dims[0] == 400 and np.prod(t.dims) >= 400 * 16]
    places = {tuple(sorted((e.key, e.value) for e in t.external_data)) for t in large}
    assert len(large) == 2 and len(places) == 1
    users = {n.op_type for n in graph.node for t in large if t.name in n.input}
    assert users in ({"Gather", "FusedMatMul"}, {"GatherBlockQuantized", "MatMulNBits"})


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_padding_on_the_left_changes_nothing(make_checkpoint, write_artifact, family):
    """As transformers pads a batch: a short row's logits stand in its places, and its cache goes on alike."""
    decoder = Decoder(write_artifact(make_checkpoint(family)), threads=1)
    session, longest = decoder.session, 9
    rows = [IDS[0, :longest], IDS[1, :4]]
    ids = np.stack([np.pad(row, (longest - len(row), 0)) for row in rows])
    mask = np.stack([np.arange(longest) >= longest - len(row) for row in rows]).astype(np.int64)
    names = {value.name for value in session.get_inputs()}
    past = {
        v.name: np.zeros((2, v.shape[1], 0, v.shape[3]), np.float32)
        for v in session.get_inputs()
        if v.name.startswith("past")
    }
    outputs = [value.name for value in session.get_outputs()]

    def run(ids, mask, past):
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
        found = dict(
            zip(
                outputs,
                session.run(None, {k: v for k, v in feeds.items() if k in names | {*past}}),
                strict=True,
            )
        )
        return found.pop("logits"), {k.replace("present", "past_key_values"): v for k, v in found.items()}

    prompt, past = run(ids, mask, past)
    step, _ = run(IDS[:2, 20:21], np.pad(mask, ((0, 0), (0, 1)), constant_values=1), past)
    for i, row in enumerate(rows):
        whole = decoder.logits([[*row, IDS[i, 20]]])[0]
        np.testing.assert_allclose(prompt[i, longest - len(row) :], whole[:-1], atol=2e-4)
        np.testing.assert_allclose(step[i, -1], whole[-1], atol=2e-4)


def slow_rows(x, weight, top):
    """`x` [rows, in] times `weight` [out, in] by int8 rows, in integers and float64."""
    scale_x, scale_w = np.abs(x).max(1) / 127, np.abs(weight).max(1) / top
    levels_x = np.rint(x / scale_x[:, None]).astype(np.int64)
    levels_w = np.rint(weight / scale_w[:, None]).astype(np.int64)
    return (levels_x @ levels_w.T) * scale_x[:, None] * scale_w


@pytest.mark.parametrize("top", [63, 127])
def test_int8_by_rows_is_integer_arithmetic(tmp_path, top):
    """The row-wise product equals exact integers times two scales, at any processor if weights have 7 bits;
    a row of zeros gives the bias, and no row depends on another."""
    if top == 127 and saturates():
        pytest.skip("without VNNI 8-bit weights saturate, which is why there are 7-bit ones")
    weight = RNG.uniform(-1, 1, (48, 64)).astype(np.float32)
    bias = RNG.normal(size=48).astype(np.float32)
    x = RNG.uniform(-3, 3, (5, 64)).astype(np.float32)
    x[2] *= 100
    x[3] = 0
    with (tmp_path / "model.onnx.data").open("wb") as stream:
        builder = Builder(tmp_path, stream)
        source = Source(None, None, RECIPES["int8-vnni"], builder)
        given = value("x", ir.DataType.FLOAT, ["rows", 64])
        made = _row_product(source, "y", given, quantize_columns(weight, top), builder.tensor("bias", bias))
        builder.save([given], [typed(made, ["rows", 48])], "product", "test")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x})[0]
    real = [0, 1, 2, 4]
    np.testing.assert_allclose(
        found[real], slow_rows(x[real].astype(np.float64), weight, top) + bias, rtol=2e-3, atol=2e-3
    )
    np.testing.assert_array_equal(found[3], bias)
    np.testing.assert_array_equal(found[:1], session.run(None, {"x": x[:1]})[0])


@pytest.mark.parametrize("recipe", ["int8", "int4"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_nothing_large_stays_float(make_checkpoint, write_artifact, tmp_path, family, recipe):
    """The graph that runs a quantized recipe multiplies by quantized weights only and expands none."""
    path = make_checkpoint(family, tie_word_embeddings=False)
    graph = optimized(write_artifact(path, recipe).path, tmp_path)
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"MatMul", "Gemm", "FusedMatMul", "DequantizeLinear"}
    floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    weights = [t.name for t in floats if np.prod(t.dims) >= 32 * 32 and "scales" not in t.name]
    assert [name for name in weights if not name.startswith("rotary.")] == []


def test_large_tensors_can_be_mapped(make_checkpoint, write_artifact):
    """Tensors of 64 KiB and more start on a page of the data file, which holds little but weights."""
    folder = write_artifact(make_checkpoint("gpt2", n_embd=128)).path
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    places = [{e.key: e.value for e in t.external_data} for t in graph.initializer if t.external_data]
    assert any(int(p["length"]) >= LARGE for p in places)
    assert all(int(p["offset"]) % PAGE == 0 for p in places if int(p["length"]) >= LARGE)
    assert all(p["location"] == "model.onnx.data" for p in places)
    used = sum(length for _, length in {(int(p["offset"]), int(p["length"])) for p in places})
    assert used <= (folder / "model.onnx.data").stat().st_size < 1.05 * used


@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_are_streamed(make_checkpoint, tmp_path, recipe, monkeypatch):
    """Writing a graph needs the memory of a few matrices, not of the model, and reads each tensor once."""
    opened = open_checkpoint(make_checkpoint("gpt2", n_embd=128, n_layer=8))
    arch, reads, read = check(opened), [], Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", lambda self, name: reads.append(name) or read(self, name))
    tracemalloc.start()
    write_graph(opened, arch, RECIPES[recipe], tmp_path, "test")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    total = sum(info.size for info in opened.tensors.values())
    assert peak < total / 2
    assert len(reads) == len(set(reads))
