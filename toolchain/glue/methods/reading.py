"""What a decoder that classifies answers, and its hidden states as one vector a row. Rows are padded right.

Shapes: input_ids and attention_mask [rows, tokens]; logits [rows, labels]; hidden states [rows, tokens, width].
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from toolchain.glue.methods.method import Batch


def answer(model: "PreTrainedModel", batch: "Batch") -> "Tensor":
    """The model's logits."""
    return _run(model, batch).logits


def answer_with_layers(model: "PreTrainedModel", batch: "Batch") -> "tuple[Tensor, tuple[Tensor, ...]]":
    """Logits and the hidden states after the embedding and after each layer: layers + 1 of them."""
    output = _run(model, batch, output_hidden_states=True)
    return output.logits, output.hidden_states


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


def _run(model: "PreTrainedModel", batch: "Batch", **asked: bool) -> Any:
    return model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, **asked
    )
