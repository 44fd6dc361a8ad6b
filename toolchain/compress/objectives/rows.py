"""What objectives are made of: aligned rows of logits, cross-entropy, and divergences of log-probabilities.

A row is a token that counts. Logits are [rows, vocabulary]; log-probabilities [rows, outcomes], where the
outcomes are the whole vocabulary, or a cached teacher's k most probable tokens and the rest as one. Every mean
is over rows; arithmetic is in float32 whatever comes in (float64 stays float64).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Settings:
    """How an objective's parts are weighed; None where it has no such part."""

    temperature: float
    alpha: float | None = None  # share of the teacher's part, the rest is cross-entropy
    mix: float | None = None  # how much of one distribution is mixed into the other
    t: float | None = None  # how far the target is on its way from student to teacher


@dataclass(frozen=True)
class Rows:
    """A batch's rows: logits [rows, vocabulary], targets [rows], hidden states [rows, width] where needed.

    The teacher is there as logits, or as `top`: the ids [rows, k] of its most probable tokens and
    log-probabilities [rows, k + 1], the rest last, at the temperature they were cached with.
    """

    student: "Tensor"
    targets: "Tensor"
    teacher: "Tensor | None" = None
    top: "tuple[Tensor, Tensor] | None" = None
    student_hidden: "Tensor | None" = None
    teacher_hidden: "Tensor | None" = None

    def compared(self, temperature: float) -> "tuple[Tensor, Tensor, Tensor]":
        """Log-probabilities of student and teacher over the same outcomes, softened, and the cross-entropy.

        The first two are [rows, outcomes], the last is a scalar.
        """
        if self.top is not None:
            from toolchain.compress.objectives.top import top_and_target

            ids, teacher = self.top
            student, target = top_and_target(self.student, ids, self.targets, temperature)
            return student, teacher, -target.mean()
        assert self.teacher is not None
        text = cross_entropy(self.student, self.targets)
        return softened(self.student, temperature), softened(self.teacher, temperature), text


def next_token(logits: "Tensor", labels: "Tensor", *others: "Tensor") -> "tuple[Tensor, ...]":
    """Rows that count, aligned: logits [rows, vocabulary], the labels [rows] they predict, and `others`.

    Logits (and others) are [batch, sequence, any], labels [batch, sequence] with -100 where a token does not
    count. Position t predicts label t + 1.
    """
    targets = labels[:, 1:].reshape(-1)
    counted = targets != IGNORED
    all_count = bool(counted.all())  # packed blocks: spares a copy of all logits, and of their gradient

    def aligned(values: "Tensor") -> "Tensor":
        rows = values[:, :-1].reshape(-1, values.shape[-1])
        return rows if all_count else rows[counted]

    return aligned(logits), targets if all_count else targets[counted], *map(aligned, others)


def wide(values: "Tensor") -> "Tensor":
    """`values` in float32, or float64 where they are."""
    import torch

    return values if values.dtype == torch.float64 else values.float()


def softened(logits: "Tensor", temperature: float) -> "Tensor":
    """log softmax(logits / temperature) over the last dimension."""
    import torch.nn.functional as F

    scaled = wide(logits) if temperature == 1 else wide(logits) / temperature
    return F.log_softmax(scaled, dim=-1)


def cross_entropy(logits: "Tensor", targets: "Tensor") -> "Tensor":
    """Mean over rows of -log p(target): logits [rows, vocabulary], targets [rows] -> scalar."""
    import torch.nn.functional as F

    return F.cross_entropy(wide(logits), targets)


def kl(p: "Tensor", q: "Tensor") -> "Tensor":
    """Mean over rows of KL(p || q): log-probabilities [rows, outcomes] -> scalar."""
    import torch.nn.functional as F

    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def mixture(p: "Tensor", q: "Tensor", share: float) -> "Tensor":
    """log(share · p + (1 - share) · q) from log-probabilities [rows, outcomes], 0 < share < 1."""
    import torch

    return torch.logaddexp(p + math.log(share), q + math.log1p(-share))


def weighed(divergence: "Tensor", text: "Tensor", settings: Settings) -> "Tensor":
    """alpha · T² · divergence + (1 - alpha) · `text`, the cross-entropy: scalars -> scalar.

    The divergence is of distributions softened by T; the factor T² keeps the gradient's size independent of T
    (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2).
    """
    assert settings.alpha is not None
    loss = settings.alpha * settings.temperature**2 * divergence
    if settings.alpha == 1:
        return loss
    return loss + (1 - settings.alpha) * text
