"""Label smoothing: Szegedy et al. 2016, "Rethinking the Inception Architecture" (arXiv 1512.00567), section 7."""

from typing import TYPE_CHECKING

from toolchain.glue.methods.losses import wide
from toolchain.glue.methods.method import Method, Setting, Stage, share
from toolchain.glue.methods.reading import answer

if TYPE_CHECKING:
    from torch import Tensor


def smoothed(logits: "Tensor", labels: "Tensor", smoothing: float) -> "Tensor":
    """Mean over rows of the cross-entropy to (1 - e) · label + e / K: [rows, labels], [rows] -> scalar."""
    import torch.nn.functional as F

    return F.cross_entropy(wide(logits), labels, label_smoothing=smoothing)


def no_scores(student: object, teacher: object, regression: bool) -> str | None:
    """A score has no classes."""
    return (
        "spreads probability over the other labels, and a score has none; use finetune"
        if regression
        else None
    )


def stage(setting: Setting) -> Stage:
    """The smoothed cross-entropy."""
    smoothing = setting.options["smoothing"]
    return Stage(lambda model, batch, moment: smoothed(answer(model, batch), batch["labels"], smoothing))


METHOD = Method(
    "cross-entropy to labels with a tenth of the probability spread evenly (Szegedy 2016)",
    (stage,),
    options={"smoothing": share(0.1)},
    refuse=no_scores,
)
