"""A model's distribution over a teacher's k most probable tokens, with all the rest as one outcome more.

Forward and backward go over the logits once each, some rows at a time, and give the cross-entropy along the way: the
same by torch's own operations makes half a dozen copies of them, which cost a small model as much as its layers.
"""

from typing import TYPE_CHECKING, Any

from toolchain.compress.objectives.rows import wide

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 18  # logits at a time: they stay in a core's cache on a CPU


def top_log_probabilities(logits: "Tensor", ids: "Tensor", temperature: float) -> "Tensor":
    """Log-probabilities at `temperature` of `ids` int64 [rows, k], then of the rest: [rows, k + 1].

    Logits are [rows, vocabulary], with more entries than k.
    """
    return top_and_target(logits, ids, ids[:, 0], temperature)[0]


def top_and_target(
    logits: "Tensor", ids: "Tensor", targets: "Tensor", temperature: float
) -> "tuple[Tensor, Tensor]":
    """As above, and at temperature 1 the log-probabilities [rows] of `targets` int64 [rows].

    With q the softened probabilities, g the gradient of the k + 1 outcomes and G its sum, the logit j has the
    gradient (g_j - q_j G) / T in the top and q_j (g_rest / q_rest - G) / T outside.
    """
    import torch

    class Top(torch.autograd.Function):
        """The two, chunk by chunk."""

        @staticmethod
        def forward(ctx: Any, logits: "Tensor") -> "tuple[Tensor, Tensor]":
            made = [_forward(*part, temperature=temperature) for part in _chunks(logits, ids, targets)]
            top, softened, target, whole = (torch.cat(parts) for parts in zip(*made, strict=True))
            ctx.save_for_backward(logits, top, softened, whole)
            return top, target

        @staticmethod
        def backward(ctx: Any, *gradients: "Tensor") -> "Tensor":
            logits, *known = ctx.saved_tensors
            made = torch.empty_like(logits)
            parts = _chunks(logits, made, ids, targets, *known, *gradients)
            for part in parts:
                _backward(*part, temperature=temperature)
            return made

    return Top.apply(logits)


def _chunks(*values: "Tensor") -> "zip[tuple[Tensor, ...]]":
    """The tensors' rows some at a time, by the width of the first."""
    rows = max(1, CHUNK // values[0].shape[-1])
    return zip(*(value.split(rows) for value in values), strict=True)


def _forward(
    logits: "Tensor", ids: "Tensor", targets: "Tensor", *, temperature: float
) -> "tuple[Tensor, Tensor, Tensor, Tensor]":
    """Of some rows: log-probabilities, their normalizer, the target's log-probability and its normalizer."""
    import torch

    values = wide(logits)
    whole = torch.logsumexp(values, -1, keepdim=True)
    scaled = values / temperature
    top = scaled.gather(-1, ids)
    largest = scaled.amax(-1, keepdim=True)
    others = scaled.sub_(largest).exp_().scatter_(-1, ids, 0.0).sum(-1, keepdim=True)
    rest = others.clamp(min=torch.finfo(others.dtype).tiny).log() + largest
    top = torch.cat([top, rest], -1)
    softened = torch.logsumexp(top, -1, keepdim=True)
    return top - softened, softened, (values.gather(-1, targets[:, None]) - whole)[:, 0], whole


def _backward(
    logits: "Tensor",
    made: "Tensor",
    ids: "Tensor",
    targets: "Tensor",
    top: "Tensor",
    softened: "Tensor",
    whole: "Tensor",
    outcomes: "Tensor",
    target: "Tensor",
    *,
    temperature: float,
) -> None:
    """Write the gradient of some rows of logits into `made`, from those of the two results."""
    values = wide(logits)
    total = outcomes.sum(-1, keepdim=True)
    outside = outcomes[:, -1:] / top[:, -1:].exp() - total
    slope = (values / temperature).sub_(softened).exp_().mul_(outside)
    slope.scatter_(-1, ids, outcomes[:, :-1] - top[:, :-1].exp() * total).div_(temperature)
    if target.any():
        slope.addcmul_((values - whole).exp_(), target[:, None], value=-1)
        slope.scatter_add_(-1, targets[:, None], target[:, None])
    made.copy_(slope)
