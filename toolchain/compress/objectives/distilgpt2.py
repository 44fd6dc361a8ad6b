"""DistilGPT2's three losses: softened logits, plain text, and the direction of the last hidden states.

Sanh et al. 2019, "DistilBERT, a distilled version of BERT" (1910.01108), section 2, with the weights that the
`distillation` scripts of transformers were run with for GPT-2: 5 · T² KL + 2 · cross-entropy + 1 · cosine, T = 2,
learning rate 2.5e-4, position embeddings frozen. Batch, passes and schedule stay the command's.

The hidden states must be as wide as the teacher's: a projection in between would be trained and thrown away, and
is no part of the recipe.
"""

from typing import TYPE_CHECKING

from toolchain.compress.objectives.rows import Rows, Settings, kl, wide

if TYPE_CHECKING:
    from torch import Tensor

LOGITS, TEXT, COSINE = 5.0, 2.0, 1.0
POSITIONS = "wpe.weight"  # rotary positions have no weights to freeze


def cosine(student: "Tensor", teacher: "Tensor") -> "Tensor":
    """Mean over rows of 1 - cos(student, teacher): both [rows, width] -> scalar."""
    import torch.nn.functional as F

    return (1 - F.cosine_similarity(wide(student), wide(teacher), dim=-1)).mean()


def loss(rows: Rows, settings: Settings) -> "Tensor":
    """5 · T² · KL(teacher || student) + 2 · cross-entropy + 1 · cosine of the last hidden states -> scalar."""
    assert rows.student_hidden is not None and rows.teacher_hidden is not None
    student, teacher, text = rows.compared(settings.temperature)
    return (
        LOGITS * settings.temperature**2 * kl(teacher, student)
        + TEXT * text
        + COSINE * cosine(rows.student_hidden, rows.teacher_hidden)
    )
