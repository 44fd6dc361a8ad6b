import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.quantize import fit_block, quantize

RNG = np.random.default_rng(0)


def slow(weight, bits, block, symmetric):
    """Levels, scales and zero points, one block after the other in plain Python floats."""
    out, size = weight.shape
    found = []
    for row in weight:
        for start in range(0, size, block):
            part = [float(w) for w in row[start : start + block]] + [0.0] * max(0, start + block - size)
            if symmetric:
                scale, zero = max(abs(w) for w in part) / (2 ** (bits - 1) - 1), 2 ** (bits - 1)
            else:
                scale = (max(*part, 0.0) - min(*part, 0.0)) / (2**bits - 1)
                zero = min(max(round(-min(*part, 0.0) / (scale or 1)), 0), 2**bits - 1)
            levels = [min(max(round(w / (scale or 1)) + zero, 0), 2**bits - 1) for w in part]
            found.append([(level - zero) * scale for level in levels])
    return np.array(found).reshape(out, -1)[:, :size]


def unpack(packed, bits):
    """Levels of packed bytes."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def dequantize(found, size):
    """The matrix [out, size] that a quantized one stands for, by the format's formula."""
    levels, zeros = unpack(found.packed, found.bits).astype(np.float32), np.float32(1 << (found.bits - 1))
    if found.zeros is not None:
        zeros = unpack(found.zeros, found.bits)[:, : found.scales.shape[1], None].astype(np.float32)
    values = (levels - zeros) * found.scales[..., None]
    return values.reshape(len(values), -1)[:, :size]


def product(x, found, size):
    """x [rows, size] times the matrix, by ONNX Runtime's operator in float arithmetic."""
    arrays = {"w": found.packed, "s": found.scales, **({} if found.zeros is None else {"z": found.zeros})}
    node = helper.make_node(
        "MatMulNBits",
        ["x", *arrays],
        ["y"],
        domain="com.microsoft",
        K=size,
        N=len(found.packed),
        bits=found.bits,
        block_size=found.block,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_a_block_by_hand():
    """Sixteen weights from -7 to 8 in four bits: scale 1, zero point 7, levels 0 to 15, low half first."""
    found = quantize(np.arange(-7, 9, dtype=np.float32)[None], 4, 16, symmetric=False)
    assert found.scales.tolist() == [[1.0]]
    assert found.zeros is not None and found.zeros.tolist() == [[7]]
    assert found.packed[0, 0].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]


def test_a_symmetric_block_by_hand():
    """Eight bits, largest magnitude 12.7: scale 0.1, the middle is 128."""
    weight = np.zeros((1, 16), np.float32)
    weight[0, :3] = [-12.7, 0.04, 5.0]
    found = quantize(weight, 8, 16, symmetric=True)
    assert found.packed[0, 0, :4].tolist() == [1, 128, 178, 128]
    assert found.scales[0, 0] == pytest.approx(0.1) and found.zeros is None


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("size", "block"), [(32, 16), (48, 32), (40, 16), (192, 64)])
def test_against_a_slow_reference_and_the_operator(bits, symmetric, size, block):
    """Levels are those of a plain loop, and the operator multiplies by what `dequantize` says."""
    weight = (RNG.normal(size=(7, size)) * RNG.uniform(0.1, 3, (7, 1))).astype(np.float32)
    found = quantize(weight, bits, block, symmetric=symmetric)
    values = dequantize(found, size)
    # A tie may round either way where the loop's doubles and our floats differ: a level at most, and rarely.
    expected = slow(weight, bits, block, symmetric)
    close = np.isclose(values, expected, atol=1e-5)
    assert close.mean() > 0.99
    assert np.abs(values - weight).max() <= found.scales.max() * 0.51 * (1 if symmetric else 2)
    x = RNG.normal(size=(3, size)).astype(np.float32)
    np.testing.assert_allclose(product(x, found, size), x @ values.T, atol=2e-4)


def test_zeros_and_one_sided_blocks():
    """A block of zeros stays zeros, and one that is all positive uses its range, without a division by zero."""
    weight = np.zeros((2, 32), np.float32)
    weight[1] = np.linspace(1, 2, 32)
    for symmetric in (True, False):
        values = dequantize(quantize(weight, 4, 32, symmetric=symmetric, search=True), 32)
        assert (values[0] == 0).all() and np.abs(values[1] - weight[1]).max() < 0.16


@pytest.mark.parametrize("symmetric", [True, False])
def test_search_is_never_worse(symmetric):
    """Searching leaves at most the squared error of plain rounding in every block, and less in sum."""
    weight = RNG.standard_t(3, (64, 96)).astype(np.float32)
    errors = []
    for search in (False, True):
        values = dequantize(quantize(weight, 4, 32, symmetric=symmetric, search=search), 96)
        errors.append(((values - weight).astype(np.float64) ** 2).reshape(64, 3, 32).sum(-1))
    assert (errors[1] <= errors[0] * 1.0001).all()
    assert errors[1].sum() < 0.97 * errors[0].sum()


def test_many_rows_are_the_same_as_few():
    """Working in groups of rows changes nothing."""
    weight = RNG.normal(size=(3000, 256)).astype(np.float32)
    whole = quantize(weight, 4, 32, symmetric=False, search=True)
    part = quantize(weight[2500:2510], 4, 32, symmetric=False, search=True)
    np.testing.assert_array_equal(whole.packed[2500:2510], part.packed)
    assert whole.zeros is not None and part.zeros is not None
    np.testing.assert_array_equal(whole.zeros[2500:2510], part.zeros)


@pytest.mark.parametrize(
    ("size", "largest", "block"),
    [
        (768, 128, 128),
        (576, 128, 64),
        (192, 128, 64),
        (192, 32, 32),
        (48, 128, 16),
        (40, 128, 32),
        (1536, 64, 64),
    ],
)
def test_blocks_that_suit_a_size(size, largest, block):
    """The largest power of two that divides the size and is allowed; padding only where even 16 does not."""
    assert fit_block(size, largest) == block
