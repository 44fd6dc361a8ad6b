"""The PyTorch reference, run as a process of its own: `python -m export.reference PARENT ...`.

The one module of this room that imports torch, and nobody imports it. export/answers.py starts it.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import transformers

from devices.machine import physical_cores
from devices.process import end_with

LOGITS_AT_ONCE = (
    1 << 24
)  # float32 values, 64 MB: how many windows go through the model together; at least one


def parity(model: Any, ids: np.ndarray, classifier: bool, prompt: int, new: int) -> dict[str, Any]:
    """Logits of `ids` int64 [rows, length] (-1 is padding, on the right) in float64 and how far float32 is.

    `logits`: [rows, length, vocab] or [rows, labels], computed in float64, kept as float32; `error`: the
    largest distance of float32's logits from them at real positions; `greedy`: int64 [new], the tokens that
    float64 appends to the first `prompt` ids of row 0, with `margins`, the lead of each over the next best.
    The model is float64 from here on.
    """
    tokens, mask = torch.from_numpy(np.maximum(ids, 0)), torch.from_numpy((ids >= 0).astype(np.int64))
    single = _logits(model, tokens, mask, classifier).double()
    model = model.double()
    double = _logits(model, tokens, mask, classifier)
    real = torch.ones(len(ids), dtype=torch.bool) if classifier else mask.bool()
    found = {
        "logits": double.float().numpy(),
        "error": (single - double)[real].abs().max().item(),
        "versions": np.array([torch.__version__, transformers.__version__]),
    }
    if not classifier:
        found["greedy"], found["margins"] = _greedy(model, tokens[:1, :prompt], new)
    return found


def text(model: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    """What quality is measured against, of `ids` int64 [windows, w] in float32, a few windows at a time.

    `top` int32 [windows, w]: the likeliest next token at each position; `margin` float32 alike: its lead in
    logits over the second; `nll` float32 [windows, w - 1]: negative log likelihood (nats) of ids[:, 1:].
    """
    found: dict[str, list[np.ndarray]] = {"top": [], "margin": [], "nll": []}
    for logits, targets in _windows(model, torch.from_numpy(ids)):
        best = logits.topk(2)
        hits = logits[:, :-1].gather(-1, targets[..., None])[..., 0]
        found["top"].append(best.indices[..., 0].int().numpy())
        found["margin"].append((best.values[..., 0] - best.values[..., 1]).numpy())
        found["nll"].append((logits[:, :-1].logsumexp(-1) - hits).numpy())
    return {name: np.concatenate(pieces) for name, pieces in found.items()}


def _windows(model: Any, ids: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits [n, w, vocab] and targets [n, w - 1] of windows that go through the model together."""
    rows = max(1, LOGITS_AT_ONCE // (ids.shape[1] * model.config.vocab_size))
    for piece in ids.split(rows):
        yield model(input_ids=piece, use_cache=False).logits, piece[:, 1:]


def _load(checkpoint: Path, classifier: bool) -> Any:
    kind = (
        transformers.AutoModelForSequenceClassification if classifier else transformers.AutoModelForCausalLM
    )
    model = kind.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",  # the others have no float64
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    return model.eval()


def _logits(model: Any, tokens: torch.Tensor, mask: torch.Tensor, classifier: bool) -> torch.Tensor:
    if not classifier:
        return model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    # Row by row and without padding: which token is read must not depend on the model's padding token.
    rows = (row[keep.bool()][None] for row, keep in zip(tokens, mask, strict=True))
    return torch.cat([model(input_ids=row).logits for row in rows])


def _greedy(model: Any, tokens: torch.Tensor, new: int) -> tuple[np.ndarray, np.ndarray]:
    found, margins, past = [], [], None
    for _ in range(new):
        step = model(input_ids=tokens, past_key_values=past, use_cache=True)
        best = step.logits[0, -1].topk(2)
        margins.append((best.values[0] - best.values[1]).item())
        found.append(best.indices[0].item())
        tokens, past = best.indices[:1][None], step.past_key_values
    return np.array(found), np.array(margins)


def main(arguments: list[str]) -> None:
    """CHECKPOINT decoder|classifier QUESTIONS.npz ANSWERS.npz; arrays are named QUESTION.ARRAY.

    Questions are `text` (ids) and `parity` (ids, prompt, new); either may be left out.
    """
    checkpoint, kind, asked, out = arguments
    with np.load(asked) as file:
        questions = dict(file)
    model, found = _load(Path(checkpoint), kind == "classifier"), dict[str, Any]()
    with torch.inference_mode():
        if "text.ids" in questions:
            torch.set_num_threads(physical_cores())
            found |= _named("text", text(model, questions["text.ids"]))
        if "parity.ids" in questions:
            torch.set_num_threads(1)  # little work, and more threads wait for each other on a busy machine
            ids, prompt, new = (questions[f"parity.{name}"] for name in ("ids", "prompt", "new"))
            found |= _named("parity", parity(model, ids, kind == "classifier", int(prompt), int(new)))
    np.savez(out, **found)


def _named(question: str, arrays: dict[str, Any]) -> dict[str, Any]:
    return {f"{question}.{name}": array for name, array in arrays.items()}


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    main(sys.argv[2:])
