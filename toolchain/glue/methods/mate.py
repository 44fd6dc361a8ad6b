"""MATE-KD: Rashid et al. 2021, "MATE-KD: Masked Adversarial TExt, a Companion to Knowledge Distillation"
(arXiv 2105.05912), the losses of its generator and student, taking turns as there.

30 % of the tokens are hidden and filled in by a generator that looks for words at which teacher and student
disagree: 10 steps of it in every 100 of the student, on the batches of the first 10. The student learns, a third
each, from the labels, from the teacher on the original text, and from the teacher on the perturbed text. What
generator and masking are for a decoder: docs/adr/0009-mate-generator.md. The paper's rate for the generator is 5e-7
over many thousand steps; 5e-5 here, since the fine-tunings here are of hundreds. A regression's divergence is the
squared difference of the scores.
"""

from collections.abc import Callable
from math import isfinite, nan
from typing import TYPE_CHECKING

from toolchain.glue.methods.generator import Generator, no_head
from toolchain.glue.methods.losses import hard, soft
from toolchain.glue.methods.method import (
    Batch,
    Method,
    Moment,
    Setting,
    Stage,
    above_zero,
    count,
    share,
    weight,
)
from toolchain.glue.methods.reading import answer, told

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Distance = Callable[
    ["Tensor", "Tensor"], "Tensor"
]  # of logits [rows, labels], the student's and the teacher's


def generator_of(setting: Setting) -> Generator:
    """The generator for a student and a teacher, from the student's base."""
    student, options = setting.student.config, setting.options
    known = min(student.vocab_size, setting.guide.config.vocab_size)
    return Generator(setting.base, student.pad_token_id, known, options["masked"], options["generator_lr"])


def generating(moment: Moment, options: "dict[str, int]") -> bool:
    """Whether the generator takes a step before the student's."""
    return moment.step % options["student_steps"] < options["generator_steps"]


def both_texts(
    setting: Setting,
    generator: Generator,
    model: "PreTrainedModel",
    batch: Batch,
    moment: Moment,
    apart: Distance,
) -> "tuple[Tensor, Tensor, Tensor]":
    """The student's logits [rows, labels], and its distance from the teacher on the original and the perturbed text.

    The generator's step, where one is due, comes first; the distances are NaN where its loss was no number,
    which stops the run at this step.
    """
    import torch

    teacher = setting.guide
    found, broken = answer(model, batch), 0.0
    if generating(moment, dict(setting.options)) and not isfinite(
        generator.step(batch, model, teacher, apart)
    ):
        broken = nan
    twin = generator.perturbed(batch)
    with torch.no_grad():
        shaken = answer(teacher, twin)
    return found, apart(found, told(setting, batch)) + broken, apart(answer(model, twin), shaken) + broken


def stage(setting: Setting) -> Stage:
    """Labels, and the teacher on the original and on the perturbed text."""
    options, generator = setting.options, generator_of(setting)

    def apart(student: "Tensor", wanted: "Tensor") -> "Tensor":
        return soft(student, wanted, options["temperature"])

    def loss(model: "PreTrainedModel", batch: Batch, moment: Moment) -> "Tensor":
        found, original, perturbed = both_texts(setting, generator, model, batch, moment, apart)
        taught = options["kd"] * original + options["adversarial"] * perturbed
        return options["ce"] * hard(found, batch["labels"]) + taught

    return Stage(loss, remembered=generator)


GENERATOR_OPTIONS = {
    "masked": share(0.3),
    "generator_lr": above_zero(5e-5),
    "generator_steps": count(10),
    "student_steps": count(100),
}
METHOD = Method(
    "kd on the text and on one whose words a generator replaces where teacher and student differ (MATE-KD)",
    (stage,),
    teacher="needed",
    options={
        **GENERATOR_OPTIONS,
        "temperature": above_zero(2.0),
        "ce": weight(1 / 3),
        "kd": weight(1 / 3),
        "adversarial": weight(1 / 3),
    },
    refuse=no_head,
)
