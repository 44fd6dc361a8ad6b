"""Generalized Jensen-Shannon divergence between teacher and student.

Agarwal et al. 2024, "On-Policy Distillation of Language Models" (GKD, 2306.13649), JSD(β):
β KL(p || m) + (1-β) KL(q || m) with m = βp + (1-β)q, teacher p, student q. β near 0 has the gradient of forward KL
(times β), β near 1 that of reverse KL. Here on the corpus's text; GKD also trains on the student's own.
"""

from typing import TYPE_CHECKING

from toolchain.compress.objectives.rows import Rows, Settings, kl, mixture, weighed

if TYPE_CHECKING:
    from torch import Tensor


def jsd(student: "Tensor", teacher: "Tensor", mix: float) -> "Tensor":
    """Mean over rows of the divergence with β = mix, from log-probabilities [rows, outcomes] -> scalar."""
    middle = mixture(teacher, student, mix)
    return mix * kl(teacher, middle) + (1 - mix) * kl(student, middle)


def loss(rows: Rows, settings: Settings) -> "Tensor":
    """alpha · T² · generalized JSD + (1 - alpha) · cross-entropy -> scalar."""
    assert settings.mix is not None
    student, teacher, text = rows.compared(settings.temperature)
    return weighed(jsd(student, teacher, settings.mix), text, settings)
