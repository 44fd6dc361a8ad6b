"""Knowledge distillation: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531),
section 2. The study (arXiv 2110.08460) states neither weight nor temperature: 1/2 and 2 here.

A regression learns from the labels and from the teacher's scores, both by mean squared error.
"""

from typing import TYPE_CHECKING

from toolchain.glue.methods.losses import hard, soft
from toolchain.glue.methods.method import Batch, Method, Moment, Setting, Stage, above_zero, share
from toolchain.glue.methods.reading import answer, told

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def distilled(
    student: "Tensor", teacher: "Tensor", labels: "Tensor", alpha: float, temperature: float
) -> "Tensor":
    """(1 - alpha) · CE + alpha · T² · KL(teacher || student): both [rows, labels], labels [rows] -> scalar."""
    return (1 - alpha) * hard(student, labels) + alpha * soft(student, teacher, temperature)


def stage(setting: Setting) -> Stage:
    """The labels and the teacher's softened answer."""

    def loss(model: "PreTrainedModel", batch: Batch, moment: Moment) -> "Tensor":
        return distilled(answer(model, batch), told(setting, batch), batch["labels"], **setting.options)

    return Stage(loss)


OPTIONS = {"alpha": share(0.5), "temperature": above_zero(2.0)}
METHOD = Method(
    "labels and the teacher's softened answer (Hinton 2015)", (stage,), teacher="needed", options=OPTIONS
)
