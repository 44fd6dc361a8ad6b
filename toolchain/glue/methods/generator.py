"""MATE's generator: the student's own base checkpoint as language model (docs/adr/0009-mate-generator.md).

It sees a row with some tokens hidden behind a learned embedding, proposes a word for each from what stands left of
it, and learns to propose those at which teacher and student disagree most. Shapes: ids and mask int64
[rows, tokens], padded right; `hidden` bool [rows, tokens]; proposals [hidden tokens, vocabulary].
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.glue.methods.reading import answer_embedded

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from export.checkpoint import Checkpoint
    from toolchain.glue.methods.method import Batch

TAU = 1.0  # of Gumbel-softmax


def no_head(student: "Checkpoint", teacher: "Checkpoint | None", regression: bool) -> str | None:
    """Why this student's base cannot propose words."""
    from export.architecture import check

    if check(student).tied or "lm_head.weight" in student.tensors:
        return None
    return "its generator is the student's base as language model, and this one has no LM head; take one that has"


def choose(ids: "Tensor", mask: "Tensor", share: float, end: int) -> "Tensor":
    """Which tokens are hidden: each with probability `share`, drawn from torch's generator.

    Never padding, never the last real token (a classifier reads there), never the first (nothing stands left of
    it), never the separator between two texts.
    """
    import torch

    place = torch.arange(ids.shape[1], device=ids.device)
    last = mask.sum(dim=1, keepdim=True) - 1
    allowed = (place > 0) & (place < last) & (ids != end)
    return allowed & (torch.rand(ids.shape, device=ids.device) < share)


def embed(model: "PreTrainedModel", ids: "Tensor", hidden: "Tensor", words: "Tensor") -> "Tensor":
    """Embeddings [rows, tokens, width] of `ids`, with `words` [hidden tokens, n] times the first n in the matrix."""
    matrix = model.get_input_embeddings()
    found = matrix(ids).clone()
    found[hidden] = (words @ matrix.weight[: words.shape[1]].to(words.dtype)).to(found.dtype)  # type: ignore[index]
    return found


class Generator:
    """The base language model, its mask embedding and its optimizer; `vocabulary` ids are known to all models."""

    def __init__(self, base: Path, end: int, vocabulary: int, share: float, lr: float) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        self.end, self.vocabulary, self.share = end, vocabulary, share
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        matrix = self.model.get_input_embeddings().weight
        self.nothing = torch.nn.Parameter(matrix.detach().mean(dim=0))  # what stands for a hidden token
        self.parameters = [*self.model.parameters(), self.nothing]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0)

    def state_dict(self) -> dict[str, Any]:
        """What a stopped run needs to go on."""
        parts = {"model": self.model, "optimizer": self.optimizer}
        return {name: part.state_dict() for name, part in parts.items()} | {"nothing": self.nothing.detach()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from it."""
        import torch

        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            self.nothing.copy_(state["nothing"])

    def propose(self, batch: "Batch", hidden: "Tensor") -> "Tensor":
        """One word for each hidden token, drawn by straight-through Gumbel-softmax: one-hot, with a gradient."""
        import torch
        import torch.nn.functional as F

        known = self.model.get_input_embeddings()(batch["input_ids"])
        embeds = torch.where(hidden.unsqueeze(-1), self.nothing.to(known.dtype), known)
        states = self.model.base_model(
            inputs_embeds=embeds, attention_mask=batch["attention_mask"], use_cache=False
        ).last_hidden_state
        # A decoder says at each token what comes next: the answer for a place stands one before it.
        logits = self.model.get_output_embeddings()(states[:, :-1][hidden[:, 1:]]).float()
        logits = logits[:, : self.vocabulary]
        barred = torch.arange(logits.shape[1], device=logits.device) == self.end
        return F.gumbel_softmax(logits.masked_fill(barred, float("-inf")), tau=TAU, hard=True)

    def perturbed(self, batch: "Batch") -> "Batch":
        """The batch with proposals in place of some tokens, without a gradient."""
        import torch

        ids = batch["input_ids"].clone()
        hidden = choose(ids, batch["attention_mask"], self.share, self.end)
        if hidden.any():
            with torch.no_grad():
                ids[hidden] = self.propose(batch, hidden).argmax(dim=-1)
        return {**batch, "input_ids": ids}

    def step(
        self,
        batch: "Batch",
        student: "PreTrainedModel",
        teacher: "PreTrainedModel",
        divergence: "Callable[[Tensor, Tensor], torch.Tensor]",
    ) -> float:
        """Raise divergence(student's logits, teacher's logits) once; returns what it was.

        Neither model's gradients are touched; the student is asked without dropout.
        """
        import torch

        ids, mask = batch["input_ids"], batch["attention_mask"]
        hidden = choose(ids, mask, self.share, self.end)
        if not hidden.any():
            return 0.0
        training = student.training
        student.eval()
        words = self.propose(batch, hidden)
        found, wanted = (
            answer_embedded(model, embed(model, ids, hidden, words), mask) for model in (student, teacher)
        )
        value = divergence(found, wanted)
        student.train(training)
        gradients = torch.autograd.grad(-value, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return value.item()
