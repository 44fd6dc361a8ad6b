"""What operators the graph that runs may hold, and where they read weights, as data."""

from collections.abc import Mapping

# Operators that read weights, by the weights' bits: the input where the weight is.
NBITS = {"MatMulNBits": 1, "GatherBlockQuantized": 0}
FLOAT = {"MatMul": 1, "FusedMatMul": 1, "Gemm": 1, "Gather": 0}
ROWS = {"MatMulIntegerToFloat": 1}
READERS: Mapping[int, Mapping[str, int]] = {4: NBITS, 8: {**NBITS, **ROWS}, 32: FLOAT}
SCALES = {
    "MatMulNBits": (2, 3),
    "GatherBlockQuantized": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4),
}  # inputs that are scales and zero points
TABLES = {"GroupQueryAttention": (7, 8), "RotaryEmbedding": (2, 3)}  # inputs that are cosines and sines
# Where things are and how long they are: small whole numbers.
INDICES = (
    "ArgMax Cast Concat ConstantOfShape CumSum Equal Expand Gather GatherElements GatherND Greater Less Max "
    "Min Neg Not Range ReduceSum Reshape Shape Slice Squeeze Sub Unsqueeze Where"
)
# What is computed between the weights.
ARITHMETIC = (
    "Add BiasGelu FastGelu Gelu GroupQueryAttention LayerNormalization Mul QuickGelu RMSNormalization Relu "
    "RotaryEmbedding SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization "
    "Abs Div QuantizeLinear ReduceMax"  # one scale for each row of activations
)


def expected(bits: set[int]) -> frozenset[str]:
    """Every kind that a graph with weights of `bits` may hold."""
    return frozenset([*INDICES.split(), *ARITHMETIC.split(), *(kind for b in bits for kind in READERS[b])])
