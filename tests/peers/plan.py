"""What is measured, as data: peers with their variants, models, workloads."""

import re
from dataclasses import dataclass, field
from typing import Any

PROMPT, NEW, LABELS, SEED = 128, 64, 2, 1
PEERS = ("llama.cpp", "ctranslate2", "optimum-onnx", "mobius-onnx")
ADAPTERS = {
    "llama.cpp": "llama_peer",
    "ctranslate2": "ctranslate2_peer",
    "optimum-onnx": "optimum_peer",
    "mobius-onnx": "mobius_peer",
    "ours": "our_peer",
}
# Keys of GPT2Config; tiny is for trying the harness out.
SHAPES: dict[str, dict[str, int]] = {
    "gpt2": {"n_embd": 768, "n_head": 12, "vocab_size": 50257},
    "tiny": {"n_embd": 256, "n_head": 4, "vocab_size": 1000},
}


@dataclass(frozen=True)
class Model:
    """Random weights of a shape and so many layers, a classifier with `labels`; or those of a GGUF file."""

    name: str
    what: str
    layers: int | None = None
    labels: int = 0


GPT2 = Model("gpt2-6", "6-layer GPT-2 shape, random weights, tied", 6)
CLASSIFIER = Model("gpt2-6-labels", "the same shape with a head of two labels", 6, LABELS)
GPT2_12 = Model("gpt2-12", "12-layer GPT-2 shape, random weights", 12)
SMOLLM2 = Model("smollm2-135m", "SmolLM2-135M-Instruct")


@dataclass(frozen=True)
class Variant:
    """One row of a table: a peer's weights in one precision, used in one way.

    `bits` says which of our recipes it is held against. `key` names what its adapter converts to, `settings`
    are the candidates of which the fastest is taken; a file among them is one that the conversion wrote.
    `equal` is false where more than the last position passes through the head. `request` goes to the adapter.
    """

    peer: str
    weights: str
    bits: int
    key: str
    settings: tuple[dict[str, Any], ...] = ({},)
    equal: bool = True
    request: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As tables and progress lines call it."""
        return f"{self.peer} {self.weights}"


FLASH = ({"flash": False, "repack": True}, {"flash": True, "repack": True})
REPACK = (*FLASH, {"flash": False, "repack": False}, {"flash": True, "repack": False})


def _ctranslate2(compute: str) -> tuple[dict[str, Any], ...]:
    """Which matrix library and which instruction set: its defaults look at the maker of the processor."""
    variables = ({}, {"CT2_FORCE_CPU_ISA": "AVX512"}, {"CT2_USE_MKL": "1"})
    return tuple({"compute": compute, "env": env} for env in variables)


def _files(*names: str) -> tuple[dict[str, Any], ...]:
    return tuple({"file": f"{name}.onnx"} for name in names)


INT8_FILES = ("last_int8", "last_int8-channel", "last_optimized_int8", "last_optimized_int8-channel")
LLAMA = (
    Variant("llama.cpp", "F32", 32, "F32", FLASH),
    Variant("llama.cpp", "F16", 16, "F16", FLASH),
    Variant("llama.cpp", "Q8_0", 8, "Q8_0", REPACK),
    Variant("llama.cpp", "Q4_0", 4, "Q4_0", REPACK),
    Variant("llama.cpp", "Q4_0 pure", 4, "Q4_0 pure", REPACK),
)
CTRANSLATE2 = (
    Variant("ctranslate2", "float32", 32, "float32", _ctranslate2("float32")),
    Variant("ctranslate2", "int8", 8, "int8", _ctranslate2("int8")),
)
GENERATORS = (
    *LLAMA,
    *CTRANSLATE2,
    Variant("optimum-onnx", "fp32", 32, "decoder", _files("last", "last_optimized")),
    Variant("optimum-onnx", "fp32, all logits", 32, "decoder", _files("model"), equal=False),
    Variant("optimum-onnx", "int8", 8, "decoder", _files(*INT8_FILES)),
    Variant("optimum-onnx", "int8, all logits", 8, "decoder", _files("model_int8-channel"), equal=False),
    Variant("mobius-onnx", "fp32", 32, "decoder", _files("last")),
    Variant("mobius-onnx", "fp32, all logits", 32, "decoder", _files("model"), equal=False),
)
BATCHES = {
    "batches of 32 by length": {"batch": 32, "sort": True},
    "batches of 32": {"batch": 32, "sort": False},
    "one by one": {"batch": 1, "sort": False},
}
CLASSIFIER_FILES = (
    "model_int8",
    "model_int8-channel",
    "model_optimized_int8",
    "model_optimized_int8-channel",
)


def generators(model: Model, recipes: list[str]) -> list[Variant]:
    """All that generate with `model`: every peer for GPT-2's shape, llama.cpp and CTranslate2 for SmolLM2."""
    peers = GENERATORS if model.layers else (*LLAMA[2:], CTRANSLATE2[1])
    return [*peers, *(Variant("ours", name, bits_of(name), name) for name in recipes)]


def classifiers(recipes: list[str]) -> list[Variant]:
    """optimum-onnx and ours at int8, each with several ways to batch. Ours sorts by length itself."""
    found = [
        Variant("optimum-onnx", f"int8, {how}", 8, "classifier", _files(*CLASSIFIER_FILES), request=request)
        for how, request in BATCHES.items()
    ]
    for recipe in recipes:
        if bits_of(recipe) == 8:
            for how in ("batches of 32 by length", "one by one"):
                found.append(Variant("ours", f"{recipe}, {how}", 8, recipe, request=BATCHES[how]))
    return found


def exporters(recipes: list[str]) -> list[Variant]:
    """Who turns a checkpoint into an int8 file."""
    ours = [Variant("ours", name, 8, name) for name in recipes if bits_of(name) == 8]
    return [Variant("optimum-onnx", "int8", 8, ""), *ours]


def bits_of(recipe: str) -> int:
    """Bits of most weights, by the recipe's name: int8-dynamic has 8, fp32 has 32."""
    found = re.match(r"int(\d+)", recipe)
    return int(found[1]) if found else 32


@dataclass(frozen=True)
class Workload:
    """`prompt` and `new` tokens, batch 1; a classifier's pass over all rows; or an export."""

    name: str
    what: str
    prompt: int = 0
    new: int = 0


WORKLOADS = {
    "generate": Workload("generate", f"a prompt of {PROMPT} tokens, then {NEW} new ones", PROMPT, NEW),
    "full": Workload("full", "960 tokens, then 64: all 1024 positions filled", 960, NEW),
    "classify": Workload("classify", "the 872 dev sentences of SST-2, tokenized beforehand"),
    "export": Workload("export", "checkpoint to int8 file, a process from start to end"),
}
