"""Skew KL: from the teacher to a mixture of teacher and student.

Ko et al. 2024, "DistiLLM: Towards Streamlined Distillation for Large Language Models" (2402.03898), its skew KL (SKL):
KL(p || λp + (1-λ)q) with teacher p, student q and λ = 0.1. The teacher's share bounds the log ratio
by -log λ, and with it the gradient where the student finds nothing probable. The paper's adaptive use of the
student's own texts is not part of it.
"""

from typing import TYPE_CHECKING

from toolchain.compress.objectives.rows import Rows, Settings, kl, mixture, weighed

if TYPE_CHECKING:
    from torch import Tensor


def skew_kl(student: "Tensor", teacher: "Tensor", mix: float) -> "Tensor":
    """Mean over rows of KL(teacher || mix · teacher + (1 - mix) · student), from log-probabilities -> scalar."""
    return kl(teacher, mixture(teacher, student, mix))


def loss(rows: Rows, settings: Settings) -> "Tensor":
    """alpha · T² · skew KL + (1 - alpha) · cross-entropy -> scalar."""
    assert settings.mix is not None
    student, teacher, text = rows.compared(settings.temperature)
    return weighed(skew_kl(student, teacher, settings.mix), text, settings)
