"""The cache of graphs whose present is a new, longer tensor, on a graph that can be computed by hand.

Its logits are those of three tokens' embeddings, each with its position's, summed: a sliding window.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from devices.artifact import seal
from devices.runtime import Decoder

VOCAB, WIDTH, POSITIONS, WINDOW = 50, 4, 40, 3
RNG = np.random.default_rng(0)
TABLES = {
    "embed": RNG.standard_normal((VOCAB, WIDTH)).astype(np.float32),
    "where": RNG.standard_normal((POSITIONS, WIDTH)).astype(np.float32),
    "head": RNG.standard_normal((WIDTH, VOCAB)).astype(np.float32),
}
INTS = {"zero": 0, "one": 1, "window": WINDOW, "axis1": [1], "axes01": [0, 1], "axes12": [1, 2]}
NODES = [
    ("Gather", "embed input_ids", "tokens", {}),
    ("Gather", "where position_ids", "places", {}),
    ("Add", "tokens places", "x", {}),
    ("Unsqueeze", "x axis1", "new", {}),
    ("Concat", "past_key_values.0.key new", "present.0.key", {"axis": 2}),
    ("Concat", "past_key_values.0.value new", "present.0.value", {"axis": 2}),
    ("Shape", "attention_mask", "mask_shape", {}),
    ("Gather", "mask_shape one", "total", {}),
    ("Shape", "input_ids", "ids_shape", {}),
    ("Gather", "ids_shape one", "length", {}),
    ("Sub", "total length", "first", {}),
    ("Range", "zero total one", "seen", {}),
    ("Range", "first total one", "seeing1", {}),
    ("Unsqueeze", "seeing1 axis1", "seeing", {}),
    ("Sub", "seeing seen", "distance", {}),
    ("GreaterOrEqual", "distance zero", "causal", {}),
    ("Less", "distance window", "near", {}),
    ("And", "causal near", "pattern", {}),
    ("Cast", "pattern", "pattern1", {"to": TensorProto.FLOAT}),
    ("Unsqueeze", "pattern1 axes01", "pattern4", {}),
    ("Cast", "attention_mask", "mask1", {"to": TensorProto.FLOAT}),
    ("Unsqueeze", "mask1 axes12", "mask4", {}),
    ("Mul", "pattern4 mask4", "weights", {}),
    ("MatMul", "weights present.0.value", "mixed4", {}),
    ("Squeeze", "mixed4 axis1", "mixed", {}),
    ("MatMul", "mixed head", "logits", {}),
]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A decoder on that graph, its manifest saying that the cache grows."""
    folder = tmp_path_factory.mktemp("growing")
    value = helper.make_tensor_value_info
    ids = {"input_ids": "sequence", "attention_mask": "total", "position_ids": "sequence"}
    inputs = [value(name, TensorProto.INT64, ["batch", length]) for name, length in ids.items()]
    outputs = [value("logits", TensorProto.FLOAT, ["batch", "sequence", VOCAB])]
    for side in ("key", "value"):
        shape = ["batch", 1, "past", WIDTH]
        inputs.append(value(f"past_key_values.0.{side}", TensorProto.FLOAT, shape))
        outputs.append(value(f"present.0.{side}", TensorProto.FLOAT, ["batch", 1, "all", WIDTH]))
    nodes = [helper.make_node(kind, i.split(), [o], **more) for kind, i, o, more in NODES]
    constants = {**TABLES, **{name: np.array(number, np.int64) for name, number in INTS.items()}}
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "windowed", inputs, outputs, initializers)
    opset = [helper.make_opsetid("", 17)]
    onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "model.onnx")
    counts = {"layers": 1, "hidden": WIDTH, "heads": 1, "kv_heads": 1, "head_dim": WIDTH}
    model = {**counts, "vocab": VOCAB, "positions": POSITIONS}
    seal(
        folder,
        {"kind": "decoder", "name": "t", "model": model, "recipe": {"name": "fp32"}, "cache": "growing"},
    )
    return Decoder(folder, threads=1)


def by_hand(row):
    """Logits [length, vocab] of one row of ids."""
    x = TABLES["embed"][row] + TABLES["where"][: len(row)]
    return np.stack([x[max(0, i - WINDOW + 1) : i + 1].sum(0) for i in range(len(row))]) @ TABLES["head"]


def test_rows_of_any_length_see_what_they_would_alone(decoder):
    """Prompts of several lengths and their steps: each row's window holds its own last tokens, no padding."""
    rows = [list(RNG.integers(0, VOCAB, n)) for n in (2, 9, 1, 5)]
    more = RNG.integers(0, VOCAB, (4, 6))
    found = [decoder.prefill(rows)] + [decoder.step(column) for column in more.T]
    for row, prompt in enumerate(rows):
        expected = by_hand([*prompt, *more[row]])[len(prompt) - 1 :]
        np.testing.assert_allclose(np.stack(found)[:, row], expected, atol=1e-5)


def test_a_prompt_starts_anew_and_scoring_changes_nothing(decoder):
    """Nothing of an earlier prompt is left, also in a cache of the same rows; logits have no past."""
    decoder.prefill([[1, 2, 3, 4]])
    decoder.step([5])
    np.testing.assert_allclose(decoder.prefill([[7, 8]])[0], by_hand([7, 8])[-1], atol=1e-5)
    np.testing.assert_allclose(decoder.logits([[3, 1, 4, 1, 5]])[0], by_hand([3, 1, 4, 1, 5]), atol=1e-5)
    np.testing.assert_allclose(decoder.step([9])[0], by_hand([7, 8, 9])[-1], atol=1e-5)


def test_greedy_generation(decoder):
    """Generated tokens are the best of what the whole text scores, up to the last position."""
    found = decoder.generate([3, 4, 5], max_new_tokens=POSITIONS - 3).ids
    whole = by_hand([3, 4, 5, *found])
    assert found == whole[2:-1].argmax(-1).tolist() and len(found) == POSITIONS - 3


@pytest.mark.parametrize("length", [0, 1, 3, 5])
def test_what_was_rewound_was_never_fed(decoder, length):
    """After a rewind, to the very start too, several tokens and single ones follow what was kept, nothing else."""
    row, more = [3, 1, 4, 1, 5], [9, 2, 6]
    decoder.prefill([row])
    decoder.rewind(length)
    found = [*decoder.extend(more), *decoder.step([7])]
    np.testing.assert_allclose(found, by_hand([*row[:length], *more, 7])[length:], atol=1e-5)


@pytest.mark.parametrize("length", [0, 1, 2, 4, 8])
def test_rows_of_a_batch_are_rewound_together(decoder, length):
    """Each row keeps its first positions, as many as it has; a step then is what it would be alone."""
    rows = [list(RNG.integers(0, VOCAB, n)) for n in (2, 9, 1, 5)]
    decoder.prefill(rows)
    decoder.step([1, 2, 3, 4])
    decoder.rewind(length)
    found = np.stack([decoder.step([5, 6, 7, 8]), decoder.step([9, 10, 11, 12])])
    for row, prompt in enumerate(rows):
        kept = [*prompt, row + 1][:length]
        expected = by_hand([*kept, row + 5, row + 9])[len(kept) :]
        np.testing.assert_allclose(found[:, row], expected, atol=1e-5)


@pytest.mark.parametrize("row", [0, 1, 3])
def test_a_dropped_row_leaves_the_others_alone(decoder, row):
    """The last row takes its place with all it had seen, also where the longest is the one that goes."""
    rows = [list(RNG.integers(0, VOCAB, n)) for n in (2, 9, 1, 5)]
    decoder.prefill(rows)
    decoder.step([1, 2, 3, 4])
    decoder.drop(row)
    left = [[*prompt, at + 1] for at, prompt in enumerate(rows)]
    left[row] = left[-1]
    left.pop()
    found = np.stack([decoder.step([5, 6, 7]), decoder.step([8, 9, 10])])
    for at, seen in enumerate(left):
        np.testing.assert_allclose(found[:, at], by_hand([*seen, at + 5, at + 8])[-2:], atol=1e-5)
