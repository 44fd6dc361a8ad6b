"""Block quantization of weight matrices, in the layouts that ONNX Runtime's MatMulNBits reads.

A weight matrix [out, in] is cut along `in` into blocks that share a scale (and a zero point):
weight = (quantized - zero_point) * scale, with quantized and zero_point unsigned integers of 4 or 8 bits
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SMALLEST_BLOCK = 16  # the operator's limit
ROWS_AT_ONCE = 1 << 18  # weights worked on together: what fits a cache, and bounds the temporaries
# Fractions of a block's range that are tried as the range to represent: cutting off an outlier can leave less
# error in the others than it adds. 1.0 first, so that ties keep the plain range.
RANGES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.74, 0.68)


@dataclass(frozen=True)
class Quantized:
    """A matrix [out, in] in blocks.

    `packed` uint8 [out, blocks, block * bits / 8], low half first; `scales` float32 [out, blocks];
    `zeros` uint8 [out, ceil(blocks * bits / 8)] packed alike, or None where every zero point is the middle.
    """

    packed: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None
    bits: int
    block: int


def fit_block(size: int, largest: int) -> int:
    """The largest power of two up to `largest` that divides `size`; where even 16 does not, 32, padded."""
    block = largest
    while block >= SMALLEST_BLOCK:
        if size % block == 0:
            return block
        block //= 2
    return min(32, largest)


def quantize(
    weight: np.ndarray, bits: int, block: int, *, symmetric: bool, search: bool = False
) -> Quantized:
    """Quantize float32 `weight` [out, in]; rows are padded with zeros to whole blocks.

    Symmetric: the zero point is the middle and the scale maps the largest magnitude to the last level.
    Otherwise the range from min(block, 0) to max(block, 0) is spread over all levels. `search` tries
    RANGES and refits each scale by least squares, as k-quants do, and keeps what has the least squared error.
    """
    parts = [fit_levels(rows, bits, symmetric, search) for rows in _blocks(weight, block)]
    levels, scales, zeros = (np.concatenate(part) for part in zip(*parts, strict=True))
    packed_zeros = None if symmetric else pack(zeros, bits)
    return Quantized(pack(levels, bits), scales, packed_zeros, bits, block)


def quantize_columns(weight: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Float32 `weight` [out, in] for an int8 GEMM: int8 [in, out] of -top..top and float32 scales [out].

    With `top` 63 the sum of two products of an unsigned 8-bit activation and a weight fits 16 bits
    (2 * 255 * 63 < 2**15), in which processors without VNNI add them, saturating without a word.
    """
    scales = np.abs(weight).max(1) / np.float32(top)
    levels = np.empty(weight.shape[::-1], np.int8)
    step = max(1, ROWS_AT_ONCE // max(1, weight.shape[1]))
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        levels[:, rows] = np.rint(weight[rows] / _divisor(scales[rows])[:, None]).T.astype(np.int8)
    return levels, scales.astype(np.float32)


def _blocks(weight: np.ndarray, block: int) -> Iterator[np.ndarray]:
    """Groups of rows as [rows, blocks, block], padded with zeros."""
    out, size = weight.shape
    blocks = -(-size // block)
    step = max(1, ROWS_AT_ONCE // max(1, size))
    for start in range(0, out, step):
        rows = weight[start : start + step]
        if blocks * block != size:
            rows = np.pad(rows, ((0, 0), (0, blocks * block - size)))
        yield np.ascontiguousarray(rows, np.float32).reshape(len(rows), blocks, block)


Levels = tuple[np.ndarray, np.ndarray, np.ndarray]  # levels, scales, zero points


def fit_levels(rows: np.ndarray, bits: int, symmetric: bool, search: bool) -> Levels:
    """Of float32 `rows` [rows, blocks, block]: levels uint8, alike, scales float32 and zeros [rows, blocks]."""
    start = _symmetric if symmetric else _asymmetric
    best = start(rows, bits, 1.0)
    if not search:
        return best
    best = _refit(rows, best)
    error = _error(rows, best)
    for fraction in RANGES:
        candidate = _refit(rows, start(rows, bits, fraction))
        found = _error(rows, candidate)
        better = found < error
        error = np.where(better, found, error)
        best = (
            np.where(better[..., None], candidate[0], best[0]),
            np.where(better, candidate[1], best[1]),
            np.where(better, candidate[2], best[2]),
        )
    return best


def _symmetric(rows: np.ndarray, bits: int, fraction: float) -> Levels:
    top = (1 << (bits - 1)) - 1
    scales = np.abs(rows).max(-1) * np.float32(fraction / top)
    zeros = np.full(scales.shape, top + 1, np.uint8)
    return _levels(rows, scales, zeros, bits), scales, zeros


def _asymmetric(rows: np.ndarray, bits: int, fraction: float) -> Levels:
    top = (1 << bits) - 1
    low = np.minimum(rows.min(-1), 0) * np.float32(fraction)
    high = np.maximum(rows.max(-1), 0) * np.float32(fraction)
    scales = (high - low) / np.float32(top)
    zeros = np.clip(np.rint(-low / _divisor(scales)), 0, top).astype(np.uint8)
    return _levels(rows, scales, zeros, bits), scales, zeros


def _levels(rows: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int) -> np.ndarray:
    levels = np.rint(rows / _divisor(scales)[..., None]) + zeros[..., None]
    return np.clip(levels, 0, (1 << bits) - 1).astype(np.uint8)


def _divisor(scales: np.ndarray) -> np.ndarray:
    """Scales with 1 for 0: a block of zeros, whose levels are its zero point whatever they are divided by."""
    return np.where(scales == 0, np.float32(1), scales)


def _refit(rows: np.ndarray, found: Levels) -> Levels:
    """The same levels with the scale of least squared error."""
    levels, scales, zeros = found
    steps = levels.astype(np.float32) - zeros[..., None]
    power = np.einsum("rbk,rbk->rb", steps, steps)
    fitted = np.einsum("rbk,rbk->rb", rows, steps) / np.where(power == 0, np.float32(1), power)
    return levels, np.where(power == 0, scales, fitted).astype(np.float32), zeros


def _error(rows: np.ndarray, found: Levels) -> np.ndarray:
    levels, scales, zeros = found
    rest = rows - (levels.astype(np.float32) - zeros[..., None]) * scales[..., None]
    return np.einsum("rbk,rbk->rb", rest, rest)


def pack(levels: np.ndarray, bits: int) -> np.ndarray:
    """Levels along the last axis as bytes; two 4-bit levels to a byte, the first in the low half."""
    if bits == 8:
        return levels
    if levels.shape[-1] % 2:
        levels = np.concatenate([levels, np.zeros((*levels.shape[:-1], 1), np.uint8)], -1)
    return levels[..., 0::2] | (levels[..., 1::2] << 4)
