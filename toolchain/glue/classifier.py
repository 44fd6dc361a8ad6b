"""A decoder that classifies, in PyTorch: rows to ids, padded batches, logits of the last real token."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from devices.errors import UserError
from devices.text import encode_row, load_tokenizer, special_ids
from toolchain.glue.tasks import Row
from toolchain.quiet import quiet

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

ROWS_AT_ONCE = 32


def separator(checkpoint: Path) -> int:
    """The end-of-text id that stands between the texts of a pair and pads rows; UserError without one."""
    found = special_ids(checkpoint)["eos"]
    if not found:
        raise UserError(
            f"{checkpoint / 'config.json'}: names no eos_token_id, which padding and pairs need; add it"
        )
    return found[0]


def encode(checkpoint: Path, rows: Sequence[Row], max_tokens: int) -> list[list[int]]:
    """Ids of each row, 1 to `max_tokens` of them, by the function that the exported runtime uses."""
    tokenizer, between = load_tokenizer(checkpoint), separator(checkpoint)
    return [encode_row(tokenizer, row.text_a, row.text_b, max_tokens, between) for row in rows]


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> "dict[str, torch.Tensor]":
    """input_ids and attention_mask, int64 [rows, longest], padded to the right."""
    import torch

    longest = max(map(len, rows))
    ids = [[*row, *[pad_id] * (longest - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def load(checkpoint: Path) -> "PreTrainedModel":
    """A fine-tuned classifier in float32, in evaluation mode, on the GPU where there is one."""
    import torch
    from transformers import AutoModelForSequenceClassification

    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def predict(
    model: "PreTrainedModel", rows: Sequence[Sequence[int]], batch: int = ROWS_AT_ONCE
) -> "np.ndarray":
    """Logits float32 [rows, labels] in the order given; rows of like length run together."""
    import numpy as np
    import torch

    from devices.progress import Progress

    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    pieces = []
    with torch.inference_mode(), Progress(len(order), "classify", "row") as bar:
        for start in range(0, len(order), batch):
            inputs = pad([rows[row] for row in order[start : start + batch]], model.config.pad_token_id)
            logits = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}).logits
            pieces.append(logits.float().cpu().numpy())
            bar.update(len(pieces[-1]))
    return np.concatenate(pieces)[np.argsort(order)]
