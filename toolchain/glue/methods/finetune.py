"""Plain fine-tuning: the labels and nothing else."""

from toolchain.glue.methods.losses import hard
from toolchain.glue.methods.method import Method, Setting, Stage
from toolchain.glue.methods.reading import answer


def stage(setting: Setting) -> Stage:
    """Cross-entropy of the labels, or the mean squared error of a regression."""
    return Stage(lambda model, batch, moment: hard(answer(model, batch), batch["labels"]))


METHOD = Method("plain: cross-entropy of the labels, or the mean squared error of a regression", (stage,))
