"""What a student is trained towards: the registry of objectives, each in a file with its source."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolchain.compress.objectives import distilgpt2, jsd, logits, reverse_kl, skew_kl, taid
from toolchain.compress.objectives.rows import Rows, Settings

if TYPE_CHECKING:
    from torch import Tensor

LEARNING_RATE = 5e-4


@dataclass(frozen=True)
class Objective:
    """A distillation loss and its defaults; None where there is nothing to set."""

    description: str
    loss: Callable[[Rows, Settings], "Tensor"]
    temperature: float
    alpha: float | None = None
    mix: float | None = None
    lr: float = LEARNING_RATE
    hidden: bool = False  # looks at both models' last hidden states
    frozen: str | None = None  # parameters whose name ends so are not trained
    pace: Callable[[], taid.Pace] | None = None  # what moves its target as training goes on
    needs_all: str | None = None  # why a cache of the teacher's most probable tokens is too little


OBJECTIVES = {
    "logits": Objective(
        "forward KL to the teacher's softened logits plus cross-entropy (Hinton 2015)",
        logits.loss,
        temperature=2.0,
        alpha=0.5,
    ),
    "distilgpt2": Objective(
        "DistilGPT2's recipe: 5 x KL, 2 x cross-entropy, 1 x cosine of last hidden states; positions frozen",
        distilgpt2.loss,
        temperature=2.0,
        lr=2.5e-4,
        hidden=True,
        frozen=distilgpt2.POSITIONS,
        needs_all="compares every token's last hidden state, which the cache does not hold",
    ),
    "reverse-kl": Objective(
        "KL from student to teacher plus cross-entropy (MiniLLM), on the corpus's text",
        reverse_kl.loss,
        temperature=1.0,
        alpha=0.5,
    ),
    "skew-kl": Objective(
        "KL from the teacher to a mixture with a tenth of the teacher in it (DistiLLM); --mix is its lambda",
        skew_kl.loss,
        temperature=1.0,
        alpha=0.5,
        mix=0.1,
    ),
    "jsd": Objective(
        "generalized Jensen-Shannon divergence (GKD); --mix is its beta",
        jsd.loss,
        temperature=1.0,
        alpha=0.5,
        mix=0.5,
    ),
    "taid": Objective(
        "forward KL to a target that moves from student to teacher while training goes on (TAID)",
        taid.loss,
        temperature=1.0,
        alpha=1.0,
        pace=taid.Pace,
        needs_all="mixes both models' logits over the whole vocabulary",
    ),
}
