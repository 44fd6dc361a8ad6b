"""A student's model card: front matter that the hub reads, and the facts of its compression."""

from pathlib import Path
from typing import Any

TAGS = {
    "truncate": ["layer-truncation"],
    "random": ["random-initialization"],
    "none": [],
    "pretrain": ["continued-pretraining"],
    "distill": ["knowledge-distillation"],
}


def model_card(compression: dict[str, Any], teacher: Path) -> str:
    """A student's README.md, from its compression.json and the license that the teacher's card states."""
    from huggingface_hub import ModelCardData

    teacher_name, student = compression["teacher"]["name"], compression["student"]
    data = ModelCardData(
        base_model=teacher_name,
        library_name="transformers",
        pipeline_tag="text-generation",
        license=_license(teacher),
        tags=["compressed", *TAGS[compression["init"]], *TAGS[compression["train"]]],
    )
    rows = "\n".join(f"| {key} | {value} |" for key, value in _facts(compression))
    return (
        f"---\n{data.to_yaml()}\n---\n# {student['name']}\n\n{_sentence(compression)} Made by\n\n"
        f"```\n{compression['command']}\n```\n\n| | |\n|---|---|\n{rows}\n"
    )


def _sentence(compression: dict[str, Any]) -> str:
    """What the student is, in a line."""
    teacher, student = compression["teacher"], compression["student"]
    done = {
        "none": "as cut, without any training: its text is poor until it is healed",
        "pretrain": "trained further on plain text",
        "distill": "distilled from the whole teacher",
    }[compression["train"]]
    if compression["init"] == "random":
        return (
            f"A model of {student['layers']} layers in the shape of {teacher['name']}, "
            f"from fresh random weights (seed {compression['seed']}), {done.replace('as cut, ', '')}."
        )
    kept = ", ".join(map(str, compression["keep"]))
    return f"Layers {kept} of {teacher['name']}'s {teacher['layers']} ({compression['select']}), {done}."


def _facts(compression: dict[str, Any]) -> list[tuple[str, Any]]:
    """The card's table: counts, hashes, and what training there was."""
    teacher, student, training = (compression[key] for key in ("teacher", "student", "training"))
    facts = [
        ("parameters", f"{student['parameters']:,} (teacher {teacher['parameters']:,})"),
        ("teacher's sha256", f"`{teacher['sha256']}`"),
        ("weights and tokenizer's sha256", f"`{student['sha256']}`"),
        ("seed", compression["seed"]),
        *_chosen(compression.get("selection")),
    ]
    if training:
        perplexity, corpus = training["perplexity"], training["corpus"]
        facts += [
            ("objective", training["objective"]),
            ("corpus", f"{corpus['name']} (sha256 `{corpus['sha256']}`)"),
            ("tokens seen", f"{training['tokens']:,}{_share(training)} in {training['hours']} h"),
            *([("teacher asked", f"{training['cache_hours']} h")] if "cache_hours" in training else []),
            *_cost(training.get("cost", {}), training),
            (
                "held-out perplexity",
                f"{perplexity['before']:.2f} before, {perplexity['after']:.2f} after "
                f"({perplexity['tokens']:,} tokens, blocks of {perplexity['window']})",
            ),
        ]
    return [*facts, ("versions", ", ".join(f"{k} {v}" for k, v in compression["versions"].items()))]


def _chosen(selection: dict[str, Any] | None) -> list[tuple[str, Any]]:
    """What a strategy that measures saw: the text, and the scores of each round by a run's first layer."""
    if selection is None:
        return []
    corpus = selection["corpus"]
    text = f"{selection['tokens']:,} tokens of {corpus['name']}'s train part (sha256 `{corpus['sha256']}`)"
    rows = [("layers chosen by", f"{selection['method']} on {text}")]
    for number, found in enumerate(selection["rounds"], 1):
        scores = (
            f"{layer}: {score:.4g}" for layer, score in zip(found["layers"], found["scores"], strict=False)
        )
        rows.append((f"scores, round {number}, lowest dropped", ", ".join(scores)))
    return rows


def _share(training: dict[str, Any]) -> str:
    """The tokens seen as a share of the corpus, where the record says so."""
    return f" ({training['epochs']:.1%} of the corpus)" if "epochs" in training else ""


def _cost(cost: dict[str, Any], training: dict[str, Any]) -> list[tuple[str, Any]]:
    """Speed, share of the peak and energy, as far as they were measured."""
    if not cost:
        return []
    speed = (
        f"{training['tokens_per_second']:,.0f} tokens/s, {cost['flops_per_token'] / 1e6:,.0f} MFLOP a token"
    )
    if cost["peak_share"] is not None:
        speed += f", {cost['peak_share']:.1%} of the GPU's measured bf16 peak"
    energy = cost["kilowatt_hours"]
    return [("speed", speed), ("energy", "no counter to read" if energy is None else f"{energy} kWh")]


def _license(teacher: Path) -> str | None:
    """The license named in the front matter of the teacher's own card, where there is one."""
    from huggingface_hub import ModelCard

    try:
        return ModelCard.load(teacher / "README.md", ignore_metadata_errors=True).data.license
    except (OSError, ValueError):
        return None  # no card, or front matter that is no YAML: nothing to pass on
