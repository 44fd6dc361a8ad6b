"""PyTorch, from the project's own environment: it makes the weights all peers are given, and is the truth.

Nothing here is timed.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import contract


def weights(request: dict[str, Any]) -> dict[str, Any]:
    """A GPT-2 of `shape` (keys of GPT2Config) with random weights, as an HF folder with a tokenizer.

    With `labels`, a classifier. Where `tokenizer` names no folder the vocabulary is made up: converters ask
    for one, and ids go in and come out.
    """
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

    torch.manual_seed(request["seed"])
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = GPT2Config(**request["shape"], **ends)
    if request["labels"]:
        config.num_labels = request["labels"]
        model = GPT2ForSequenceClassification(config)
    else:
        model = GPT2LMHeadModel(config)
    model.eval().save_pretrained(request["out"])
    _made_up(config.vocab_size).save_pretrained(request["out"])
    _older(Path(request["out"]))
    return {}


def _made_up(size: int) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"t{n}": n for n in range(size)}, unk_token="t0"))
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "t0")
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def _older(folder: Path) -> None:
    """Say in transformers 4.57's words, too, what it needs: two of the peers convert through it.

    The class of the tokenizer has another name there, and rotary positions with a base of their own would
    silently fall back to 10,000.
    """
    file = folder / "tokenizer_config.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**told, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2))
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if "rope_parameters" in config:
        config["rope_theta"] = config["rope_parameters"]["rope_theta"]
        file.write_text(json.dumps(config, indent=2))


def gguf(request: dict[str, Any]) -> dict[str, Any]:
    """A GGUF file's weights as an HF folder in float32, converted as the toolchain does it."""
    from toolchain.compress.teacher import from_gguf

    out = Path(request["out"])
    made = from_gguf(Path(request["file"]), out.parent, lambda line: None)
    shutil.copytree(made, out, dirs_exist_ok=True)
    shutil.rmtree(out.parent / "gguf")
    _older(out)
    return {}


def greedy(request: dict[str, Any]) -> dict[str, Any]:
    """What PyTorch in float32 picks after the prompt."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(request["checkpoint"], dtype=torch.float32).eval()
    tokens: list[int] = []
    with torch.inference_mode():
        found = model(torch.tensor([request["ids"]]), use_cache=True)
        while len(tokens) < request["new"]:
            tokens.append(int(found.logits[0, -1].argmax()))
            past = found.past_key_values
            found = model(torch.tensor([tokens[-1:]]), past_key_values=past, use_cache=True)
    return {"tokens": tokens}


def prompt(request: dict[str, Any]) -> dict[str, Any]:
    """The first `count` ids of a text, by the checkpoint's own tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(request["checkpoint"]) / "tokenizer.json"))
    text = Path(request["file"]).read_text(encoding="utf-8")
    return {"ids": tokenizer.encode(text, add_special_tokens=False).ids[: request["count"]]}


def sentences(request: dict[str, Any]) -> dict[str, Any]:
    """The dev sentences of SST-2 as ids of GPT-2's tokenizer, in the file's order."""
    from tokenizers import ByteLevelBPETokenizer

    folder = Path(request["tokenizer"])
    tokenizer = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    lines = Path(request["file"]).read_text(encoding="utf-8").splitlines()[1:]
    return {"rows": [tokenizer.encode(line.split("\t")[0]).ids for line in lines]}


if __name__ == "__main__":
    contract.answer(
        {"weights": weights, "gguf": gguf, "greedy": greedy, "prompt": prompt, "sentences": sentences}
    )
