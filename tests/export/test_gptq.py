import numpy as np
import pytest
from scipy.linalg import cholesky

from export.gptq import DAMPING, gptq
from export.quantize import quantize

RNG = np.random.default_rng(0)


def unpack(found, size):
    """The matrix [out, size] that a quantized one stands for, in float64."""
    nibbles = (
        found.packed if found.bits == 8 else np.stack([found.packed & 15, found.packed >> 4], -1)
    ).reshape(*found.scales.shape, found.block)
    zeros = np.full(found.scales.shape, 1 << (found.bits - 1))
    if found.zeros is not None:
        packed = found.zeros
        zeros = packed if found.bits == 8 else np.stack([packed & 15, packed >> 4], -1)
        zeros = zeros.reshape(len(packed), -1)[:, : found.scales.shape[1]]
    values = (nibbles.astype(np.float64) - zeros[..., None]) * found.scales[..., None]
    return values.reshape(len(values), -1)[:, :size]


def slow(weight, moment, bits, block, symmetric):
    """GPTQ as the paper writes it, in float64: one row, one column at a time, the inverse made outright."""
    out, size = weight.shape
    damped = moment + DAMPING * np.diag(moment).mean() * np.eye(size)
    root = cholesky(np.linalg.inv(damped))
    found = np.zeros((out, size))
    for r in range(out):
        row = weight[r].astype(np.float64)
        for j in range(size):
            if j % block == 0:
                part = row[j : j + block]
                if symmetric:
                    scale, zero = np.abs(part).max() / (2 ** (bits - 1) - 1), 2 ** (bits - 1)
                else:
                    low, high = min(part.min(), 0), max(part.max(), 0)
                    scale = (high - low) / (2**bits - 1)
                    zero = round(-low / scale)
            found[r, j] = (np.clip(round(row[j] / scale) + zero, 0, 2**bits - 1) - zero) * scale
            row[j:] -= (row[j] - found[r, j]) / root[j, j] * root[j, j:]
    return found


def correlated(tokens, size):
    """Inputs [tokens, size] whose channels depend on each other, as a model's do."""
    return RNG.normal(size=(tokens, size)) @ RNG.normal(size=(size, size)) * RNG.uniform(0.1, 2, size)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "size", "block"), [(4, 64, 16), (4, 96, 32), (8, 64, 32)])
def test_against_the_paper(bits, size, block, symmetric):
    """The same weights as a slow float64 reference, but for ties, and what a tie changes after it."""
    weight = RNG.normal(size=(40, size)).astype(np.float32)
    x = correlated(300, size)
    found = gptq(weight, x.T @ x, bits, block, symmetric=symmetric)
    assert (found.bits, found.block, found.zeros is None) == (bits, block, symmetric)
    expected = slow(weight, x.T @ x, bits, block, symmetric)
    rows = np.isclose(unpack(found, size), expected, atol=1e-4).all(1)
    assert rows.mean() > 0.9


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("size", [192, 40])
def test_outputs_are_nearer_than_with_rounding_to_nearest(size, search):
    """What the matrix gives for inputs like those it was made for is nearer to the truth; padding is no harm."""
    weight, x = RNG.normal(size=(64, size)).astype(np.float32), correlated(1000, size)
    plain = quantize(weight, 4, 32, symmetric=False, search=search)
    found = gptq(weight, x.T @ x, 4, 32, symmetric=False, search=search)
    assert found.packed.shape == plain.packed.shape and found.zeros.shape == plain.zeros.shape
    errors = [((x @ (unpack(f, size) - weight).T) ** 2).sum() for f in (plain, found)]
    assert errors[1] < 0.8 * errors[0]


def test_independent_inputs_leave_rounding_to_nearest():
    """Where no input tells about another there is nothing to make up for: the result is quantize's own."""
    weight = RNG.normal(size=(8, 64)).astype(np.float32)
    found, plain = gptq(weight, np.eye(64), 4, 32, symmetric=False), quantize(weight, 4, 32, symmetric=False)
    np.testing.assert_array_equal(found.packed, plain.packed)
    np.testing.assert_array_equal(found.scales, plain.scales)


def test_inputs_that_are_never_used():
    """Channels that were always 0, and a text that gave nothing at all, are no division by zero."""
    weight, x = RNG.normal(size=(8, 64)).astype(np.float32), correlated(100, 64)
    x[:, 5:9] = 0
    for moment in (x.T @ x, np.zeros((64, 64))):
        values = unpack(gptq(weight, moment, 4, 32, symmetric=False), 64)
        assert np.isfinite(values).all() and np.abs(values[:, 5:9] - weight[:, 5:9]).max() < 0.5


def test_many_rows_are_the_same_as_few(monkeypatch):
    """Working in groups of rows changes nothing."""
    weight, x = RNG.normal(size=(50, 64)).astype(np.float32), correlated(200, 64)
    whole = gptq(weight, x.T @ x, 4, 32, symmetric=True, search=True)
    monkeypatch.setattr("export.gptq.ROWS_AT_ONCE", 7 * 64)
    part = gptq(weight, x.T @ x, 4, 32, symmetric=True, search=True)
    np.testing.assert_array_equal(whole.packed, part.packed)
