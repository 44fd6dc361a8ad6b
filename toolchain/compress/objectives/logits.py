"""Forward KL to the teacher's softened logits.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (1503.02531), section 2. It covers whatever the
teacher finds probable, also where the student is too small to follow.
"""

from typing import TYPE_CHECKING

from toolchain.compress.objectives.rows import Rows, Settings, kl, softened, weighed

if TYPE_CHECKING:
    from torch import Tensor


def forward_kl(student: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
    """T² · mean over rows of KL(teacher_T || student_T), from logits: both [rows, vocabulary] -> scalar."""
    return kl(softened(teacher, temperature), softened(student, temperature)) * temperature**2


def loss(rows: Rows, settings: Settings) -> "Tensor":
    """alpha · T² · KL(teacher || student) + (1 - alpha) · cross-entropy -> scalar."""
    student, teacher, text = rows.compared(settings.temperature)
    return weighed(kl(teacher, student), text, settings)
