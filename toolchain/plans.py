"""What the demos do, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Student:
    """One student of the plan: how many layers, from where, and how it is trained."""

    name: str
    layers: int
    init: str = "truncate"
    train: str = "none"


@dataclass(frozen=True)
class Plan:
    """What a demo does. Token budgets are a student's; `rows` are a task's training rows.

    `quality_tokens` of the held-out text are what artifacts are measured on before they are written; `gates`
    are limits by recipe, in place of the recipe's own (fields of export.gates.Gates); None: none holds.
    """

    title: str
    students: tuple[Student, ...]
    tokens: int
    lr: float
    batch: int
    window: int
    recipes: tuple[str, ...] = ("fp32", "int8", "int4")
    tasks: tuple[str, ...] = ()
    rows: int = 0
    epochs: int = 3
    tuning_lr: float = 3e-4
    rounds: int = 3
    blocks: int = 32
    corpus: str = "stdlib"
    text: str = "stdlib"  # what perplexity is measured on
    seed: int = 0
    quality_tokens: int = 2048
    gates: Mapping[str, Mapping[str, float]] | None = field(default_factory=dict)


DOCS = Plan(
    title="A 12-layer teacher of Python's documentation, cut to 6 layers",
    students=(
        Student("cut", 6),
        Student("healed", 6, train="pretrain"),
        Student("distilled", 6, train="distill"),
        Student("from-nothing", 6, init="random", train="pretrain"),
    ),
    tokens=120_000,
    lr=1e-3,
    batch=4,
    window=256,
    tasks=("docs-kind", "docs-order"),
    rows=1000,
    epochs=2,
    # These models are too unsure for 99 %: at one position in twenty the teacher's best token leads by less than
    # 0.05 logits, and int8 moves such a lead by 0.025 (measured: 98.3 to 98.9 %).
    gates={"int8": {"agreement": 97.0}},
)
# Hardly trained at all: a classifier at chance gains or loses a point by any rounding.
SHORT = replace(DOCS, tokens=8_192, rows=64, epochs=1, rounds=1, blocks=4, gates=None)
SMOLLM2 = Plan(
    title="SmolLM2-135M-Instruct, cut from 30 layers to 20 and 15",
    students=(
        Student("cut-20", 20),
        Student("healed-20", 20, train="pretrain"),
        Student("healed-15", 15, train="pretrain"),
    ),
    tokens=150_000,
    lr=2e-4,
    batch=2,
    window=512,
    rounds=3,
    blocks=8,
    quality_tokens=1024,
    gates=None,  # what is cut and hardly healed is shown as it is
)

PLANS = {"docs": DOCS, "short": SHORT, "smollm2": SMOLLM2}
