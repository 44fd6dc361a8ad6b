"""A model from nothing: a shape, a tokenizer of its own, and training on a corpus. It made the demo's teacher."""

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError, unknown
from devices.files import read_json, refuse_existing, write_json
from export.architecture import FAMILIES, describe
from toolchain import __version__
from toolchain.compress.faults import plain_faults
from toolchain.compress.train import train
from toolchain.compress.trainer import Training, processes, refuse, resolved
from toolchain.compress.unfinished import WORK, unfinished
from toolchain.corpus import Corpus, load
from toolchain.quiet import quiet

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SMALLEST_VOCAB = 257


@plain_faults()
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
        UserError: a shape that transformers cannot build, a corpus that cannot be used, `out` exists,
            several processes.
    """
    if processes() > 1:
        raise UserError("pretrain: runs as one process; start it without accelerate launch")
    refuse(training)
    training = resolved(training)
    config = read_json(shape, "a model's shape in config.json form")
    refuse_existing(out, force)
    made = _built(config)
    refuse(training, made.max_position_embeddings)
    corpus = load(training.corpus, training.heldout)
    request = {"shape": config, "training": asdict(training), "half": half, "corpus": corpus.sha256}
    with unfinished(out, request, force=force, say=say) as staging:
        _initialise(made, corpus, staging, training.seed)
        record = train(staging, staging / WORK, training, corpus=corpus)
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
    return result


def _built(config: dict[str, Any]) -> "PretrainedConfig":
    """transformers' configuration of the shape `config`; UserError where it builds none that can be trained."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(config)
    kind = fields.pop("model_type", None)
    if kind is None:
        raise UserError(f"shape: has no 'model_type'; add one of {', '.join(FAMILIES)}")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"shape: {unknown('model_type', str(kind), FAMILIES)}")
    try:
        with quiet():
            made = AutoConfig.for_model(kind, **fields)
        arch = describe(made.to_dict())
        with quiet(), torch.device("meta"):
            AutoModelForCausalLM.from_config(made)
    except UserError as error:
        raise UserError(f"shape: {str(error).removeprefix('config.json: ')}") from None
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"shape: transformers builds no '{kind}' model from it ({error})") from None
    if arch.vocab < SMALLEST_VOCAB:
        raise UserError(
            f"shape: vocab_size {arch.vocab} is less than the {SMALLEST_VOCAB} that a byte-level tokenizer "
            "needs (256 bytes and the end of text); raise it"
        )
    return made


def _initialise(made: "PretrainedConfig", corpus: Corpus, model_dir: Path, seed: int) -> None:
    """The tokenizer trained on the corpus's train part, and seeded random weights.

    Made again on a resume: cheap, the same each time, and a kill may have torn the weights.
    """
    from transformers import AutoModelForCausalLM, set_seed

    from toolchain.corpus.tokenizer import train_bpe

    eos = train_bpe(corpus.train["text"], made.vocab_size, model_dir, made.max_position_embeddings)
    made.bos_token_id = made.eos_token_id = eos
    set_seed(seed)
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
