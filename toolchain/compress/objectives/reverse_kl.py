"""Reverse KL, from student to teacher.

Gu et al. 2024, "MiniLLM: Knowledge Distillation of Large Language Models" (2306.08543), its reverse KL, with the
language modelling loss L_PT that it adds, at equal weight. It makes the student stay where the teacher finds text
probable instead of covering all of it. MiniLLM takes the expectation over texts that the student samples; here it
is taken token by token on the corpus, which needs no generation and has an exact gradient.
"""

from typing import TYPE_CHECKING

from toolchain.compress.objectives.rows import Rows, Settings, kl, weighed

if TYPE_CHECKING:
    from torch import Tensor


def loss(rows: Rows, settings: Settings) -> "Tensor":
    """alpha · T² · KL(student || teacher) + (1 - alpha) · cross-entropy -> scalar."""
    student, teacher, text = rows.compared(settings.temperature)
    return weighed(kl(student, teacher), text, settings)
