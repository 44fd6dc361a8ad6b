"""Patient KD: Sun et al. 2019, "Patient Knowledge Distillation for BERT Model Compression" (arXiv 1908.09355),
L_PT and L_PKD.

The hidden state of the token that is read (theirs: [CLS]; here the last real one) is compared, scaled to length 1,
in the student's layers but the last, with the teacher's: every so many (skip) or the last ones (last), the teacher's
top layer left out. Widths that differ are projected to one, both sides learning; the paper's are alike and compared
as they are. The distance is summed over the width, averaged over layers and rows. The paper's beta of 100 stands,
in its code, before a mean over a width of 768 as well: 0.13 here, 0.1 by default.
"""

from typing import TYPE_CHECKING

from toolchain.glue.methods.kd import distilled
from toolchain.glue.methods.method import (
    Batch,
    Hidden,
    Method,
    Moment,
    Setting,
    Stage,
    above_zero,
    count,
    one_of,
    share,
    weight,
)
from toolchain.glue.methods.rail import deeper, layer_wise, projections
from toolchain.glue.methods.reading import answer_with_layers, last_token, told_with_states

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from export.checkpoint import Checkpoint


def partners(student: int, teacher: int, layers: str) -> list[int]:
    """The teacher's layers, counted from 1, that the student's layers 1 to student - 1 are compared with."""
    if layers == "last":
        return [teacher - student + layer for layer in range(1, student)]
    return [layer * teacher // student for layer in range(1, student)]


def refuse(student: "Checkpoint", teacher: "Checkpoint | None", regression: bool) -> str | None:
    """Why these two cannot be matched."""
    from export.architecture import check

    if check(student).layers < 2:
        return "compares the layers below the last, and the student has one layer; use kd"
    return deeper(student, teacher, regression)


def hidden(setting: Setting) -> Hidden:
    """The teacher's patient layers."""
    mine, theirs = setting.student.config.num_hidden_layers, setting.guide.config.num_hidden_layers
    return Hidden("last", tuple(partners(mine, theirs, setting.options["layers"])))


def stage(setting: Setting) -> Stage:
    """Labels, the teacher's answer, and its patient layers."""
    from torch import nn

    options, chosen = setting.options, hidden(setting)
    mine, theirs = setting.student.config, setting.guide.config
    project: nn.ModuleDict | None = None
    if mine.hidden_size != theirs.hidden_size:
        project = projections(mine.hidden_size, theirs.hidden_size, options["width"])

    def loss(model: "PreTrainedModel", batch: Batch, moment: Moment) -> "Tensor":
        wanted, states = told_with_states(setting, batch, chosen)
        assert states is not None
        others = list(states.unbind(dim=1))
        found, layers = answer_with_layers(model, batch)
        ours = [last_token(state, batch["attention_mask"]) for state in layers[1:-1]]
        if project is not None:
            ours = [project["student"](state) for state in ours]
            others = [project["teacher"](state) for state in others]
        taught = distilled(found, wanted, batch["labels"], options["alpha"], options["temperature"])
        return taught + options["beta"] * layer_wise(ours, others)

    return Stage(loss, project)


METHOD = Method(
    "kd and the read token's hidden state in the layers below the last; layers=skip or last (Patient KD)",
    (stage,),
    teacher="needed",
    options={
        "layers": one_of("skip", "last"),
        "alpha": share(0.5),
        "temperature": above_zero(5.0),
        "beta": weight(0.1),
        "width": count(128),
    },
    refuse=refuse,
    hidden=hidden,
)
