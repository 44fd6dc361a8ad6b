"""What a decoder that classifies answers, and its hidden states as one vector a row. Rows are padded right.

Shapes: input_ids and attention_mask [rows, tokens]; logits [rows, labels]; hidden states [rows, tokens, width].
"""

from typing import TYPE_CHECKING, Any

from toolchain.glue.methods.method import STATES, TOLD, Batch, Hidden, Setting

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def answer(model: "PreTrainedModel", batch: Batch) -> "Tensor":
    """The model's logits."""
    return _run(model, batch).logits


def answer_with_layers(model: "PreTrainedModel", batch: Batch) -> "tuple[Tensor, tuple[Tensor, ...]]":
    """Logits and the hidden states after the embedding and after each layer: layers + 1 of them."""
    output = _run(model, batch, output_hidden_states=True)
    return output.logits, output.hidden_states


def told(setting: Setting, batch: Batch) -> "Tensor":
    """The teacher's logits, without a gradient: its cached ones where the batch brings them, else asked now."""
    return told_with_states(setting, batch, None)[0]


def told_with_states(setting: Setting, batch: Batch, hidden: Hidden | None) -> "tuple[Tensor, Tensor | None]":
    """The teacher's logits and hidden states [rows, layers, width], cached or asked now; no gradient."""
    if TOLD in batch:
        return batch[TOLD], batch.get(STATES)
    return ask(setting.guide, batch, hidden)


def ask(teacher: "PreTrainedModel", batch: Batch, hidden: Hidden | None) -> "tuple[Tensor, Tensor | None]":
    """A model's logits and, of `hidden`'s layers, the hidden states [rows, layers, width]; no gradient."""
    import torch

    with torch.no_grad():
        if hidden is None:
            return answer(teacher, batch), None
        logits, states = answer_with_layers(teacher, batch)
        pool, mask = POOLED[hidden.pooled], batch["attention_mask"]
        return logits, torch.stack([pool(states[layer], mask) for layer in hidden.layers], dim=1)


def answer_embedded(model: "PreTrainedModel", embeds: "Tensor", mask: "Tensor") -> "Tensor":
    """Logits for tokens given as their embeddings [rows, tokens, width].

    transformers knows padding by its id only and would read the last column, padding or not.
    """
    hidden = model(
        inputs_embeds=embeds, attention_mask=mask, output_hidden_states=True, use_cache=False
    ).hidden_states[-1]
    return model.score(last_token(hidden, mask))  # type: ignore[operator]


def last_token(hidden: "Tensor", mask: "Tensor") -> "Tensor":
    """The last real token's hidden state of each row: [rows, tokens, width] -> [rows, width]."""
    import torch

    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]


def mean_token(hidden: "Tensor", mask: "Tensor") -> "Tensor":
    """The mean over real tokens of each row: [rows, tokens, width] -> [rows, width]."""
    counted = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * counted).sum(dim=1) / counted.sum(dim=1)


POOLED = {"last": last_token, "mean": mean_token}


def _run(model: "PreTrainedModel", batch: Batch, **asked: bool) -> Any:
    return model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, **asked
    )
