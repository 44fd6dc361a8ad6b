"""Combined-KD: Li et al. 2021, "How to Select One Among All? An Extensive Empirical Study Towards the Robustness of
Knowledge Distillation in Natural Language Understanding" (arXiv 2109.05696).

Annealing's stage 1 over the original text and over MATE's perturbed one, half each; the generator raises the
annealed distance that the student lowers. Then the labels alone, from stage 1's best epoch.
"""

from typing import TYPE_CHECKING

from toolchain.glue.methods import finetune
from toolchain.glue.methods.annealing import OPTIONS, annealed, phi
from toolchain.glue.methods.generator import no_head
from toolchain.glue.methods.mate import GENERATOR_OPTIONS, both_texts, generator_of
from toolchain.glue.methods.method import Batch, Method, Moment, Setting, Stage

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def stage(setting: Setting) -> Stage:
    """Stage 1: the annealed logits of both texts."""
    generator, tau = generator_of(setting), setting.options["tau"]

    def loss(model: "PreTrainedModel", batch: Batch, moment: Moment) -> "Tensor":
        part = phi(moment, tau)

        def apart(student: "Tensor", wanted: "Tensor") -> "Tensor":
            return annealed(student, wanted, part)

        _, original, perturbed = both_texts(setting, generator, model, batch, moment, apart)
        return (original + perturbed) / 2

    return Stage(loss, remembered=generator)


METHOD = Method(
    "annealing's first stage on the text and on mate's perturbed one, then the labels (Combined-KD)",
    (stage, finetune.stage),
    teacher="needed",
    options={**OPTIONS, **GENERATOR_OPTIONS},
    refuse=no_head,
)
