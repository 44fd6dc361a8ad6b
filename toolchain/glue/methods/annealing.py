"""Annealing-KD: Jafari et al. 2021, "Annealing Knowledge Distillation" (arXiv 2104.07163), L_KD and Phi(T).

Stage 1 regresses the student's raw logits to Phi(T) · teacher's, Phi(T) = 1 - (T - 1) / tau, while T goes from tau
down to 1 in equal shares of the steps (the paper: of the epochs); no labels. Stage 2 goes on from stage 1's best
epoch with the labels alone. A score is regressed likewise.
"""

from typing import TYPE_CHECKING

from toolchain.glue.methods import finetune
from toolchain.glue.methods.losses import squared_distance
from toolchain.glue.methods.method import Batch, Method, Moment, Setting, Stage, count, share
from toolchain.glue.methods.reading import answer, told

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def temperature(moment: Moment, tau: int) -> int:
    """T of a step: from `tau` (where there are as many steps) down to 1, which the last step always has."""
    return 1 + tau * (moment.steps - 1 - moment.step) // moment.steps


def phi(moment: Moment, tau: int) -> float:
    """The share of the teacher's logits that is aimed at: from 1 / tau up to 1."""
    return 1 - (temperature(moment, tau) - 1) / tau


def annealed(student: "Tensor", teacher: "Tensor", part: float) -> "Tensor":
    """Mean over rows of |student - part · teacher|²: both raw logits [rows, labels] -> scalar."""
    return squared_distance(student, part * teacher)


def stage(setting: Setting) -> Stage:
    """Stage 1: the annealed logits."""

    def loss(model: "PreTrainedModel", batch: Batch, moment: Moment) -> "Tensor":
        return annealed(answer(model, batch), told(setting, batch), phi(moment, setting.options["tau"]))

    return Stage(loss)


OPTIONS = {"tau": count(10), "first_stage": share(2 / 3)}
METHOD = Method(
    "first the teacher's logits, growing from a tenth to the whole, then the labels (Annealing-KD)",
    (stage, finetune.stage),
    teacher="needed",
    options=OPTIONS,
)
