"""What the methods' losses share. Means over rows; half precision is computed in float32.

Shapes: logits [rows, labels]; a regression's have one column, the score. Labels [rows]: class indices, or scores.
"""

from typing import TYPE_CHECKING

from toolchain.compress.objectives.logits import forward_kl

if TYPE_CHECKING:
    from torch import Tensor


def wide(values: "Tensor") -> "Tensor":
    """Values in float32 where they were in half precision; float64 stays."""
    return values.float() if values.dtype.itemsize < 4 else values


def hard(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Mean over rows of -log p(label), or of the squared error of a score: [rows, labels], [rows] -> scalar."""
    import torch.nn.functional as F

    if logits.shape[-1] == 1:
        return F.mse_loss(wide(logits)[:, 0], labels.to(wide(logits).dtype))
    return F.cross_entropy(wide(logits), labels)


def soft(student: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
    """T² times the mean over rows of KL(teacher_T || student_T), both [rows, labels] -> scalar.

    Softened by temperature T; T² keeps the gradient's size (Hinton et al. 2015, arXiv 1503.02531, section 2).
    A score has no distribution: there it is the mean squared error to the teacher's score, without T.
    """
    import torch.nn.functional as F

    student, teacher = wide(student), wide(teacher)
    if student.shape[-1] == 1:
        return F.mse_loss(student, teacher)
    return forward_kl(student, teacher, temperature)


def squared_distance(one: "Tensor", other: "Tensor") -> "Tensor":
    """Mean over rows of the squared L2 distance: both [rows, n] -> scalar."""
    return (wide(one) - wide(other)).square().sum(dim=-1).mean()


def direction_distance(one: "Tensor", other: "Tensor") -> "Tensor":
    """`squared_distance` of rows scaled to length 1, 0 to 4: both [rows, n] -> scalar."""
    import torch.nn.functional as F

    return squared_distance(F.normalize(wide(one), dim=-1), F.normalize(wide(other), dim=-1))
