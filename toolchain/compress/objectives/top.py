"""A model's distribution over a teacher's k most probable tokens, with all the rest as one outcome more."""

from typing import TYPE_CHECKING

from toolchain.compress.objectives.rows import wide

if TYPE_CHECKING:
    from torch import Tensor


def top_log_probabilities(logits: "Tensor", ids: "Tensor", temperature: float) -> "Tensor":
    """Log-probabilities at `temperature` of `ids` int64 [rows, k], then of the rest: [rows, k + 1].

    Logits are [rows, vocabulary], with more entries than k.
    """
    import torch

    scaled = wide(logits) / temperature
    total = torch.logsumexp(scaled, dim=-1, keepdim=True)
    rest = torch.logsumexp(scaled.scatter(-1, ids, float("-inf")), dim=-1, keepdim=True)
    return torch.cat([scaled.gather(-1, ids), rest], dim=-1) - total
