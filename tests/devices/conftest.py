"""Artifacts written by hand: a one-layer GroupQueryAttention decoder and a last-token classifier.

They stand on their own so that the runtime is tested against the contract, not against the exporter.
"""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from devices.artifact import seal

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, POSITIONS = 32, 4, 2, 8, 48
TEXTS = [
    "the cat sat on the mat",
    "ünïcödé is hard, 日本語も",
    "emoji 🙂🙃 too",
    "a class, a function, a module",
]


def tiny_tokenizer():
    """A byte-level BPE of at most 300 entries with an end token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _weights(rng, vocab):
    def draw(*shape):
        return (rng.standard_normal(shape) * 0.5).astype(np.float32)

    width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    return {
        "embed": draw(vocab, HIDDEN),
        "where": draw(POSITIONS, HIDDEN),
        "qkv": draw(HIDDEN, width),
        "out": draw(HEADS * HEAD_DIM, HIDDEN),
    }


def _constants():
    ints = {"axis1": [1], "one": [1], "zero": [0], "end": [np.iinfo(np.int64).max]}
    found = [numpy_helper.from_array(np.array(value, dtype=np.int64), name) for name, value in ints.items()]
    return [*found, numpy_helper.from_array(np.array(1, dtype=np.int64), "index1")]


def _decoder_nodes():
    node = helper.make_node
    gqa = node(
        "GroupQueryAttention",
        ["packed", "", "", "past_key_values.0.key", "past_key_values.0.value", "seqlens", "total"],
        ["attended", "present.0.key", "present.0.value"],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
    )
    return [
        node("Gather", ["embed", "input_ids"], ["tokens"]),
        node("Gather", ["where", "position_ids"], ["places"]),
        node("Add", ["tokens", "places"], ["hidden"]),
        node("MatMul", ["hidden", "qkv"], ["packed"]),
        node("ReduceSum", ["attention_mask", "axis1"], ["sums"], keepdims=0),
        node("Sub", ["sums", "one"], ["last"]),
        node("Cast", ["last"], ["seqlens"], to=TensorProto.INT32),
        node("Shape", ["attention_mask"], ["mask_shape"]),
        node("Gather", ["mask_shape", "index1"], ["width"]),
        node("Cast", ["width"], ["total"], to=TensorProto.INT32),
        gqa,
        node("MatMul", ["attended", "out"], ["mixed"]),
        node("Add", ["hidden", "mixed"], ["state"]),
        node("Neg", ["logits_to_keep"], ["start0"]),
        node("Reshape", ["start0", "one"], ["start"]),
        node("Slice", ["state", "start", "end", "axis1"], ["kept"]),
        node("Transpose", ["embed"], ["head"], perm=[1, 0]),
        node("MatMul", ["kept", "head"], ["logits"]),
    ]


def _value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def _decoder_graph(vocab, seed):
    cache = ["batch", KV_HEADS, "past", HEAD_DIM]
    grown = ["batch", KV_HEADS, "total", HEAD_DIM]
    inputs = [
        _value("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        _value("attention_mask", TensorProto.INT64, ["batch", "total"]),
        _value("position_ids", TensorProto.INT64, ["batch", "sequence"]),
        *(_value(f"past_key_values.0.{side}", TensorProto.FLOAT, cache) for side in ("key", "value")),
        _value("logits_to_keep", TensorProto.INT64, []),
    ]
    outputs = [
        _value("logits", TensorProto.FLOAT, ["batch", "kept", vocab]),
        *(_value(f"present.0.{side}", TensorProto.FLOAT, grown) for side in ("key", "value")),
    ]
    weights = _weights(np.random.default_rng(seed), vocab)
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    initializers += [*_constants(), numpy_helper.from_array(np.array(0, dtype=np.int64), "logits_to_keep")]
    return helper.make_graph(_decoder_nodes(), "tiny", inputs, outputs, initializers)


def _classifier_graph(vocab, labels, seed):
    """Embeds, sums each row's prefix by its mask, and reads the state of the last real token."""
    rng = np.random.default_rng(seed)
    node = helper.make_node
    nodes = [
        node("Gather", ["embed", "input_ids"], ["tokens"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "axis2"], ["mask3"]),
        node("Mul", ["tokens", "mask3"], ["real"]),
        node("ReduceSum", ["real", "axis1"], ["summed"], keepdims=0),
        node("MatMul", ["summed", "score"], ["logits"]),
    ]
    initializers = [
        numpy_helper.from_array(rng.standard_normal((vocab, 8)).astype(np.float32), "embed"),
        numpy_helper.from_array(rng.standard_normal((8, labels)).astype(np.float32), "score"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "axis1"),
        numpy_helper.from_array(np.array([2], dtype=np.int64), "axis2"),
    ]
    inputs = [_value(n, TensorProto.INT64, ["batch", "sequence"]) for n in ("input_ids", "attention_mask")]
    outputs = [_value("logits", TensorProto.FLOAT, ["batch", labels])]
    return helper.make_graph(nodes, "tiny", inputs, outputs, initializers)


def _save(folder, graph):
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    onnx.save_model(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=64,
    )


def _manifest(kind, vocab, task=None):
    counts = {"layers": 1, "hidden": HIDDEN, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
    return {
        "kind": kind,
        "name": f"tiny-{kind}",
        "model": {"model_type": "gpt2", **counts, "vocab": vocab, "positions": POSITIONS, "parameters": 1},
        "recipe": {"name": "fp32"},
        "lineage": {"checkpoint": {"name": "tiny", "sha256": "0" * 64}},
        "parity": None,
        "task": task,
    }


def write_artifact(folder, kind="decoder", seed=0, task=None):
    """A sealed artifact of either kind in `folder`."""
    folder.mkdir(parents=True)
    tokenizer = tiny_tokenizer()
    vocab = tokenizer.get_vocab_size()
    graph = _decoder_graph(vocab, seed) if kind == "decoder" else _classifier_graph(vocab, 2, seed)
    _save(folder, graph)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "eos_token_id": 0, "bos_token_id": 0})
    )
    seal(folder, _manifest(kind, vocab, task))
    return folder


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory):
    """A decoder artifact that no test changes."""
    return write_artifact(tmp_path_factory.mktemp("decoder") / "tiny")


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory):
    """A classifier artifact that no test changes."""
    task = {
        "name": "t",
        "columns": ["a", "b"],
        "labels": ["x", "y"],
        "metric": "accuracy",
        "problem": "single",
    }
    return write_artifact(tmp_path_factory.mktemp("classifier") / "tiny", "classifier", task=task)


@pytest.fixture
def own_artifact(tmp_path):
    """A decoder artifact to break."""
    return write_artifact(tmp_path / "tiny")
