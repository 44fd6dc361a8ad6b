"""The PyTorch reference for parity, run as a process of its own: `python -m export.reference`.

The one module of this room that imports torch, and nobody imports it.
"""

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import transformers


def reference(checkpoint: Path, ids: np.ndarray, classifier: bool, prompt: int, new: int) -> dict[str, Any]:
    """Logits of `ids` int64 [rows, length] (-1 is padding, on the right) in float64 and how far float32 is.

    `logits`: [rows, length, vocab] or [rows, labels], computed in float64, kept as float32; `error`: the
    largest distance of float32's logits from them at real positions; `greedy`: int64 [new], the tokens that
    float64 appends to the first `prompt` ids of row 0, with `margins`, the lead of each over the next best.
    """
    model = _load(checkpoint, classifier)
    tokens, mask = torch.from_numpy(np.maximum(ids, 0)), torch.from_numpy((ids >= 0).astype(np.int64))
    with torch.inference_mode():
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
    """CHECKPOINT IDS.npy OUT.npz decoder|classifier PROMPT NEW."""
    checkpoint, ids, out, kind, prompt, new = arguments
    torch.set_num_threads(1)  # little work, and more threads wait for each other on a busy machine
    found = reference(Path(checkpoint), np.load(ids), kind == "classifier", int(prompt), int(new))
    np.savez(out, **found)


if __name__ == "__main__":
    main(sys.argv[1:])
