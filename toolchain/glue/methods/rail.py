"""RAIL-KD: Haidar et al. 2022, "RAIL-KD: RAndom Intermediate Layer Mapping for Knowledge Distillation"
(arXiv 2109.10164), both forms of L_RAIL.

Every epoch as many teacher layers as the student has are drawn without replacement, sorted, and paired in order.
Hidden states are averaged over real tokens, projected to one width (both sides' projections learn), scaled to
length 1; the squared distance is taken layer by layer (their mean: equal weights) or of all layers concatenated.
The layers of one side share a projection, since the partner of a layer changes. Each third of the loss is labels,
teacher's answer, layers.
"""

import random
from typing import TYPE_CHECKING

from toolchain.glue.methods.losses import direction_distance, hard, soft
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
    weight,
)
from toolchain.glue.methods.reading import answer_with_layers, mean_token, told_with_states

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from export.checkpoint import Checkpoint


def drawn(layers: int, wanted: int, seed: int, epoch: int) -> list[int]:
    """`wanted` of the layers 1 to `layers`, ascending, another draw each epoch."""
    return sorted(random.Random(f"{seed}/{epoch}").sample(range(1, layers + 1), wanted))


def layer_wise(student: "list[Tensor]", teacher: "list[Tensor]") -> "Tensor":
    """Mean over pairs of the distance of directions: lists of [rows, width] of like length -> scalar."""
    pairs = zip(student, teacher, strict=True)
    return sum((direction_distance(s, t) for s, t in pairs), student[0].new_zeros(())) / len(student)


def deeper(student: "Checkpoint", teacher: "Checkpoint | None", regression: bool) -> str | None:
    """Why these two cannot be matched layer by layer."""
    from export.architecture import check

    assert teacher is not None
    mine, others = check(student).layers, check(teacher).layers
    if mine > others:
        return (
            f"matches layers, and the student has {mine} of them, the teacher {others}; take a deeper teacher"
        )
    return None


def projections(student: int, teacher: int, width: int) -> "nn.ModuleDict":
    """Both sides' linear maps to `width`, without bias, as a ModuleDict."""
    from torch import nn

    sides = {"student": student, "teacher": teacher}
    return nn.ModuleDict({side: nn.Linear(size, width, bias=False) for side, size in sides.items()})


def hidden(setting: Setting) -> Hidden:
    """All layers of the teacher: another draw of them each epoch."""
    return Hidden("mean", tuple(range(1, setting.guide.config.num_hidden_layers + 1)))


def stage(setting: Setting) -> Stage:
    """Labels, the teacher's answer, and its layers."""
    import torch

    options, teacher = setting.options, setting.guide
    layers = setting.student.config.num_hidden_layers
    together = options["layers"] == "concatenated"
    times = layers if together else 1
    mine, others = (times * model.config.hidden_size for model in (setting.student, teacher))
    project = projections(mine, others, options["width"])

    def loss(model: "PreTrainedModel", batch: Batch, moment: Moment) -> "Tensor":
        chosen = drawn(teacher.config.num_hidden_layers, layers, setting.seed, moment.epoch)
        wanted, theirs = told_with_states(setting, batch, hidden(setting))
        assert theirs is not None
        found, states = answer_with_layers(model, batch)
        mask = batch["attention_mask"]
        ours = [mean_token(state, mask) for state in states[1:]]
        taken = [theirs[:, layer - 1] for layer in chosen]
        if together:
            ours, taken = [torch.cat(ours, dim=-1)], [torch.cat(taken, dim=-1)]
        apart = layer_wise(
            [project["student"](state) for state in ours], [project["teacher"](state) for state in taken]
        )
        taught = soft(found, wanted, options["temperature"])
        return options["ce"] * hard(found, batch["labels"]) + options["kd"] * taught + options["rail"] * apart

    return Stage(loss, project)


METHOD = Method(
    "kd and hidden states of randomly drawn teacher layers; layers=layer-wise or concatenated (RAIL-KD)",
    (stage,),
    teacher="needed",
    options={
        "layers": one_of("layer-wise", "concatenated"),
        "width": count(128),
        "temperature": above_zero(2.0),
        "ce": weight(1 / 3),
        "kd": weight(1 / 3),
        "rail": weight(1 / 3),
    },
    refuse=deeper,
    hidden=hidden,
)
