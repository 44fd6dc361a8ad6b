"""Teacher-free regularisation: Yuan et al. 2020, "Revisiting Knowledge Distillation via Label Smoothing
Regularization" (arXiv 1909.11723), the loss L_reg of Tf-KD_reg and its virtual teacher p^d.

A virtual teacher gives the right class probability a and each other one (1 - a) / (K - 1). It is softened as a
model's answer is, p^(1/T) normalised: the paper leaves open how, its code softens the probabilities as if they were
logits, which makes them all but even. Its temperatures are 20 and 40, its a is 0.99; alpha is 0.1 or 0.5 there.
"""

from typing import TYPE_CHECKING

from toolchain.glue.methods.label_smoothing import no_scores
from toolchain.glue.methods.losses import hard, soft, wide
from toolchain.glue.methods.method import Method, Option, Setting, Stage, above_zero, share
from toolchain.glue.methods.reading import answer

if TYPE_CHECKING:
    from torch import Tensor


def virtual_teacher(labels: "Tensor", classes: int, correct: float) -> "Tensor":
    """Log-probabilities [rows, classes]: `correct` on the label, the rest shared evenly: labels [rows]."""
    import torch

    target = torch.full((len(labels), classes), (1 - correct) / (classes - 1), device=labels.device)
    target[torch.arange(len(labels), device=labels.device), labels] = correct
    return target.log()


def regularised(
    logits: "Tensor", labels: "Tensor", *, alpha: float, temperature: float, correct: float
) -> "Tensor":
    """(1 - alpha) · CE + alpha · T² · KL(virtual teacher || student): [rows, labels], [rows] -> scalar."""
    teacher = virtual_teacher(labels, logits.shape[-1], correct).to(wide(logits).dtype)
    return (1 - alpha) * hard(logits, labels) + alpha * soft(logits, teacher, temperature)


def stage(setting: Setting) -> Stage:
    """The regularised cross-entropy."""
    options = dict(setting.options)
    return Stage(lambda model, batch, moment: regularised(answer(model, batch), batch["labels"], **options))


METHOD = Method(
    "labels and a virtual teacher that is right with a set probability (Tf-KD_reg, Yuan 2020)",
    (stage,),
    options={
        "alpha": share(0.1),
        "temperature": above_zero(20.0),
        "correct": Option(0.99, lambda value: 0 < value < 1, "a probability between 0 and 1"),
    },
    refuse=no_scores,
)
