"""TAID: forward KL to a target that moves from the student to the teacher as training goes on.

Shing et al. 2025, "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language
Models" (2501.16937): the target is softmax((1-t) · student + t · teacher) of both models' logits, without a gradient
through the student's (TAID's p_t); t goes from 0.4 to 1, faster than a straight line while the loss falls
(the paper's adaptive update, α = 5e-4, β = 0.99).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolchain.compress.objectives.rows import Rows, Settings, cross_entropy, kl, softened, weighed, wide

if TYPE_CHECKING:
    from torch import Tensor

START, END = 0.4, 1.0
RATE, DECAY = 5e-4, 0.99


@dataclass
class Pace:
    """How far the target is, and what decides how far it moves: all of it goes into a snapshot."""

    t: float = START
    momentum: float = 0.0
    loss: float | None = None  # the last step's

    def move(self, loss: float, done: float) -> None:
        """After a step with `loss`, a share `done` of all steps behind: t never falls, nor below the line.

        Δt = α · sigmoid(m) · (1 - t), with m the decaying mean of the loss's relative fall.
        """
        if self.loss is not None:
            fall = (self.loss - loss) / (self.loss + 1e-15)
            self.momentum = DECAY * self.momentum + (1 - DECAY) * fall
            self.t += RATE * _sigmoid(self.momentum) * (1 - self.t)
        self.loss = loss
        self.t = min(END, max(self.t, START + (END - START) * done))


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))  # the same function, without an overflow at either end


def interpolated(student: "Tensor", teacher: "Tensor", t: float, temperature: float) -> "Tensor":
    """Log-probabilities of the target at `t`, without a gradient: logits [rows, vocabulary] -> the same."""
    return softened((1 - t) * wide(student.detach()) + t * wide(teacher), temperature)


def loss(rows: Rows, settings: Settings) -> "Tensor":
    """alpha · T² · KL(target at t || student) + (1 - alpha) · cross-entropy -> scalar."""
    assert rows.teacher is not None and settings.t is not None
    target = interpolated(rows.student, rows.teacher, settings.t, settings.temperature)
    text = cross_entropy(rows.student, rows.targets)
    return weighed(kl(target, softened(rows.student, settings.temperature)), text, settings)
