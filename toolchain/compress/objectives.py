"""What a student is trained towards: losses as functions, means over the tokens that count.

Shapes: logits [batch, sequence, vocabulary]; labels [batch, sequence] with -100 where a token does not
count. Position t's logits predict label t+1; `next_token` aligns the two before a loss sees them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100


def next_token(logits: "Tensor", labels: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Rows that count, aligned: logits [rows, vocabulary] and the labels [rows] they predict."""
    targets = labels[:, 1:].reshape(-1)
    counted = targets != IGNORED
    return logits[:, :-1].reshape(-1, logits.shape[-1])[counted], targets[counted]


def cross_entropy(logits: "Tensor", targets: "Tensor") -> "Tensor":
    """Mean over rows of -log p(target): logits [rows, vocabulary], targets [rows] -> scalar, in float32."""
    import torch.nn.functional as F

    return F.cross_entropy(logits.float(), targets)


def forward_kl(student: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
    """T² times the mean over rows of KL(teacher_T || student_T): both [rows, vocabulary] -> scalar.

    Softened by temperature T; the factor T² keeps the gradient's size independent of T
    (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2).
    """
    import torch.nn.functional as F

    student = F.log_softmax(student.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def logits(
    student: "Tensor", teacher: "Tensor", targets: "Tensor", temperature: float, alpha: float
) -> "Tensor":
    """alpha · T² · KL(teacher || student) + (1 - alpha) · cross-entropy, over rows [rows, vocabulary] -> scalar."""
    loss = alpha * forward_kl(student, teacher, temperature)
    return loss if alpha == 1 else loss + (1 - alpha) * cross_entropy(student, targets)


@dataclass(frozen=True)
class Objective:
    """A distillation loss (student logits, teacher logits, targets, temperature, alpha) and its defaults."""

    description: str
    loss: Callable[..., "Tensor"]
    temperature: float
    alpha: float


OBJECTIVES = {
    "logits": Objective("forward KL to the teacher's softened logits plus cross-entropy", logits, 2.0, 0.5),
}
