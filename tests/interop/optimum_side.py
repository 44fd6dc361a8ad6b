"""Runs in optimum-onnx's environment: opens an artifact as its users do; a request file in, an answer file out."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline


def decode(request: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens of each text alone and of all in one batch, padded on the left as transformers does, and
    the perplexity of `ids` [windows, window] at all positions but each window's first."""
    tokenizer = open_tokenizer(request, "left")
    model = ORTModelForCausalLM.from_pretrained(request["artifact"])
    ids, texts, tokens = torch.tensor(request["ids"]), request["texts"], request["tokens"]
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].double().flatten(0, 1), ids[:, 1:].flatten())
    alone = [continued(model, tokenizer, [text], tokens)[0] for text in texts]
    batch = continued(model, tokenizer, texts, tokens)
    model.use_io_binding = True  # as on a GPU: outputs are written where it says, in the shapes it works out
    return {
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "alone": alone,
        "batch": batch,
        "bound": [continued(model, tokenizer, [text], tokens)[0] for text in texts],
        "perplexity": loss.exp().item(),
        "inputs": sorted(model.input_names),
    }


def continued(model: Any, tokenizer: Any, texts: list[str], tokens: int) -> list[list[int]]:
    """What each text of one batch is continued with; ends with the end token and padding after it."""
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    found = model.generate(**batch, max_new_tokens=tokens, do_sample=False)
    return found[:, batch["input_ids"].shape[1] :].tolist()


def classify(request: dict[str, Any]) -> dict[str, Any]:
    """Logits of texts in one batch, padded on either side, and the labels that a pipeline says."""
    model = ORTModelForSequenceClassification.from_pretrained(request["artifact"])
    found = {}
    for side in ("left", "right"):
        tokenizer = open_tokenizer(request, side)
        batch = tokenizer(request["texts"], padding=True, return_tensors="pt", return_token_type_ids=False)
        found[side] = model(**batch).logits.tolist()
    said = pipeline("text-classification", model=model, tokenizer=tokenizer)(request["texts"])
    return {**found, "labels": [each["label"] for each in said]}


def open_tokenizer(request: dict[str, Any], side: str) -> Any:
    """The artifact's tokenizer, padding with its end token if it has nothing else to pad with."""
    tokenizer = AutoTokenizer.from_pretrained(request["artifact"], padding_side=side)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    does = {"decode": decode, "classify": classify}
    Path(sys.argv[2]).write_text(json.dumps(does[asked["do"]](asked)))
