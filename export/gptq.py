"""GPTQ (Frantar et al. 2023, https://arxiv.org/abs/2210.17323): rounding that makes up for its own errors.

Columns are rounded one after the other, and what each leaves is taken up by those not yet rounded, as far as
the inputs that the matrix will read allow. The result has the layout of export.quantize.
"""

import numpy as np
from scipy.linalg import lapack

from export.quantize import Quantized, fit_levels, pack

# Of the mean diagonal, added to it. Ten times the paper's: over a few thousand tokens, of another text
# than that of use, what inputs tell about each other is only half true (docs/log.md has the figures).
DAMPING = 0.1
ROWS_AT_ONCE = 1 << 20  # weights worked on together


def gptq(
    weight: np.ndarray, moment: np.ndarray, bits: int, block: int, *, symmetric: bool, search: bool = False
) -> Quantized:
    """Quantize float32 `weight` [out, in] for inputs whose sum of x x^T is `moment` float64 [in, in].

    Scales and zero points of a block are chosen, as `quantize` does, from the weights as they are when its
    first column is reached. Columns go in their natural order: the operator's blocks lie in it.
    """
    out, size = weight.shape
    padded = -(-size // block) * block
    inverse = _inverse_root(moment, padded)
    step = max(1, ROWS_AT_ONCE // padded)
    parts = []
    for start in range(0, out, step):
        columns = np.zeros((padded, min(step, out - start)), np.float32)
        columns[:size] = weight[start : start + step].T
        parts.append(_round_columns(columns, inverse, bits, block, symmetric, search))
    levels, scales, zeros = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Quantized(pack(levels, bits), scales, None if symmetric else pack(zeros, bits), bits, block)


def _inverse_root(moment: np.ndarray, size: int) -> np.ndarray:
    """Upper triangular U, float32 [size, size], with U^T U the inverse of the damped `moment`, padded."""
    damped = np.eye(size)
    damped[: len(moment), : len(moment)] = moment
    diagonal = np.einsum("ii->i", damped)
    mean = diagonal.mean()
    diagonal[diagonal == 0] = mean or 1.0  # an input that is always 0: any rounding does
    diagonal += DAMPING * mean
    # Reversing rows and columns turns the lower factor L L^T into an upper one, R R^T, whose inverse is U.
    lower, failed = lapack.dpotrf(damped[::-1, ::-1], lower=1, clean=1)
    if failed:
        raise np.linalg.LinAlgError("the second moment is not positive definite")
    return lapack.dtrtri(lower[::-1, ::-1], lower=0)[0].astype(np.float32)


def _round_columns(
    columns: np.ndarray, inverse: np.ndarray, bits: int, block: int, symmetric: bool, search: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels uint8 [rows, blocks, block], scales and zeros [rows, blocks] of `columns` [in, rows], used up."""
    size, rows = columns.shape
    levels = np.empty((size, rows), np.uint8)
    scales, zeros = np.empty((size // block, rows), np.float32), np.empty((size // block, rows), np.uint8)
    for b in range(size // block):
        at = slice(b * block, (b + 1) * block)
        part, root = columns[at], inverse[at, at]
        found = fit_levels(np.ascontiguousarray(part.T)[:, None], bits, symmetric, search)
        scale, zero = found[1][:, 0], found[2][:, 0].astype(np.float32)
        safe = np.where(scale == 0, np.float32(1), scale)
        errors = np.empty_like(part)
        for j in range(block):
            level = np.clip(np.rint(part[j] / safe) + zero, 0, (1 << bits) - 1)
            levels[b * block + j] = level
            errors[j] = (part[j] - (level - zero) * scale) / root[j, j]
            part[j + 1 :] -= root[j, j + 1 :, None] * errors[j]
        columns[at.stop :] -= inverse[at, at.stop :].T @ errors
        scales[b], zeros[b] = scale, found[2][:, 0]
    return (
        levels.T.reshape(rows, -1, block),
        np.ascontiguousarray(scales.T),
        np.ascontiguousarray(zeros.T),
    )
