"""What is to be reached, against whom: each goal is a ratio of ours to the best of some peers."""

from dataclasses import dataclass

from plan import BATCHES, SMOLLM2


@dataclass(frozen=True)
class Goal:
    """Ours of `bits` against the best of `peers` (by weights) in one measure; held when on `limit`'s side."""

    title: str
    workload: str
    model: str
    measure: str
    bits: int
    against: tuple[str, ...]
    limit: float | None
    more: bool = False  # whether more of the measure is better


INT8_PEERS = ("llama.cpp Q8_0", "ctranslate2 int8", "optimum-onnx int8")
INT4_PEERS = ("llama.cpp Q4_0", "llama.cpp Q4_0 pure")
FP32_PEERS = ("llama.cpp F32", "ctranslate2 float32", "optimum-onnx fp32", "mobius-onnx fp32")
NORMAL_USE = ("optimum-onnx fp32, all logits", "mobius-onnx fp32, all logits")
WAYS = tuple(f"optimum-onnx int8, {how}" for how in BATCHES)
SMOL = SMOLLM2.name
GOALS = (
    Goal("generation, int8", "generate", "gpt2-6", "tokens/s", 8, INT8_PEERS, 1.5, True),
    Goal("generation, int4", "generate", "gpt2-6", "tokens/s", 4, INT4_PEERS, 1.5, True),
    Goal("prompt, int8", "generate", "gpt2-6", "first token", 8, ("ctranslate2 int8",), 0.85),
    Goal("prompt, fp32, equal work", "generate", "gpt2-6", "first token", 32, FP32_PEERS, 1.0),
    Goal("prompt, fp32, normal use", "generate", "gpt2-6", "first token", 32, NORMAL_USE, None),
    Goal("peak memory, int8", "generate", "gpt2-6", "peak", 8, ("ctranslate2 int8",), 0.9),
    Goal("peak memory, int8, 1024 filled", "full", "gpt2-6", "peak", 8, ("ctranslate2 int8",), 1.0),
    Goal("classification, int8", "classify", "gpt2-6-labels", "sentences/s", 8, WAYS, 2.0, True),
    Goal("export to int8, time", "export", "gpt2-12", "seconds", 8, ("optimum-onnx int8",), 0.1),
    Goal("SmolLM2 generation, int8", "generate", SMOL, "tokens/s", 8, ("llama.cpp Q8_0",), 1.2, True),
    Goal("SmolLM2 generation, int4", "generate", SMOL, "tokens/s", 4, INT4_PEERS, 1.2, True),
)
# Ours against a size that follows from the weights: bits -> limit of file bytes over parameters x bits / 8.
FILE_LIMITS = {8: 1.06, 4: 1.15}
EXPORT_MEMORY_LIMIT = 1.5  # peak bytes of our export over the fp32 weights'
