"""A model from nothing: a shape, a tokenizer of its own, and training on a corpus. It made the demo's teacher."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from devices.errors import UserError
from devices.files import read_json, staged, write_json
from toolchain import __version__
from toolchain.compress.train import train
from toolchain.compress.trainer import Training
from toolchain.compress.unfinished import WORK, snapshots, unfinished
from toolchain.corpus import load
from toolchain.quiet import quiet


def pretrain(
    shape: Path,
    out: Path,
    training: Training,
    *,
    half: bool = False,
    force: bool = False,
    command: str = "",
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Train the model that `shape` (a config.json) describes, and its byte-level BPE, from nothing into `out`.

    With `half`, weights are stored in 16 bits (float16). Returns what `training.json` holds.
    An interrupted run goes on from its newest snapshot when the same call is made again.

    Raises:
        UserError: a shape that transformers cannot build, a corpus that cannot be used, `out` exists.
    """
    config = read_json(shape, "a model's shape in config.json form")
    request = {"shape": config, "training": asdict(training), "half": half}
    with staged(out, force=force, resume=True) as staging, unfinished(staging, request, say):
        if not snapshots(staging):
            _initialise(config, staging, training)
        record = train(staging, staging / WORK, training)
        if half:
            _halve(staging)
        result = {
            "schema": 1,
            "toolchain": __version__,
            "command": command,
            "training": record,
            "seed": training.seed,
            "versions": versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(staging / "training.json", result)
        (staging / "README.md").write_text(card(out.name, config, result), encoding="utf-8")
        shutil.rmtree(staging / WORK)
    return result


def _initialise(config: dict[str, Any], model_dir: Path, training: Training) -> None:
    """The tokenizer trained on the corpus's train part, and seeded random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    from toolchain.corpus.tokenizer import train_bpe

    fields = dict(config)
    kind = fields.pop("model_type", None)
    try:
        with quiet():
            made = AutoConfig.for_model(kind, **fields)
    except (ValueError, TypeError) as error:
        raise UserError(f"shape: transformers builds no '{kind}' model from it ({error})") from None
    texts = load(training.corpus, training.heldout).train["text"]
    eos = train_bpe(texts, made.vocab_size, model_dir, made.max_position_embeddings)
    made.bos_token_id = made.eos_token_id = eos
    set_seed(training.seed)
    with quiet():
        AutoModelForCausalLM.from_config(made).save_pretrained(model_dir)


def _halve(model_dir: Path) -> None:
    """Store the weights as float16; arithmetic stays in float32 wherever they are used."""
    import torch
    from transformers import AutoModelForCausalLM

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float16)
        model.save_pretrained(model_dir)


def versions() -> dict[str, str]:
    """The versions of what trained: packages by name, and Python."""
    import platform
    from importlib.metadata import version

    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "transformers", "accelerate", "datasets", "tokenizers")
    }


def card(name: str, config: dict[str, Any], result: dict[str, Any]) -> str:
    """The model card: what it is, the exact command, and what it reached."""
    record = result["training"]
    facts = [
        ("corpus", f"{record['corpus']['name']} (sha256 `{record['corpus']['sha256']}`)"),
        (
            "tokens seen",
            f"{record['tokens']:,} ({record['epochs']} passes of {record['corpus']['tokens']:,})",
        ),
        (
            "held-out perplexity",
            f"{record['perplexity']['after']:.2f} on {record['perplexity']['tokens']:,} tokens",
        ),
        ("seed", result["seed"]),
        ("hours", record["hours"]),
        ("versions", ", ".join(f"{k} {v}" for k, v in result["versions"].items())),
        ("shape", f"`{json.dumps(config)}`"),
    ]
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts)
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\nlanguage: en\n---\n# {name}\n\n"
        f"A decoder language model trained from nothing by this command:\n\n```\n{result['command']}\n```\n\n"
        f"| | |\n|---|---|\n{rows}\n\nHeld-out loss by step: "
        f"{', '.join(f'{step}: {loss:.3f}' for step, loss in record['heldout_losses']) or 'not taken'}.\n"
    )
