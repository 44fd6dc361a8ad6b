"""Tables of rotary position embedding, as transformers computes them."""

import math

import numpy as np

from export.architecture import Architecture


def caches(arch: Architecture) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines float32 [positions, head_dim / 2] of each position's angles.

    Angles are rounded to float32 where transformers rounds them: at far positions that moves them by more
    than a float's precision, and the trained model has seen the rounded ones.
    """
    steps = np.arange(arch.positions, dtype=np.float32)
    angles = np.outer(steps, frequencies(arch)).astype(np.float32)
    return np.cos(angles), np.sin(angles)


def frequencies(arch: Architecture) -> np.ndarray:
    """Angle per position float32 [head_dim / 2]: theta^(-2i/head_dim), scaled as `rope_type` says."""
    rope, size = arch.rope, arch.head_dim
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    plain = (1.0 / np.float32(rope["rope_theta"]) ** exponents).astype(np.float32)
    if rope["rope_type"] == "linear":
        return plain / np.float32(rope["factor"])
    if rope["rope_type"] == "llama3":
        return _llama3(
            plain,
            rope["factor"],
            rope["low_freq_factor"],
            rope["high_freq_factor"],
            rope["original_max_position_embeddings"],
        )
    return plain


def _llama3(plain: np.ndarray, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """Llama 3.1's scaling: slow angles divided by `factor`, fast ones kept, those between blended.

    Source: https://github.com/meta-llama/llama-models/blob/main/models/llama3_1 (apply_scaling).
    """
    wavelength = 2 * math.pi / plain
    blend = np.clip((original / wavelength - low) / (high - low), 0, 1)
    return ((1 - blend) * plain / factor + blend * plain).astype(np.float32)
